"""Images in one .npz as guided-diffusion's samplers and evaluator exchange them.

`arr_0` holds the images, uint8 [N, H, W, C]; `arr_1`, where there is one, their labels [N].

Source: `image_sample.py` and `evaluations/README.md` of github.com/openai/guided-diffusion.
"""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddsm_ext.data.entries import ReadLimits
from ddsm_ext.io.files import naming, one_line, open_regular, system_error, write_atomic
from ddsm_ext.settings import Refusal

_IMAGES, _LABELS = "arr_0", "arr_1"
_NEED = "need an archive of samples, arr_0 uint8 [N, H, W, 1 or 3] and arr_1 [N] labels or none"
# What foreign bytes make zipfile, zlib and numpy's header parser raise
_DAMAGE = (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error, NotImplementedError,
           RuntimeError, SyntaxError, TypeError, OverflowError, MemoryError)  # fmt: skip
_MOST_CLASSES = 100_000


@dataclass(frozen=True)
class SampleArchive:
    """What such a file holds."""

    images: NDArray[np.uint8]  # [N, H, W, C]
    labels: NDArray[np.int64] | None  # [N]


def is_sample_archive(path: Path) -> bool:
    """Whether a file is one by its name."""
    return path.suffix.lower() == ".npz" and path.is_file()


def read_sample_archive(path: str | Path, limits: ReadLimits | None = None) -> SampleArchive:
    """Read images, and their labels if there are any; nothing else in the file is looked at.

    Args:
        path: the .npz.
        limits: how much it may claim; None takes the defaults.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, too large, or without images.
    """
    path, limits = Path(path), limits or ReadLimits()
    with open_regular(path, "archive of samples") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                packed = max(1, path.stat().st_size)
                names = {info.filename for info in archive.infolist()}
                if f"{_IMAGES}.npy" not in names:
                    held = ", ".join(sorted(names)[:8]) or "nothing"
                    raise Refusal(f"{path}: holds {held}; {_NEED}")
                images = _array(path, archive, _IMAGES, limits, packed)
                labels = None
                if f"{_LABELS}.npy" in names:
                    labels = _array(path, archive, _LABELS, limits, packed)
        except Refusal:
            raise
        except _DAMAGE as error:
            if cause := system_error(error):
                with naming(path, "need an archive of samples that can be read"):
                    raise cause from None
            raise Refusal(f"{path}: {one_line(error)}; {_NEED}") from None
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        raise Refusal(f"{path}: {_IMAGES} is {images.dtype} {list(images.shape)}; {_NEED}")
    pixels = images.astype(np.uint8, copy=False)
    return SampleArchive(pixels, None if labels is None else _labels(path, labels, len(images)))


def _array(
    path: Path, archive: zipfile.ZipFile, key: str, limits: ReadLimits, packed: int
) -> NDArray[np.generic]:
    """An entry, after its header was found to say no more than it holds."""
    info = archive.getinfo(f"{key}.npy")
    with archive.open(info) as entry:
        version = np.lib.format.read_magic(entry)
        header = {(1, 0): np.lib.format.read_array_header_1_0,
                  (2, 0): np.lib.format.read_array_header_2_0}  # fmt: skip
        if version not in header:
            raise Refusal(f"{path}: {key} has format {version}; {_NEED}")
        shape, by_column, dtype = header[version](entry)
        size = math.prod(shape) * dtype.itemsize
        if dtype.hasobject or by_column or entry.tell() + size != info.file_size:
            raise Refusal(f"{path}: {key} is {dtype} {list(shape)}, not as it is stored; {_NEED}")
        too_large = size > limits.max_total_bytes or (
            size > limits.free_bytes and size > limits.max_ratio * packed
        )
        if too_large:
            raise Refusal(f"{path}: {key} unpacks to {size} bytes; need less")
        return np.frombuffer(entry.read(), dtype).reshape(shape)


def _labels(path: Path, labels: NDArray[np.generic], images: int) -> NDArray[np.int64]:
    if labels.dtype.kind not in "iu" or labels.shape != (images,):
        got = f"{labels.dtype} {list(labels.shape)}"
        raise Refusal(f"{path}: {_LABELS} is {got} beside {images} images; {_NEED}")
    whole = labels.astype(np.int64)
    if images and not 0 <= int(whole.min()) <= int(whole.max()) < _MOST_CLASSES:
        raise Refusal(
            f"{path}: labels are {int(whole.min())} to {int(whole.max())}; need 0 to "
            f"{_MOST_CLASSES - 1}"
        )
    return whole


def write_sample_archive(
    path: str | Path, images: NDArray[np.uint8], labels: NDArray[np.int64] | None = None
) -> Path:
    """Write images, and their labels if given, at once; returns the path.

    Args:
        path: the file; its name must end in .npz.
        images: uint8 [N, H, W, C].
        labels: [N].

    Raises:
        ValueError: another ending.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise Refusal(f"{path}: the name does not end in .npz; need a .npz file")
    arrays = [images] if labels is None else [images, labels]
    buffer = io.BytesIO()
    np.savez(buffer, *map(np.ascontiguousarray, arrays), allow_pickle=False)
    return write_atomic(path, buffer.getvalue())
