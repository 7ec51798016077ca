"""One writer a run folder: processes, threads, forks, folders that move."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from ddsm_ext.io.lock import LOCK_FILE, RunLock
from ddsm_ext.settings import Refusal

HOLDER = """
import sys, time
from ddsm_ext.io.lock import RunLock
with RunLock(sys.argv[1]):
    print("held", flush=True)
    if sys.argv[2] == "fork":
        import os
        if os.fork() == 0:
            print("forked", flush=True)
            time.sleep(60)
    time.sleep(60)
"""


def holder(run: Path, how: str = "alone") -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(run), how], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    if how == "fork":
        assert process.stdout.readline() == "forked\n"
    return process


def test_the_second_process_hears_of_the_first_which_ends_its_lock_by_dying(tmp_path: Path) -> None:
    process = holder(tmp_path)
    host = os.uname().nodename
    need = f"process {process.pid} on {host} .* is writing into it; need it to end first"
    with pytest.raises(Refusal, match=need), RunLock(tmp_path):
        pass
    process.kill()
    process.wait()
    with RunLock(tmp_path):
        about = json.loads((tmp_path / LOCK_FILE).read_text())
    assert about["pid"] == os.getpid()


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    code = """
import os, signal, sys
from ddsm_ext.io import files
files.os.replace = lambda *a: os.kill(os.getpid(), signal.SIGKILL)
files.write_atomic(sys.argv[1], b"half")
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "search" / "front.json")])
    (left,) = (tmp_path / "search").iterdir()
    assert left.name.startswith(".front.json.")
    mine = tmp_path / ".notes.tmp"
    mine.touch()
    with RunLock(tmp_path):
        assert not left.exists()
        assert mine.exists()


def test_a_forked_child_does_not_hold_on_when_its_parent_is_killed(tmp_path: Path) -> None:
    """As DataLoader workers are, for seconds."""
    process = holder(tmp_path, "fork")
    child = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())
    process.kill()
    process.wait()
    try:
        with RunLock(tmp_path):
            pass
    finally:
        os.kill(child, signal.SIGKILL)


def test_the_same_thread_may_take_it_again_by_any_path(tmp_path: Path, monkeypatch: Any) -> None:
    run, link = tmp_path / "run", tmp_path / "link"
    link.symlink_to(run)
    monkeypatch.chdir(tmp_path)
    with RunLock(run):
        with RunLock("run"), RunLock(link):
            pass
        process = subprocess.run(
            [sys.executable, "-c", HOLDER, str(run), "alone"], capture_output=True, text=True
        )
        assert "is writing into it" in process.stderr
    with RunLock(link):
        pass


def test_another_thread_is_another_writer(tmp_path: Path) -> None:
    said: list[str] = []

    def other() -> None:
        try:
            with RunLock(tmp_path):
                said.append("taken")
        except Refusal as error:
            said.append(str(error))

    for _ in range(2):
        with RunLock(tmp_path):
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert f"process {os.getpid()}" in said[0]
    assert said == [said[0], "taken", said[2], "taken"]


