"""One process at a time writes into a run folder: the lock that each of them takes first."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import stat
import sys
import threading
import warnings
import weakref
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from ddsm_ext.io.files import NO_LOCKS, is_temporary, naming
from ddsm_ext.settings import Refusal

LOCK_FILE = ".lock"


@dataclass(eq=False)
class _Held:
    """A lock that a thread holds."""

    folder: str
    descriptor: int
    inode: tuple[int, int]  # device, number
    owner: list[_Held]  # those of the thread that took it
    count: int = 1

    def check(self) -> None:
        """Refuse a folder that is not the one that was locked."""
        if _inode(os.path.join(self.folder, LOCK_FILE)) != self.inode:
            raise Refusal(
                f"{self.folder}: was moved or removed while this process wrote into it; need it in "
                "its place, where the same command continues"
            )


class _Thread(threading.local):
    def __init__(self) -> None:
        self.held: list[_Held] = []


_thread = _Thread()
_every: weakref.WeakSet[_Held] = weakref.WeakSet()  # of all threads


def _close_all() -> None:
    """A forked child, such as a DataLoader worker, must not hold on when its parent is killed."""
    for held in _every:
        with contextlib.suppress(OSError):
            os.close(held.descriptor)
    _every.clear()
    _thread.held.clear()


os.register_at_fork(after_in_child=_close_all)


class RunLock:
    """The lock of a run folder: `with RunLock(run):` around whatever writes into it.

    It ends with the context, or with the process however that ends. The thread that holds it may
    take it again, and each time learns whether the folder is still the same one.

    Args:
        run: the run folder; made when missing.

    Raises:
        ValueError: another process or thread holds it (the sentence says which), or the folder that
            this thread holds was moved or removed.
        OSError: the folder is not writable.
    """

    def __init__(self, run: str | Path) -> None:
        self.run = Path(run)

    def __enter__(self) -> RunLock:
        folder = os.path.abspath(self.run)
        mine = next((held for held in _thread.held if held.folder == folder), None)
        if mine is None:
            self._held = self._taken(folder)
        else:
            mine.check()
            mine.count += 1
            self._held = mine
        return self

    def check(self) -> None:
        """Refuse to go on where the folder is not the one that was locked."""
        self._held.check()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        held = self._held
        try:
            if error is None:
                held.check()  # what was written went to a folder that is there
        finally:
            self._release(held)

    def _release(self, held: _Held) -> None:
        held.count -= 1
        if not held.count and held in _every:  # not in a forked child
            _every.discard(held)
            held.owner.remove(held)
            os.close(held.descriptor)

    def _taken(self, folder: str) -> _Held:
        with naming(folder, "need to write into the run folder"):
            os.makedirs(folder, exist_ok=True)
            descriptor, writable = _opened(os.path.join(folder, LOCK_FILE))
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise Refusal(f"{folder}/{LOCK_FILE}: not a regular file; need to remove it")
            inode = (status.st_dev, status.st_ino)
            # by another path
            mine = next((held for held in _thread.held if held.inode == inode), None)
            if mine is not None:
                os.close(descriptor)
                mine.count += 1
                return mine
            self._lock(descriptor)
            if writable:
                with naming(folder, "need to write into the run folder"):
                    _note_holder(descriptor)
            _remove_leftovers(Path(folder))
        except BaseException:
            os.close(descriptor)
            raise
        held = _Held(folder, descriptor, inode, _thread.held)
        _thread.held.append(held)
        _every.add(held)
        return held

    def _lock(self, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refusal(
                f"{self.run}: {_holder(descriptor)} is writing into it; need it to end first"
            ) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                with naming(self.run, "need its lock"):
                    raise
            warnings.warn(
                f"{self.run}: its file system has no locks; no other process may write into it",
                stacklevel=4,
            )


def output_lock(run: Path, out: str | Path | None) -> AbstractContextManager[Any]:
    """Return the run's lock for what is written into the run; none for what goes elsewhere.

    Args:
        run: the run folder.
        out: what is written; None is a place in the run.
    """
    place = run.resolve() if out is None else Path(out).resolve()
    inside = run.resolve() in (place, *place.parents)
    return RunLock(run) if inside else contextlib.nullcontext()


def _opened(path: str) -> tuple[int, bool]:
    """Descriptor of a lock file, and whether it can be written; a link to elsewhere is refused."""
    flags = os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        return os.open(path, os.O_RDWR | flags, 0o666), True
    except PermissionError as error:  # another user's, in a folder of both
        try:
            return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), False
        except FileNotFoundError:
            raise error from None


def _note_holder(descriptor: int) -> None:
    about = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "command": os.path.basename(sys.argv[0] or "python"),
        "arguments": sys.argv[1:3],
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(about).encode(), 0)


def _remove_leftovers(run: Path) -> None:
    """Remove what `write_atomic` left where a process was killed; under the lock nobody uses it."""
    for path in run.rglob(".*.tmp"):
        if is_temporary(path):
            with contextlib.suppress(OSError):
                path.unlink()


def _inode(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_dev, status.st_ino


def _holder(descriptor: int) -> str:
    """Who holds a lock, as far as its file says."""
    try:
        about = json.loads(os.pread(descriptor, 1 << 16, 0))
        words = " ".join([str(about["command"]), *map(str, about["arguments"])])
        return f"process {int(about['pid'])} on {about['host']} ({words}, since {about['since']})"
    except (OSError, ArithmeticError, ValueError, LookupError, TypeError, RecursionError):
        return "another process"
