"""Folders that are either whole or absent: filled beside their place, fsync, rename, fsync."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ddsm_ext.io.files import naming, sync_folder

T = TypeVar("T")


def write_folder(
    target: str | Path, temp: str | Path, fill: Callable[[Path], T], *, replace: bool = False
) -> T:
    """Make a folder of files: readers see all of it or nothing.

    Args:
        target: must not exist, or be an empty folder; or, with `replace`, a folder that makes way.
        temp: where it is filled, on the same file system; what an earlier process left there is
            removed. Who calls sees to it that no other process fills it: by a lock, or its name.
        fill: writes the files into the folder that it is given.
        replace: put the new folder in the old one's place.

    Returns:
        what `fill` gives.

    Raises:
        OSError: the disk is full or not writable, or `target` holds something.
    """
    target, temp = Path(target), Path(temp)
    old = temp.with_name(f"{temp.name}-old")
    if temp.exists():
        shutil.rmtree(temp)
    temp.mkdir(parents=True)
    try:
        result = fill(temp)
        for folder, _, names in os.walk(temp):
            for name in names:
                _sync_file(Path(folder, name))
            sync_folder(Path(folder))
        with naming(target, "need a place for a new folder"):
            if replace and target.exists():
                os.rename(target, old)
            os.rename(temp, target)
        sync_folder(target.parent)
    finally:
        if old.exists() and not target.exists():
            os.rename(old, target)
        for left in (temp, old):
            shutil.rmtree(left, ignore_errors=True)
    return result


def _sync_file(path: Path) -> None:
    """Make the content of a file durable."""
    with naming(path, "need to make it durable"):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
