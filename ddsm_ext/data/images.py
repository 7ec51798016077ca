"""Image files as data: what they show as uint8 arrays [H, W, C], under stated limits."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ddsm_ext.data.entries import DamagedImage, ReadLimits, is_hidden, read_file
from ddsm_ext.data.metadata import without_metadata
from ddsm_ext.io.files import one_line, write_atomic
from ddsm_ext.settings import Refusal

Pixels = NDArray[np.uint8]  # [H, W, C]

_ANY = ("PNG", "JPEG", "WEBP")  # what an image file may hold, whatever its suffix says
SUFFIXES: dict[str, tuple[str, ...]] = {  # of image files, with what else they may hold
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp"), ()),
    ".bmp": ("BMP",),
    ".gif": ("GIF",),
    **dict.fromkeys((".tif", ".tiff"), ("TIFF",)),
    **dict.fromkeys((".pbm", ".pgm", ".pnm", ".ppm"), ("PPM",)),
}

_ORIENTATION, _PHOTOMETRIC, _BITS = 0x0112, 0x0106, 0x0102  # tags of EXIF and TIFF
_TURNS = {  # EXIF's orientation, and what makes the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def is_image_name(name: str) -> bool:
    """Whether a path inside a source names an image, by suffix; hidden files are no images."""
    return PurePosixPath(name).suffix.lower() in SUFFIXES and not is_hidden(name)


def decode_image(
    data: bytes,
    name: str,
    *,
    channels: int | None = None,
    background: int = 255,
    limits: ReadLimits | None = None,
) -> Pixels:
    """Decode an image file held in memory; photographs are turned upright (EXIF).

    It may be a PNG, JPEG or WebP, and what else the suffix of its name says: BMP, GIF, TIFF or PPM.
    Of several pictures in a file the first is taken. Damaged metadata is passed over.

    Args:
        data: content of the file.
        name: where it came from, for errors and for its suffix.
        channels: 1 (grey), 3 (RGB), or None for what the file has.
        background: grey level, 0 (black) to 255 (white), that transparent pixels are laid on.
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
        raise DamagedImage(f"{name}: {len(data)} bytes; need at most {limits.max_entry_bytes}")
    formats = (*SUFFIXES.get(PurePosixPath(name).suffix.lower(), ()), *_ANY)
    reason = ""
    for bare in (False, True):
        content = without_metadata(data) if bare else data
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with Image.open(io.BytesIO(content), formats=formats) as image:
                    width, height = image.size
                    if width * height > limits.max_pixels:
                        raise DamagedImage(
                            f"{name}: {width}x{height} pixels; need at most {limits.max_pixels}"
                        )
                    image.load()
                    return _pixels(image, content, channels, background)
        except (MemoryError, DamagedImage):
            raise
        except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, zlib.error
            reason = one_line(error)
    if "cannot identify image file" in reason:
        reason = "unknown format"
    others = ", ".join(formats[:-1])
    raise DamagedImage(f"{name}: {reason}; need a whole {others} or WebP image")


def _pixels(image: Image.Image, data: bytes, channels: int | None, background: int) -> Pixels:
    """uint8 [H, W, C] of a decoded image, upright, without transparency."""
    turn = _turn(image)
    image = _eight_bits(image, data)
    if turn is not None:
        image = image.transpose(turn)
    if image.mode == "La":  # which converts to no other mode
        image = image.convert("LA")
    if channels is None:
        channels = 1 if image.mode in ("1", "L", "LA") else 3
    if image.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Image.new("RGB", image.size, (background,) * 3)
        ground.paste(image, mask=image)
        image = ground
    array = np.array(image.convert("L" if channels == 1 else "RGB"), dtype=np.uint8)
    return array[:, :, None] if channels == 1 else array


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What makes an image upright; None where its metadata does not say, or is damaged."""
    try:
        return _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # SyntaxError, struct.error, TypeError ...
        return None


def _eight_bits(image: Image.Image, data: bytes) -> Image.Image:
    """An image of 8 bits a channel; of deeper ones the upper 8 bits.

    Pillow reads 16 bits of colour as 8 already. It leaves the transparent colour of a PNG as the
    file has it, in the file's own depth.

    Args:
        image: decoded, in any mode of Pillow.
        data: the file that it comes from.
    """
    key = image.info.get("transparency")
    if image.mode.startswith("I"):
        tags = getattr(image, "tag_v2", {})
        if image.mode == "I" and tags:
            raise Refusal("has grey levels of 32 bits, or with signs")
        deep = np.asarray(image)
        if tags.get(_PHOTOMETRIC) == 0:  # white is 0
            deep = 65535 - deep
        grey = (deep >> (tags.get(_BITS, (16,))[0] - 8)).clip(0, 255).astype(np.uint8)
        result = Image.fromarray(grey)
        if key is not None:
            result.putalpha(Image.fromarray(np.where(deep == key, 0, 255).astype(np.uint8)))
        return result
    if image.mode == "F":
        raise Refusal("has grey levels in floating point")
    if image.format == "PNG" and isinstance(key, int | tuple) and image.mode in ("L", "RGB"):
        depth = data[24]
        if isinstance(key, tuple):
            image.info["transparency"] = tuple(level >> max(0, depth - 8) for level in key)
        else:
            image.info["transparency"] = key * 255 // (2**depth - 1)
    return image


def read_image(
    path: str | Path,
    *,
    channels: int | None = None,
    background: int = 255,
    limits: ReadLimits | None = None,
) -> Pixels:
    """Read one image file, as `decode_image` does.

    Args:
        channels: 1 (grey), 3 (RGB), or None for what the file has.
        background: grey level, 0 (black) to 255 (white), that transparent pixels are laid on.
        limits: None takes the defaults.

    Returns:
        uint8 [H, W, channels].

    Raises:
        FileNotFoundError: no such file.
        ValueError: no such image, damaged, or too large.
    """
    data = read_file(Path(path), limits or ReadLimits())
    return decode_image(data, str(path), channels=channels, background=background, limits=limits)


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
