"""Image files are data: right pixels from good ones, one sentence from bad ones."""

from __future__ import annotations

import io
import os
import struct
import zlib

import numpy as np
import pytest
from data.made_images import PIXELS, PNG, encoded, png_chunk
from PIL import Image

from ddsm_ext.data.entries import ReadLimits
from ddsm_ext.data.images import decode_image, image_grid, read_image, save_png
from ddsm_ext.data.source import images_from_folder


def huge_png(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        PNG
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
    opaque = np.dstack([PIXELS, np.full((5, 7), 255, np.uint8)])
    assert np.array_equal(decode_image(encoded(opaque, "PNG"), "x"), PIXELS)
    deep = (PIXELS[:, :, 0].astype(np.uint16) << 8) | 0x55
    assert np.array_equal(decode_image(encoded(deep, "PNG"), "x")[:, :, 0], PIXELS[:, :, 0])


def laid_on(colours, alpha, background: int) -> np.ndarray:
    """colour * a + background * (1 - a), rounded; alpha [H, W] of 0 to 255."""
    alpha = alpha[:, :, None].astype(int)
    return np.rint((colours * alpha + background * (255 - alpha)) / 255).astype(np.uint8)


@pytest.mark.parametrize("background", [255, 0, 100])
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_transparency_is_laid_on_the_background(kind, background):
    alpha = np.random.default_rng(1).integers(0, 256, (5, 7), dtype=np.uint8)
    alpha[0] = (0, 1, 2, 127, 128, 254, 255)
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    data = encoded(np.dstack([PIXELS, alpha]), kind, **options)
    expected = laid_on(PIXELS, alpha, background)
    assert np.array_equal(decode_image(data, "x.tiff", background=background), expected)
    if kind != "WEBP":
        grey = np.dstack([PIXELS[:, :, 0], alpha])
        found = decode_image(encoded(grey, kind), "x.tiff", background=background)
        assert np.array_equal(found, laid_on(grey[:, :, :1], alpha, background))


def test_transparency_by_default_is_white_and_hides_its_colour():
    data = encoded(np.dstack([PIXELS, np.zeros((5, 7), np.uint8)]), "PNG")
    for channels in (1, 3):
        assert (decode_image(data, "x", channels=channels) == 255).all()


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_a_transparent_grey_level_of_a_png(depth):
    """PNG specification 11.3.2.1: pixels of exactly that sample value are transparent."""
    levels = np.arange(4) if depth > 1 else np.array([0, 1, 0, 1])
    if depth == 16:
        levels = np.array([0x1234, 0x1235, 0x5600, 0xFFFF])
    row = int("".join(f"{level:0{depth}b}" for level in levels).ljust(8, "0"), 2)
    row = row.to_bytes(max(1, 4 * depth // 8), "big")
    header = struct.pack(">IIBBBBB", 4, 1, depth, 0, 0, 0, 0)
    for key in levels:
        chunks = [(b"IHDR", header), (b"tRNS", struct.pack(">H", key))]
        chunks += [(b"IDAT", zlib.compress(b"\0" + row)), (b"IEND", b"")]
        data = PNG + b"".join(png_chunk(*chunk) for chunk in chunks)
        full = 2 ** min(depth, 8) - 1
        expected = [(v >> max(0, depth - 8)) * 255 // full if v != key else 100 for v in levels]
        assert decode_image(data, "x", background=100)[0, :, 0].tolist() == expected


def test_a_transparent_colour_of_a_palette():
    image = Image.fromarray(PIXELS).quantize(4)
    index = np.asarray(image)
    colours = np.asarray(image.convert("RGB"))
    for kind, name in (("PNG", "x.png"), ("GIF", "x.gif")):
        file = io.BytesIO()
        image.save(file, kind, transparency=int(index[0, 0]))
        alpha = np.where((colours == colours[0, 0]).all(-1), 0, 255)
        assert np.array_equal(decode_image(file.getvalue(), name), laid_on(colours, alpha, 255))


@pytest.mark.parametrize(("kind", "name"), [("PNG", "x"), ("WEBP", "x"), ("TIFF", "x.tif")])
@pytest.mark.parametrize("orientation", range(10))
def test_exif_orientation_is_applied(kind, name, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(PIXELS, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    expected = {  # EXIF 2.3, tag 274: where row 0 and column 0 of the file are in the picture
        2: PIXELS[:, ::-1],
        3: PIXELS[::-1, ::-1],
        4: PIXELS[::-1],
        5: PIXELS.transpose(1, 0, 2),
        6: np.rot90(PIXELS, -1),
        7: PIXELS[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(PIXELS),
    }.get(orientation, PIXELS)
    assert np.array_equal(decode_image(data, name), expected)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("BMP", "a.bmp"),
        ("GIF", "a.gif"),
        ("TIFF", "a.tif"),
        ("TIFF", "a.TIFF"),
        ("PPM", "a.ppm"),
        ("PPM", "a.pnm"),
        ("JPEG", "a.jfif"),
        ("PNG", "a.bmp"),
        ("WEBP", "a.gif"),
    ],
)
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_other_formats_are_read_as_pillow_reads_them(kind, name, mode):
    picture = Image.fromarray(PIXELS).convert(mode)
    if (kind, mode) in (("JPEG", "P"), ("PPM", "P"), ("WEBP", "1")):
        picture = picture.convert("RGB")
    file = io.BytesIO()
    picture.save(file, kind)
    with Image.open(file) as image:
        expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(decode_image(file.getvalue(), name, channels=3), expected)


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PNG", "WEBP"])
def test_the_first_of_several_pictures_is_taken(kind):
    pictures = [Image.fromarray(np.full((4, 4), level, np.uint8)) for level in (80, 160)]
    file = io.BytesIO()
    options = {"lossless": True} if kind == "WEBP" else {}
    pictures[0].save(file, kind, save_all=True, append_images=pictures[1:], **options)
    assert (decode_image(file.getvalue(), f"x.{kind.lower()}") == 80).all()


def test_deep_grey_levels_keep_their_upper_bits():
    deep = np.array([[0, 255, 256, 0x1234, 0xFFFF]], np.uint16)
    for kind, name in (("PNG", "x"), ("TIFF", "x.tif"), ("PPM", "x.pgm")):
        assert decode_image(encoded(deep, kind), name)[0, :, 0].tolist() == (deep[0] >> 8).tolist()
    for array in (deep.astype(np.int32), deep.astype(np.float32)):
        with pytest.raises(ValueError, match=r"x\.tif: has grey levels .*; need"):
            decode_image(encoded(array, "TIFF"), "x.tif")


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
    "text bomb": PNG
    + png_chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
    + png_chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(1 << 26))),
}


EVIL_OTHERS = {
    "huge.bmp": b"BM"
    + struct.pack("<IIIIiiHHIIiiII", 99, 0, 54, 40, 60_000, 60_000, 1, 24, *[0] * 6),
    "huge.gif": b"GIF89a" + struct.pack("<HHBBB", 60_000, 60_000, 0x80, 0, 0) + bytes(50),
    "huge.pgm": b"P5 60000 60000 255\n" + bytes(50),
    "cut.bmp": encoded(PIXELS, "BMP")[:-30],
    "cut.gif": encoded(np.random.default_rng(0).integers(0, 256, (40, 40), np.uint8), "GIF")[:900],
    "cut.tif": encoded(PIXELS, "TIFF")[:90],
    "cut.ppm": encoded(PIXELS, "PPM")[:-30],
    **{f"empty.{kind}": b"" for kind in ("bmp", "gif", "tif", "ppm", "jfif")},
    **{f"text.{kind}": b"#!/bin/sh\ntouch evil\n" for kind in ("bmp", "gif", "tif", "ppm")},
    **{f"postscript.{kind}": EVIL["postscript"] for kind in ("bmp", "gif", "tif", "ppm")},
    "bmp.gif": encoded(PIXELS, "BMP"),
    "gif.tif": encoded(PIXELS, "GIF"),
}


@pytest.mark.parametrize("name", EVIL_OTHERS)
def test_evil_images_of_other_formats_are_refused_by_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(EVIL_OTHERS[name])
    with pytest.raises(ValueError, match=rf"{name}: .*need"):
        read_image(tmp_path / name)
    assert os.listdir(tmp_path) == [name]


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
