"""Folders that are either whole or absent: filled beside their place, fsync, rename, fsync."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ddsm_ext.io.files import naming, sync_folder

T = TypeVar("T")


def write_folder(target: str | Path, temp: str | Path, fill: Callable[[Path], T]) -> T:
    """Make a folder of files: readers see all of it or nothing.

    Args:
        target: must not exist, or be an empty folder.
        temp: where it is filled, on the same file system; what an earlier process left there is
            removed. Who calls holds a lock, so that no other process fills it.
        fill: writes the files into the folder that it is given.

    Returns:
        what `fill` gives.

    Raises:
        OSError: the disk is full or not writable, or `target` holds something.
    """
    target, temp = Path(target), Path(temp)
    if temp.exists():
        shutil.rmtree(temp)
    temp.mkdir(parents=True)
    try:
        result = fill(temp)
        for path in temp.iterdir():
            _sync_file(path)
        sync_folder(temp)
        with naming(target, "need a place for a new folder"):
            os.rename(temp, target)
    except BaseException:
        shutil.rmtree(temp, ignore_errors=True)
        raise
    sync_folder(target.parent)
    return result


def _sync_file(path: Path) -> None:
    """Make the content of a file durable."""
    with naming(path, "need to make it durable"):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