def test_one_thread_may_end_what_another_began(tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    lock.__enter__()
    thread = threading.Thread(target=lock.__exit__, args=(None, None, None))
    thread.start()
    thread.join()
    with RunLock(tmp_path):
        pass


@pytest.mark.parametrize("how", ["moved", "removed", "replaced"])
def test_a_folder_that_is_not_there_any_more_is_noticed(tmp_path: Path, how: str) -> None:
    run = tmp_path / "run"
    lock = RunLock(run).__enter__()
    lock.check()
    if how == "removed":
        (run / LOCK_FILE).unlink()
        run.rmdir()
    else:
        run.rename(tmp_path / "elsewhere")
    if how == "replaced":
        run.mkdir()
        (run / LOCK_FILE).touch()
    with pytest.raises(Refusal, match="was moved or removed while this process wrote"):
        lock.check()
    with pytest.raises(Refusal, match="was moved or removed"), RunLock(run):
        pass
    with pytest.raises(Refusal, match="was moved or removed"):
        lock.__exit__(None, None, None)
    assert run.exists() == (how == "replaced")
    with RunLock(run):
        pass


@pytest.mark.parametrize("what", ["link", "broken link", "pipe", "null"])
def test_a_lock_file_of_another_kind_is_neither_followed_nor_written(
    tmp_path: Path, what: str
) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    run.mkdir()
    if what == "pipe":
        os.mkfifo(run / LOCK_FILE)
    else:
        target = {"link": other, "broken link": tmp_path / "none", "null": "/dev/null"}[what]
        (run / LOCK_FILE).symlink_to(target)
    other.write_text("mine")
    with pytest.raises((Refusal, OSError), match="run"), RunLock(run):
        pass
    assert other.read_text() == "mine"
    assert not (tmp_path / "none").exists()


def test_nonsense_in_a_lock_file_names_nobody(tmp_path: Path) -> None:
    with RunLock(tmp_path) as lock:
        for text in ('{"pid": 1e999}', "[" * 9999, "", '{"pid": 1}', "\x00"):
            (tmp_path / LOCK_FILE).write_text(text)
            result = subprocess.run(
                [sys.executable, "-c", HOLDER, str(tmp_path), "alone"],
                capture_output=True,
                text=True,
            )
            assert "another process is writing into it; need it to end first" in result.stderr
        lock.check()


def test_threads_that_race_for_it_get_it_one_at_a_time(tmp_path: Path) -> None:
    inside, most, turns = [0], [0], []

    def work() -> None:
        while len(turns) < 200:
            try:
                with RunLock(tmp_path):
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                    time.sleep(0)
                    inside[0] -= 1
                    turns.append(1)
            except Refusal:
                time.sleep(0)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]


def test_a_file_system_without_locks_is_said(tmp_path: Path, monkeypatch: Any) -> None:
    import fcntl

    def unsupported(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with pytest.warns(UserWarning, match="its file system has no locks"), RunLock(tmp_path):
        pass


def test_a_folder_that_is_not_writable_names_itself(tmp_path: Path, monkeypatch: Any) -> None:
    def refuse(path: str, *_: Any) -> int:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(PermissionError, match="need to write into the run folder") as caught:
        RunLock(tmp_path).__enter__()
    assert caught.value.filename == str(tmp_path)


def refusing(refused: int) -> Any:
    """`os.open` of files and folders of another user, who permits no such flag."""
    opened = os.open

    def of_another_user(path: Any, flags: int, *mode: int) -> int:
        if flags & refused:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return opened(path, flags, *mode)

    return of_another_user


def test_the_lock_file_of_another_user_serves_though_it_cannot_be_written(
    tmp_path: Path, monkeypatch: Any
) -> None:
    with RunLock(tmp_path):
        about = (tmp_path / LOCK_FILE).read_bytes()
    monkeypatch.setattr(os, "open", refusing(os.O_RDWR))
    with RunLock(tmp_path):
        monkeypatch.undo()
        refused: list[str] = []

        def second() -> None:
            try:
                RunLock(tmp_path).__enter__()
            except Refusal as error:
                refused.append(str(error))

        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert "is writing into it; need it to end first" in refused[0]
    assert (tmp_path / LOCK_FILE).read_bytes() == about  # says who held it before


def test_a_missing_lock_file_in_a_folder_of_another_user_is_not_permitted(
    tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(os, "open", refusing(os.O_CREAT))
    with pytest.raises(PermissionError, match="need to write into the run folder"):
        RunLock(tmp_path).__enter__()


def test_a_lock_that_was_not_taken_whole_is_given_back(tmp_path: Path, monkeypatch: Any) -> None:
    def fails(*_: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rglob", fails)
        with pytest.raises(OSError, match="Input/output error"):
            RunLock(tmp_path).__enter__()
    with RunLock(tmp_path):
        pass
