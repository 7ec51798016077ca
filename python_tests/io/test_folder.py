"""A folder is there with all of its files, or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ddsm_ext.io.folder import write_folder

FILES = {"a.txt": "one", "b.txt": "two"}


def fill(folder: Path) -> int:
    for name, text in FILES.items():
        (folder / name).write_text(text)
    return len(FILES)


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_a_folder_is_filled_beside_its_place(tmp_path: Path) -> None:
    target, temp, seen = tmp_path / "out", tmp_path / "work" / "whole", []

    def watched(folder: Path) -> int:
        seen.append((folder, target.exists()))
        return fill(folder)

    assert write_folder(target, temp, watched) == 2
    assert seen == [(temp, False)]
    assert contents(target) == FILES
    assert not temp.exists()


def test_an_empty_folder_makes_way_and_no_other(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    write_folder(target, tmp_path / "temp", fill)
    assert contents(target) == FILES
    (target / "a.txt").write_text("mine")
    with pytest.raises(OSError, match="need a place for a new folder") as caught:
        write_folder(target, tmp_path / "temp", fill)
    assert caught.value.filename == str(target)
    assert contents(target) == {**FILES, "a.txt": "mine"}
    assert not (tmp_path / "temp").exists()


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    def failing(folder: Path) -> None:
        fill(folder)
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        write_folder(tmp_path / "out", tmp_path / "temp", failing)
    assert list(tmp_path.iterdir()) == []


def fill_deeply(folder: Path) -> None:
    (folder / "inner").mkdir()
    (folder / "inner" / "c.txt").write_text("three")


def test_a_folder_takes_the_place_of_another(tmp_path: Path) -> None:
    target = tmp_path / "out"
    write_folder(target, tmp_path / "temp", fill)
    write_folder(target, tmp_path / "temp", fill_deeply, replace=True)
    assert [path.relative_to(target).as_posix() for path in sorted(target.rglob("*"))] == [
        "inner", "inner/c.txt",
    ]  # fmt: skip
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("failing", [1, 2])
def test_the_old_folder_stays_where_the_new_one_cannot_come(
    failing: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, rename, calls = tmp_path / "out", os.rename, []

    def broken(source: Path, to: Path) -> None:
        calls.append(to)
        if len(calls) == failing:
            raise OSError(28, "No space left on device")
        rename(source, to)

    write_folder(target, tmp_path / "temp", fill)
    monkeypatch.setattr(os, "rename", broken)
    with pytest.raises(OSError, match="No space left"):
        write_folder(target, tmp_path / "temp", fill_deeply, replace=True)
    assert contents(target) == FILES
    assert os.listdir(tmp_path) == ["out"]


def test_the_old_folder_goes_where_the_new_one_has_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(folder: Path) -> None:
        if folder == tmp_path:
            raise OSError(5, "Input/output error")

    write_folder(tmp_path / "out", tmp_path / "temp", fill_deeply)
    monkeypatch.setattr("ddsm_ext.io.folder.sync_folder", broken)
    with pytest.raises(OSError, match="Input/output error"):
        write_folder(tmp_path / "out", tmp_path / "temp", fill, replace=True)
    assert contents(tmp_path / "out") == FILES
    assert os.listdir(tmp_path) == ["out"]


_KILLED = """
import os, signal, sys
from pathlib import Path
from ddsm_ext.io.folder import write_folder

def fill(folder):
    (folder / "a.txt").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)

write_folder(Path(sys.argv[1]) / "out", Path(sys.argv[1]) / "temp", fill)
"""


def test_what_a_killed_process_left_is_cleared_away(tmp_path: Path) -> None:
    job = subprocess.run([sys.executable, "-c", _KILLED, str(tmp_path)], check=False)
    assert job.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    assert contents(tmp_path / "temp") == {"a.txt": "half"}
    write_folder(tmp_path / "out", tmp_path / "temp", lambda folder: (folder / "c").write_text(""))
    assert os.listdir(tmp_path) == ["out"]
    assert contents(tmp_path / "out") == {"c": ""}
