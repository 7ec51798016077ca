"""Image files as data: PNG, JPEG and WebP to uint8 arrays [H, W, C] under stated limits."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ddsm_ext.io.files import one_line, open_regular, write_atomic
from ddsm_ext.settings import Refusal

Pixels = NDArray[np.uint8]  # [H, W, C]

FORMATS = ("PNG", "JPEG", "WEBP")
SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".webp"))


@dataclass(frozen=True)
class ReadLimits:
    """How much a foreign file may claim before it is refused."""

    max_pixels: int = 1 << 26  # of one image
    max_entry_bytes: int = 1 << 28  # of one file, unpacked
    max_total_bytes: int = 1 << 34  # of all files of an archive, unpacked
    max_ratio: int = 200  # unpacked to packed, once past `free_bytes`
    free_bytes: int = 1 << 22  # unpacked size below which the ratio does not matter
    max_entries: int = 2_000_000


@dataclass(frozen=True)
class LabelledImage:
    """One image of a source, with the folder that held it."""

    pixels: Pixels  # uint8 [H, W, C]
    label: str | None  # class = name of the folder; None at the top
    name: str  # path inside the source


def is_image_name(name: str) -> bool:
    """Whether a path inside a source names an image, by suffix; hidden files are no images."""
    path = PurePosixPath(name)
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
    return path.suffix.lower() in SUFFIXES and not hidden


def label_of(name: str) -> str | None:
    """Class of a path inside a source: the name of its folder."""
    parent = PurePosixPath(name).parent.name
    return parent or None


def decode_image(
    data: bytes, name: str, *, channels: int | None = None, limits: ReadLimits | None = None
) -> Pixels:
    """Decode a PNG, JPEG or WebP file held in memory; photographs are turned upright (EXIF).

    Args:
        data: content of the file.
        name: where it came from, for errors.
        channels: 1 (grey), 3 (RGB), or None for what the file has; alpha is dropped.
        limits: None takes the defaults.

    Returns:
        uint8 [H, W, channels].

    Raises:
        ValueError: no such image, damaged, or too large.
    """
    limits = limits or ReadLimits()
    if channels not in (None, 1, 3):
        raise Refusal(f"read_image: channels is {channels!r}; need None, 1 or 3")
    if len(data) > limits.max_entry_bytes:
        raise Refusal(f"{name}: {len(data)} bytes; need at most {limits.max_entry_bytes}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                width, height = image.size
                if width * height <= limits.max_pixels:
                    image.load()
                    return _pixels(ImageOps.exif_transpose(image), channels)
    except MemoryError:
        raise
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, zlib.error ...
        reason = one_line(error)
        if "cannot identify image file" in reason:
            reason = "unknown format"
        raise Refusal(f"{name}: {reason}; need a whole PNG, JPEG or WebP image") from None
    raise Refusal(f"{name}: {width}x{height} pixels; need at most {limits.max_pixels}")


def _pixels(image: Image.Image, channels: int | None) -> Pixels:
    """uint8 [H, W, C] of a decoded image; 16-bit grey keeps its upper 8 bits."""
    if image.mode.startswith("I"):  # Pillow's own conversion would clip at 255
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    if channels is None:
        channels = 1 if image.mode in ("1", "L", "LA") else 3
    array = np.array(image.convert("L" if channels == 1 else "RGB"), dtype=np.uint8)
    return array[:, :, None] if channels == 1 else array


def read_image(
    path: str | Path, *, channels: int | None = None, limits: ReadLimits | None = None
) -> Pixels:
    """Read one PNG, JPEG or WebP file.

    Args:
        channels: 1 (grey), 3 (RGB), or None for what the file has.
        limits: None takes the defaults.

    Returns:
        uint8 [H, W, channels].

    Raises:
        FileNotFoundError: no such file.
        ValueError: no such image, damaged, or too large.
    """
    limits = limits or ReadLimits()
    with open_regular(path, "PNG, JPEG or WebP image") as file:
        if (size := os.fstat(file.fileno()).st_size) > limits.max_entry_bytes:
            raise Refusal(f"{path}: {size} bytes; need at most {limits.max_entry_bytes}")
        data = file.read()
    return decode_image(data, str(path), channels=channels, limits=limits)


def image_files(folder: str | Path) -> list[str]:
    """Sorted paths, relative to `folder`, of all images in it and below it.

    Raises:
        FileNotFoundError: no such folder, or no image in it.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder; need a folder of images")
    names = []
    for current, folders, files in os.walk(root):
        folders.sort()
        base = Path(current).relative_to(root)
        names += [(base / file).as_posix() for file in files]
    names = sorted(name for name in names if is_image_name(name))
    if not names:
        raise FileNotFoundError(f"{root}: holds no image; need .png, .jpg, .jpeg or .webp files")
    return names


