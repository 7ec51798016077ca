"""CIFAR-10 in its two published forms, binary records and Python pickles; both read as data."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddsm_ext.data.archives import tar_entries
from ddsm_ext.data.images import ReadLimits, is_image_name
from ddsm_ext.data.pickled import PickledArray, read_plain_pickle
from ddsm_ext.io.files import read_bytes
from ddsm_ext.settings import Refusal

_SIDE = 32
_PIXEL_BYTES = 3 * _SIDE * _SIDE
_RECORD_BYTES = 1 + _PIXEL_BYTES
_CLASSES = 10
_BATCH = re.compile(r"(data_batch_\d+|test_batch)(\.bin)?")
_META = {"batches.meta", "batches.meta.txt"}


@dataclass(frozen=True)
class CifarImages:
    """Images of one split in the order of the archive's batches."""

    pixels: NDArray[np.uint8]  # [N, 32, 32, 3]
    labels: NDArray[np.int64]  # [N]
    class_names: tuple[str, ...]  # "0" to "9" when the archive names none


def cifar_kind(path: str | Path) -> str | None:
    """Which form of CIFAR-10 a file or folder holds: "binary", "python", or None for neither.

    Args:
        path: a batch file, a folder of them, or a tar archive of them; read up to the first
            batch or image.
    """
    path = Path(path)
    if path.is_dir():
        names: Iterable[str] = (str(file) for file in _folder_files(path))
    elif _BATCH.fullmatch(path.name):
        names = (path.name,)
    else:
        names = (name for name, _ in tar_entries(path))
    for name in names:
        if match := _BATCH.fullmatch(PurePosixPath(name).name):
            return "binary" if match[2] else "python"
        if is_image_name(name):
            return None
    return None


def _folder_files(folder: Path) -> list[Path]:
    """Batch and meta files in a folder, or in the one sub-folder that the archives unpack to."""
    for candidate in (folder, *sorted(folder.glob("cifar-10-batches-*"))):
        files = sorted(p for p in candidate.iterdir() if _BATCH.fullmatch(p.name))
        if files:
            return files + sorted(p for p in candidate.iterdir() if p.name in _META)
    return []


def _entries(path: Path, limits: ReadLimits) -> Iterator[tuple[str, bytes]]:
    if path.is_dir():
        files = _folder_files(path)
    elif _BATCH.fullmatch(path.name):
        files = [path]
    else:
        yield from tar_entries(path, limits)
        return
    for file in files:
        yield file.name, read_bytes(file, "CIFAR-10 batch")


def cifar10_binary(
    path: str | Path, split: str = "train", *, limits: ReadLimits | None = None
) -> CifarImages:
    """CIFAR-10 from `data_batch_N.bin` records: a label byte, then 1024 bytes each of R, G, B.

    Args:
        path: one .bin file, a folder of them, or cifar-10-binary.tar.gz.
        split: "train", "test" or "all".
        limits: None takes the defaults.

    Raises:
        FileNotFoundError: no such file.
        ValueError: wrong size or label, a damaged archive, or no such batch in it.
    """
    return _read(Path(path), split, limits or ReadLimits(), ".bin", _binary_batch)


def cifar10_python(
    path: str | Path, split: str = "train", *, limits: ReadLimits | None = None
) -> CifarImages:
    """CIFAR-10 from the pickles of cifar-10-python.tar.gz, without the pickle module.

    Args:
        path: one `data_batch_N` file, a folder of them, or cifar-10-python.tar.gz.
        split: "train", "test" or "all".
        limits: None takes the defaults.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a pickle with anything but plain data, a damaged archive, or no such batch.
    """
    return _read(Path(path), split, limits or ReadLimits(), None, _python_batch)


_Batch = tuple[NDArray[np.uint8], NDArray[np.int64]]  # [N, 32, 32, 3], [N]


def _read(
    path: Path,
    split: str,
    limits: ReadLimits,
    suffix: str | None,
    parse: Callable[[bytes, str], _Batch],
) -> CifarImages:
    if split not in ("train", "test", "all"):
        raise Refusal(f"CIFAR-10: split is {split!r}; need 'train', 'test' or 'all'")
    wanted = {"train": "data_batch", "test": "test_batch", "all": ""}[split]
    batches: dict[str, _Batch] = {}
    names = tuple(str(index) for index in range(_CLASSES))
    for entry, data in _entries(path, limits):
        name = PurePosixPath(entry).name
        match = _BATCH.fullmatch(name)
        where = str(path) if path.name == name else f"{path}: {entry}"
        if match and match[2] == suffix and name.startswith(wanted):
            batches[name] = parse(data, where)
        elif name in _META:
            names = _class_names(data, where, is_text=name.endswith(".txt")) or names
    if not batches:
        what = "data_batch_N" if split == "train" else "test_batch"
        raise Refusal(f"{path}: holds no CIFAR-10 {what}{suffix or ''} file; need at least one")
    ordered = [batches[name] for name in sorted(batches)]
    pixels = np.concatenate([batch[0] for batch in ordered])  # [N, 32, 32, 3]
    return CifarImages(pixels, np.concatenate([batch[1] for batch in ordered]), names)


def _pixels(planes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[N, 3072] planes R, G, B to [N, 32, 32, 3]."""
    return planes.reshape(-1, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1)


def _binary_batch(data: bytes, name: str) -> _Batch:
    if not data or len(data) % _RECORD_BYTES:
        raise Refusal(f"{name}: {len(data)} bytes; need a multiple of {_RECORD_BYTES}")
    records = np.frombuffer(data, np.uint8).reshape(-1, _RECORD_BYTES)
    return _pixels(records[:, 1:]), _labels(records[:, 0].tolist(), len(records), name)


def _labels(labels: Any, count: int, name: str) -> NDArray[np.int64]:
    whole = isinstance(labels, list) and len(labels) == count
    if not whole or any(type(n) is not int or not 0 <= n < _CLASSES for n in labels):
        raise Refusal(f"{name}: labels are malformed; need {count} ints from 0 to 9")
    return np.array(labels, dtype=np.int64)


def _entry(batch: Any, key: str) -> Any:
    """Entry of a pickled dict whose keys are bytes (Python 2) or str."""
    if not isinstance(batch, dict):
        return None
    value = batch.get(key.encode(), batch.get(key))
    return value.array if isinstance(value, PickledArray) else value


def _python_batch(data: bytes, name: str) -> _Batch:
    batch = read_plain_pickle(data, name)
    planes = _entry(batch, "data")
    if isinstance(planes, bytes):
        planes = np.frombuffer(planes, np.uint8)
        planes = planes.reshape(-1, _PIXEL_BYTES) if planes.size % _PIXEL_BYTES == 0 else None
    ok = isinstance(planes, np.ndarray) and planes.dtype == np.uint8 and planes.ndim == 2
    if not ok or planes.shape[1] != _PIXEL_BYTES or not len(planes):
        raise Refusal(f"{name}: holds no uint8 [N, {_PIXEL_BYTES}] 'data'; need a CIFAR-10 batch")
    return _pixels(planes), _labels(_entry(batch, "labels"), len(planes), name)


def _class_names(data: bytes, name: str, *, is_text: bool) -> tuple[str, ...] | None:
    if is_text:
        names = data.decode("utf-8", "replace").split()
    else:
        listed = _entry(read_plain_pickle(data, name), "label_names")
        names = listed if isinstance(listed, list) else []
        names = [n.decode("utf-8", "replace") if isinstance(n, bytes) else n for n in names]
    whole = len(names) == _CLASSES and all(isinstance(n, str) for n in names)
    return tuple(names) if whole else None
