"""Files that are either whole or absent: temp file in the same folder, fsync, rename, fsync."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import math
import os
import re
import reprlib
import secrets
import shutil
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from ddsm_ext.settings import Refusal, TypeRefusal

# What a file system without locks answers
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_TEMPORARY = re.compile(r"\..+\.\d+-[0-9a-f]{8}\.tmp")


def one_line(error: BaseException) -> str:
    """What an error says, without line breaks; its type where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


@contextlib.contextmanager
def naming(path: str | Path, need: str) -> Iterator[None]:
    """Make every OSError of the context say which file it is about, and what was needed."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # says it already
            raise
        raise OSError(error.errno, f"{error.strerror}; {need}", os.fspath(path)) from None


def system_error(error: BaseException) -> OSError | None:
    """The system's error behind that of a library, as zipfile's "not a zip file"; None: damage.

    To seek to where a damaged file says that something begins is an invalid argument.
    """
    for cause in (error, error.__context__):
        if isinstance(cause, OSError) and cause.errno not in (None, errno.EINVAL):
            return cause
    return None


@contextlib.contextmanager
def _descriptor(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable; a rename alone may be lost with the power."""
    with naming(folder, "need to make its names durable"), _descriptor(folder) as descriptor:
        os.fsync(descriptor)


@contextlib.contextmanager
def locked(folder: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock of a folder, which ends with the context or the process; no file is made.

    A file system without locks has none, as `io.lock.RunLock` says.

    Raises:
        BlockingIOError: another process holds it, and `wait` is False.
    """
    with _descriptor(folder) as descriptor:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        yield


def _room(path: Path, size: int) -> str:
    """What a write of so many bytes needs, beside what its disk has."""
    with contextlib.suppress(OSError):
        return f"need to write {size} bytes, {shutil.disk_usage(path.parent).free} are free"
    return f"need to write {size} bytes"


def write_synced(path: Path, data: bytes | memoryview, name: str | Path | None = None) -> None:
    """Write a file that must not exist yet and fsync it; the caller makes its name durable.

    Args:
        path: the file.
        data: all that it will hold.
        name: what errors call it, where its own name is a passing one.
    """
    view = memoryview(data)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            while view.nbytes:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError:
        with naming(name or path, _room(path, memoryview(data).nbytes)):
            raise


def write_atomic(path: str | Path, data: bytes) -> Path:
    """Replace `path` by `data` at once: readers see the old content or the new, never a part.

    Args:
        path: target; missing parent folders are made.

    Raises:
        ValueError: the path is that of a device or a pipe.
        OSError: it cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file() and not path.is_dir():
        raise Refusal(f"{path}: is a device or a pipe; need the name of a file")
    temp = path.parent / f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
    try:
        write_synced(temp, data, path)
        os.replace(temp, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temp.unlink()
        raise
    sync_folder(path.parent)
    return path


def is_temporary(path: Path) -> bool:
    """Whether a file has the name that `write_atomic` gives until it is whole."""
    return _TEMPORARY.fullmatch(path.name) is not None


def to_json(value: Any, *, indent: int | None = None, canonical: bool = False) -> str:
    """Text of a JSON value; NaN and infinity, which JSON does not have, are refused.

    What UTF-8 cannot hold, as of a file name that is none, becomes an escape. The canonical text is
    the same for keys in any order.

    Raises:
        ValueError: a number is not finite.
        TypeError: a value has no JSON form.
    """
    try:
        layout: dict[str, Any] = {"indent": indent}
        if canonical:
            layout = {"sort_keys": True, "separators": (",", ":")}
        text = json.dumps(value, allow_nan=False, ensure_ascii=False, **layout)
        return text.encode("utf-8", "backslashreplace").decode("utf-8")
    except ValueError as error:
        raise Refusal(f"JSON: {error}; need finite numbers and no cycles") from None
    except TypeError as error:
        raise TypeRefusal(
            f"JSON: {error}; need dict, list, str, int, float, bool or None"
        ) from None


def write_json(path: str | Path, value: Any) -> Path:
    """Write `value` as indented UTF-8 JSON, atomically.

    Raises:
        ValueError: a number is not finite.
        TypeError: a value has no JSON form.
    """
    return write_atomic(path, (to_json(value, indent=2) + "\n").encode())


def _refuse_constant(name: str) -> Any:
    raise Refusal(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise Refusal(f"{reprlib.repr(text)} is beyond the range of a float")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        count = Counter(key for key, _ in pairs)
        repeated = next(key for key in count if count[key] > 1)
        raise Refusal(f"key {reprlib.repr(repeated)} is given twice")
    return result


def parse_json(text: str | bytes, name: str, what: str = "whole JSON file") -> Any:
    """Value of a JSON text, with each key once and finite numbers only.

    Args:
        text: the text; bytes are UTF-8.
        name: says in errors where it came from.
        what: what is needed there, e.g. "cost table".

    Raises:
        ValueError: no JSON, not UTF-8, a key given twice, a number that is not finite, or nested
            deeper than the parser goes.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8-sig")
        return json.loads(
            text, parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_unique
        )
    except UnicodeDecodeError as error:
        raise Refusal(f"{name}: byte {error.start} is not UTF-8; need a {what} in JSON") from None
    except RecursionError:
        raise Refusal(f"{name}: is nested too deeply; need a {what} in JSON") from None
    except ValueError as error:
        raise Refusal(f"{name}: is not JSON ({error}); need a {what}") from None


def read_json(path: str | Path) -> Any:
    """Value of a JSON file.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is no JSON.
    """
    return parse_json(read_bytes(path, "JSON file"), str(path))


def read_bytes(path: str | Path, what: str) -> bytes:
    """Whole content of a regular file; errors say that a `what`, as "JSON file", is needed."""
    with naming(path, f"need a {what} that can be read"), open_regular(path, what) as file:
        return file.read()


def open_regular(path: str | Path, what: str) -> BinaryIO:
    """Open a file, a `what` in errors; pipes and devices, which may never end, are refused."""
    path = Path(path)
    if not path.exists():
        where = " where the link leads" if path.is_symlink() else ""
        raise FileNotFoundError(f"{path}: no such file{where}; need a {what}")
    if not path.is_file():
        folder = "is a folder, " if path.is_dir() else ""
        raise Refusal(f"{path}: {folder}not a regular file; need a {what}")
    return open(path, "rb")


def append_jsonl(path: str | Path, *rows: Mapping[str, Any]) -> None:
    """Append rows to a JSON-lines file and fsync it; a torn last line is cut off first.

    Args:
        path: target file; made when missing. One writer at a time.
        rows: objects with finite numbers.
    """
    path = Path(path)
    data = "".join(to_json(dict(row)) + "\n" for row in rows).encode()
    is_new = not path.exists()
    if is_new:
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(path, "ab+") as file:
            prefix = _repair_tail(file)
            file.write(prefix + data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        with naming(path, _room(path, len(data))):
            raise
    if is_new:
        sync_folder(path.parent)


def _repair_tail(file: Any) -> bytes:
    """Cut off a last line without newline; return the newline that a whole one still lacks."""
    end = file.seek(0, os.SEEK_END)
    if end == 0:
        return b""
    file.seek(end - 1)
    if file.read(1) == b"\n":
        return b""
    file.seek(0)
    content = file.read()
    start = content.rfind(b"\n") + 1
    if _parse_row(content[start:]) is not None:
        return b"\n"
    file.truncate(start)
    return b""


def _parse_row(line: bytes) -> dict[str, Any] | None:
    try:
        row = parse_json(line, "line")
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def parse_jsonl(content: bytes) -> tuple[list[dict[str, Any]], list[int]]:
    """Rows of JSON lines, and the numbers of the lines that hold none.

    A last line torn by a crash, without newline and no JSON, is neither.
    """
    lines = content.split(b"\n")
    rows, damaged = [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        row = _parse_row(line)
        if row is not None:
            rows.append(row)
        elif number < len(lines):
            damaged.append(number)
    return rows, damaged


def read_jsonl(path: str | Path, *, missing_ok: bool = False) -> list[dict[str, Any]]:
    """Rows of a JSON-lines file; a last line torn by a crash (no newline, no JSON) is left out.

    Args:
        path: file written by `append_jsonl`.
        missing_ok: give no rows instead of an error when the file is missing.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: a line before the last is no JSON object.
    """
    path = Path(path)
    if missing_ok and not path.exists():
        return []
    rows, damaged = parse_jsonl(read_bytes(path, "JSON-lines file"))
    if damaged:
        raise Refusal(
            f"{path}: line {damaged[0]} is no JSON object; need one object a line ({len(rows)} "
            f"lines are whole, {len(damaged)} are not)"
        )
    return rows


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """Rows of a log, which is no state: what is damaged is passed over, with a warning.

    Args:
        path: JSON-lines file; missing gives no rows.

    Raises:
        OSError: it is there and cannot be read.
    """
    path = Path(path)
    if not path.exists():
        return []
    rows, damaged = parse_jsonl(read_bytes(path, "JSON-lines file"))
    if damaged:
        warnings.warn(
            f"{path}: {len(damaged)} lines are no JSON objects (the first is line {damaged[0]}) "
            f"and are passed over; {len(rows)} are whole",
            stacklevel=2,
        )
    return rows