def images_from_folder(
    folder: str | Path,
    *,
    channels: int | None = None,
    names: Container[str] | None = None,
    limits: ReadLimits | None = None,
) -> Iterator[LabelledImage]:
    """Images in and below a folder, sorted by path; the class is the name of the sub-folder.

    Args:
        folder: root; hidden files and other suffixes are passed over, linked folders not entered.
        channels: 1, 3, or None for what each file has.
        names: paths inside the folder to read; None reads all images.
        limits: None takes the defaults.

    Raises:
        FileNotFoundError: no such folder, or no image in it.
        ValueError: an image is damaged or too large.
    """
    for name in image_files(folder):
        if names is not None and name not in names:
            continue
        pixels = read_image(Path(folder) / name, channels=channels, limits=limits)
        yield LabelledImage(pixels, label_of(name), name)


def _check_pixels(image: Any, what: str) -> Pixels:
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] not in (1, 3):
        raise Refusal(
            f"{what}: array is {array.dtype} {list(array.shape)}; need uint8 [H, W, 1 or 3]"
        )
    if 0 in array.shape:
        raise Refusal(f"{what}: array is {list(array.shape)}; need at least one pixel")
    return array


def png_bytes(pixels: Pixels) -> bytes:
    """PNG file of uint8 [H, W, 1 or 3]; the same pixels give the same bytes."""
    array = np.ascontiguousarray(_check_pixels(pixels, "save_png"))
    file = io.BytesIO()
    Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).save(file, "PNG")
    return file.getvalue()


def save_png(path: str | Path, pixels: Pixels) -> Path:
    """Write uint8 [H, W, 1 or 3] as PNG, atomically.

    Raises:
        ValueError: wrong dtype or shape.
    """
    return write_atomic(path, png_bytes(pixels))


def image_grid(
    images: Pixels | Sequence[Pixels],
    columns: int | None = None,
    *,
    scale: int = 1,
    gap: int = 1,
) -> Pixels:
    """Lay equal images out row by row, with white between them.

    Args:
        images: uint8 [N, H, W, C], or a sequence of [H, W, C].
        columns: images a row; None makes the grid about square.
        scale: whole factor by which each pixel is enlarged.
        gap: pixels between images and round the grid.

    Returns:
        uint8 [rows * (H * scale + gap) + gap, columns * (W * scale + gap) + gap, C].

    Raises:
        ValueError: no image, or unequal ones.
    """
    tiles = [_check_pixels(image, "image_grid") for image in images]
    shapes = sorted({tile.shape for tile in tiles})
    if len(shapes) != 1:
        raise Refusal(f"image_grid: shapes are {shapes}; need one or more images of one shape")
    if (columns is not None and columns < 1) or scale < 1 or gap < 0:
        raise Refusal(
            f"image_grid: columns {columns}, scale {scale}, gap {gap}; need >= 1, >= 1 and >= 0"
        )
    columns = columns or int(np.ceil(np.sqrt(len(tiles))))
    rows = -(-len(tiles) // columns)
    height, width, depth = shapes[0][0] * scale, shapes[0][1] * scale, shapes[0][2]
    size = (rows * (height + gap) + gap, columns * (width + gap) + gap)
    grid = np.full((*size, depth), 255, np.uint8)  # [H', W', C]
    for index, tile in enumerate(tiles):
        row, column = divmod(index, columns)
        y, x = gap + row * (height + gap), gap + column * (width + gap)
        grid[y : y + height, x : x + width] = tile.repeat(scale, axis=0).repeat(scale, axis=1)
    return grid
