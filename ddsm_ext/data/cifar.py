"""CIFAR-10 in its published binary records; the pickles of its Python version are refused."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from ddsm_ext.data.archives import archive_entries
from ddsm_ext.data.entries import Entry, ReadLimits
from ddsm_ext.data.images import is_image_name
from ddsm_ext.io.files import read_bytes
from ddsm_ext.settings import Refusal, check_choice

_SIDE = 32
_RECORD_BYTES = 1 + 3 * _SIDE * _SIDE
_CLASSES = 10
_BATCH = re.compile(r"(data_batch_\d+|test_batch)(\.bin)?")
_META = "batches.meta.txt"


@dataclass(frozen=True)
class CifarImages:
    """Images of one split in the order of the archive's batches."""

    pixels: NDArray[np.uint8]  # [N, 32, 32, 3]
    labels: NDArray[np.int64]  # [N]
    class_names: tuple[str, ...]  # "0" to "9" when the archive names none


def is_cifar10(path: str | Path) -> bool:
    """Whether a file or folder holds CIFAR-10's binary batches.

    Args:
        path: a batch file, a folder of them, or an archive of them; read up to the first batch or
            image.

    Raises:
        ValueError: it holds the Python version.
    """
    path = Path(path)
    for name, _, _ in _entries(path):
        if match := _BATCH.fullmatch(PurePosixPath(name).name):
            if match[2]:
                return True
            raise Refusal(
                f"{path}: is the Python version of CIFAR-10, which is pickled; need the binary "
                "version (cifar-10-binary.tar.gz) or a folder of images"
            )
        if is_image_name(name):
            return False
    return False


def is_cifar10_name(name: str) -> bool:
    """Whether a file inside a source is a batch of CIFAR-10, or names its classes."""
    own = name.rpartition("/")[2]
    return own == _META or _BATCH.fullmatch(own) is not None


def _batch_files(path: Path) -> list[Path]:
    """A batch, or those in a folder or in the one sub-folder that the archives unpack to."""
    if not path.is_dir():
        return [path]
    for candidate in (path, *sorted(path.glob("cifar-10-batches-*/"))):
        files = sorted(p for p in candidate.iterdir() if _BATCH.fullmatch(p.name) and p.is_file())
        if files:
            return [*files, *(p for p in [candidate / _META] if p.is_file())]
    return []


def _entries(path: Path) -> Iterator[Entry]:
    if path.is_dir() or _BATCH.fullmatch(path.name):
        for file in _batch_files(path):
            yield Entry(file.name, str(file), partial(read_bytes, file, "CIFAR-10 batch"))
    else:
        yield from archive_entries(path, ReadLimits())


def read_cifar10(path: str | Path, split: str = "train") -> CifarImages:
    """CIFAR-10 from `data_batch_N.bin` records: a label byte, then 1024 bytes each of R, G, B.

    Args:
        path: one .bin file, a folder of them, or an archive such as cifar-10-binary.tar.gz.
        split: "train", "test" or "all".

    Raises:
        FileNotFoundError: no such file.
        ValueError: wrong size or label, a damaged archive, or no such batch in it.
    """
    path = Path(path)
    wanted = {"train": "data_batch", "test": "test_batch", "all": ""}
    start = wanted[check_choice("CIFAR-10: split", split, wanted)]
    batches: dict[str, NDArray[np.uint8]] = {}
    class_names = tuple(str(index) for index in range(_CLASSES))
    for entry, where, read in _entries(path):
        name = PurePosixPath(entry).name
        match = _BATCH.fullmatch(name)
        if match and match[2] and name.startswith(start):
            batches[name] = _records(read(), where)
        elif name == _META:
            names = tuple(read().decode("utf-8", "replace").split())
            class_names = names if len(names) == _CLASSES else class_names
    if not batches:
        what = "data_batch_N" if split == "train" else "test_batch"
        raise Refusal(f"{path}: holds no CIFAR-10 {what}.bin file; need at least one")
    records = np.concatenate([batches[name] for name in sorted(batches)])  # [N, 3073]
    pixels = records[:, 1:].reshape(-1, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1)  # [N, 32, 32, 3]
    return CifarImages(pixels, records[:, 0].astype(np.int64), class_names)


def _records(data: bytes, name: str) -> NDArray[np.uint8]:
    """Records [N, 3073] of one batch."""
    if not data or len(data) % _RECORD_BYTES:
        raise Refusal(f"{name}: {len(data)} bytes; need a multiple of {_RECORD_BYTES}")
    records = np.frombuffer(data, np.uint8).reshape(-1, _RECORD_BYTES)
    if (largest := int(records[:, 0].max())) >= _CLASSES:
        raise Refusal(f"{name}: a label is {largest}; need 0 to {_CLASSES - 1}")
    return records
