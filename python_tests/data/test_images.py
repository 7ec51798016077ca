"""Image files are data: right pixels from good ones, one sentence from bad ones."""

from __future__ import annotations

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from ddsm_ext.data.images import (
    ReadLimits,
    decode_image,
    image_grid,
    images_from_folder,
    read_image,
    save_png,
)

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def encoded(pixels, kind: str, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def huge_png(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + png_chunk(b"IDAT", zlib.compress(bytes(1000)))
        + png_chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_png_round_trip_is_exact(tmp_path, channels):
    pixels = PIXELS[:, :, :channels]
    path = save_png(tmp_path / "deep" / "a.png", pixels)
    assert np.array_equal(read_image(path), pixels)
    again = save_png(tmp_path / "b.png", pixels)
    assert again.read_bytes() == path.read_bytes()
    with Image.open(path) as image:  # and to another reader
        assert np.array_equal(np.asarray(image).reshape(pixels.shape), pixels)


def test_webp_lossless_and_jpeg():
    assert np.array_equal(decode_image(encoded(PIXELS, "WEBP", lossless=True), "x"), PIXELS)
    flat = np.full((8, 8, 3), 77, np.uint8)
    assert np.array_equal(decode_image(encoded(flat, "JPEG"), "x"), flat)


def test_channels_and_modes():
    grey = encoded(PIXELS[:, :, 0], "PNG")
    assert decode_image(grey, "x").shape == (5, 7, 1)
    assert np.array_equal(decode_image(grey, "x", channels=3), PIXELS[:, :, :1].repeat(3, 2))
    # ITU-R 601: 0.299 R + 0.587 G + 0.114 B
    luma = PIXELS @ np.array([0.299, 0.587, 0.114])
    found = decode_image(encoded(PIXELS, "PNG"), "x", channels=1)[:, :, 0]
    assert np.abs(found - luma).max() <= 1.0
    alpha = np.dstack([PIXELS, np.full((5, 7), 9, np.uint8)])
    assert np.array_equal(decode_image(encoded(alpha, "PNG"), "x"), PIXELS)
    deep = (PIXELS[:, :, 0].astype(np.uint16) << 8) | 0x55
    assert np.array_equal(decode_image(encoded(deep, "PNG"), "x")[:, :, 0], PIXELS[:, :, 0])


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise to see it upright
    data = encoded(PIXELS, "PNG", exif=exif)
    assert np.array_equal(decode_image(data, "x"), np.rot90(PIXELS, -1))


EVIL = {
    "empty": b"",
    "text": b"import os; os.system('touch evil')",
    "pickle": b"cos\nsystem\n(S'touch evil'\ntR.",
    "bomb": huge_png(60_000, 60_000),
    "negative": huge_png(2**31 + 5, 1),
    "zero": huge_png(0, 0),
    "truncated png": encoded(PIXELS, "PNG")[:-30],
    "truncated jpeg": encoded(np.tile(PIXELS, (20, 20, 1)), "JPEG")[:900],
    "gif": encoded(PIXELS[:, :, 0], "GIF"),
    "bmp": encoded(PIXELS, "BMP"),
    "tiff": encoded(PIXELS, "TIFF"),
    "ppm": encoded(PIXELS, "PPM"),
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) (w) file\n",
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
    "flipped": encoded(PIXELS, "PNG")[:40] + b"\xff" + encoded(PIXELS, "PNG")[41:],
    "text bomb": b"\x89PNG\r\n\x1a\n"
    + png_chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
    + png_chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(1 << 26))),
}


@pytest.mark.parametrize("name", EVIL)
def test_evil_images_are_refused_by_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.png").write_bytes(EVIL[name])
    with pytest.raises(ValueError, match=r"bad\.png: .*need"):
        read_image(tmp_path / "bad.png")
    assert os.listdir(tmp_path) == ["bad.png"]


def test_every_truncation_and_many_flips_give_pixels_or_one_sentence():
    data = encoded(PIXELS, "PNG")
    rng = np.random.default_rng(1)
    damaged = [data[:length] for length in range(len(data) - 12)]
    for _ in range(300):
        flipped = bytearray(data)
        flipped[rng.integers(len(data))] ^= 1 << rng.integers(8)
        damaged.append(bytes(flipped))
    refusals = []
    for content in damaged:
        try:
            assert decode_image(content, "x.png").dtype == np.uint8
        except ValueError as error:
            refusals.append(str(error))
    assert len(refusals) > 100
    assert all(text.startswith("x.png: ") and "\n" not in text for text in refusals)


def test_limits_and_missing_files(tmp_path):
    path = save_png(tmp_path / "a.png", PIXELS)
    with pytest.raises(ValueError, match="7x5 pixels; need at most 34"):
        read_image(path, limits=ReadLimits(max_pixels=34))
    with pytest.raises(ValueError, match="bytes; need at most 10"):
        read_image(path, limits=ReadLimits(max_entry_bytes=10))
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_image(tmp_path / "none.png")
    with pytest.raises(ValueError, match="not a regular file"):
        read_image("/dev/zero")
    with pytest.raises(ValueError, match="channels is 2"):
        read_image(path, channels=2)


def test_folder_is_sorted_with_classes_from_sub_folders(tmp_path):
    for index, name in enumerate(["b/1.png", "a/2.PNG", "a/10.png", "top.png", ".hidden/x.png"]):
        save_png(tmp_path / name, np.full((2, 2, 1), index, np.uint8))
    (tmp_path / "a" / "notes.txt").write_text("no image")
    found = [
        (image.name, image.label, int(image.pixels[0, 0, 0]))
        for image in images_from_folder(tmp_path)
    ]
    assert found == [
        ("a/10.png", "a", 2),
        ("a/2.PNG", "a", 1),
        ("b/1.png", "b", 0),
        ("top.png", None, 3),
    ]
    chosen = images_from_folder(tmp_path, names={"b/1.png"}, channels=3)
    assert [image.pixels.shape for image in chosen] == [(2, 2, 3)]


def test_folder_without_images(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no image"):
        list(images_from_folder(tmp_path))
    with pytest.raises(FileNotFoundError, match="no such folder"):
        list(images_from_folder(tmp_path / "none"))


def test_grid_places_every_pixel():
    images = np.arange(3 * 2 * 2, dtype=np.uint8).reshape(3, 2, 2, 1)
    grid = image_grid(images, columns=2, gap=1)[:, :, 0]
    expected = np.array(
        [
            [255, 255, 255, 255, 255, 255, 255],
            [255, 0, 1, 255, 4, 5, 255],
            [255, 2, 3, 255, 6, 7, 255],
            [255, 255, 255, 255, 255, 255, 255],
            [255, 8, 9, 255, 255, 255, 255],
            [255, 10, 11, 255, 255, 255, 255],
            [255, 255, 255, 255, 255, 255, 255],
        ],
        np.uint8,
    )
    assert np.array_equal(grid, expected)
    assert (
        image_grid(images[:1], scale=3, gap=0)[:, :, 0].tolist()
        == [[0] * 3 + [1] * 3] * 3 + [[2] * 3 + [3] * 3] * 3
    )
    assert image_grid(np.zeros((16, 4, 4, 3), np.uint8)).shape == (21, 21, 3)


@pytest.mark.parametrize(
    "images", [[], [PIXELS, PIXELS[:3]], [PIXELS.astype(float)], [PIXELS[:, :, 0]], [PIXELS[:0]]]
)
def test_grid_and_png_refuse_wrong_arrays(tmp_path, images):
    with pytest.raises(ValueError, match=r"image_grid: .*need"):
        image_grid(images)
    if len(images) == 1:
        with pytest.raises(ValueError, match=r"save_png: .*need"):
            save_png(tmp_path / "a.png", images[0])
        assert not list(tmp_path.iterdir())
