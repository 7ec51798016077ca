"""Metadata and seldom tags: what decides no pixel is passed over, what does is heeded."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from data.made_images import PIXELS, encoded, png_chunk
from PIL import Image

from ddsm_ext.data.images import decode_image


def with_chunk(kind: bytes, content: bytes, *, whole: bool = True) -> bytes:
    """A PNG of PIXELS with one more chunk, whose checksum is right or wrong."""
    chunk = png_chunk(kind, content)
    chunk = chunk if whole else chunk[:-1] + bytes([chunk[-1] ^ 1])
    plain = encoded(PIXELS, "PNG")
    at = plain.index(b"IDAT") - 4
    return plain[:at] + chunk + plain[at:]


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("content", [b"", b"\0", b"garbage", bytes(range(64))])
@pytest.mark.parametrize(
    "kind",
    b"eXIf gAMA pHYs cHRM iCCP sRGB sBIT bKGD tIME tEXt zTXt iTXt hIST sPLT cICP acTL fcTL".split(),
)
def test_damaged_metadata_of_a_png_is_passed_over(kind, content, whole):
    assert np.array_equal(decode_image(with_chunk(kind, content, whole=whole), "x"), PIXELS)


def test_metadata_beyond_pillows_limits_is_passed_over():
    content = b"k\0\0" + zlib.compress(bytes(1 << 26))
    assert np.array_equal(decode_image(with_chunk(b"zTXt", content), "x"), PIXELS)


def test_an_orientation_beside_damaged_metadata_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 3
    data = with_chunk(b"gAMA", b"", whole=False)
    at = data.index(b"IDAT") - 4
    data = data[:at] + png_chunk(b"eXIf", exif.tobytes()[6:]) + data[at:]
    assert np.array_equal(decode_image(data, "x"), PIXELS[::-1, ::-1])


def test_what_decides_pixels_is_no_metadata():
    image = Image.fromarray(PIXELS).quantize(4)
    file = io.BytesIO()
    image.save(file, "PNG", transparency=0)
    data = file.getvalue()
    for kind in (b"PLTE", b"tRNS", b"IDAT"):
        at = data.index(kind)
        for damaged in (kind.swapcase(), kind.lower(), b"\0" + kind[1:]):
            with pytest.raises(ValueError, match=r"x: .*need a whole PNG"):
                decode_image(data[:at] + damaged + data[at + 4 :], "x")
        if kind != b"IDAT":
            flipped = bytes([data[at + 4] ^ 1])
            with pytest.raises(ValueError, match=r"x: .*need a whole PNG"):
                decode_image(data[:at] + kind + flipped + data[at + 5 :], "x")


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_damaged_exif_is_passed_over(kind):
    plain = encoded(PIXELS, kind)
    for content in (b"Exif\0\0garbage", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff"):
        data = encoded(PIXELS, kind, exif=content)
        assert np.array_equal(decode_image(data, "x"), decode_image(plain, "x"))


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate"])
def test_damaged_metadata_of_a_tiff_is_passed_over(compression):
    options = {"software": "x" * 40, "description": "y" * 40, "dpi": (72, 72)}
    data = encoded(PIXELS, "TIFF", compression=compression, **options)
    (start,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, start)
    damaged = 0
    for at in range(start + 2, start + 2 + 12 * count, 12):
        if struct.unpack_from("<H", data, at)[0] in (0x10E, 0x11A, 0x11B, 0x128, 0x131):
            damaged += 1
            for value in (b"\xff" * 10, b"\0" * 10, b"\2\0" + b"\xff" * 8):
                changed = data[: at + 2] + value + data[at + 12 :]
                assert np.array_equal(decode_image(changed, "x.tif"), PIXELS)
    assert damaged == 5


@pytest.mark.parametrize("kind", [b"oFFs", b"pCAL", b"sCAL", b"iDOT", b"vpAg", b"caNv", b"tEXt"])
def test_damaged_metadata_of_any_name_is_passed_over(kind: bytes) -> None:
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "PNG")
    data, content = file.getvalue(), kind + bytes(9)
    chunk = struct.pack(">I", 9) + content + struct.pack(">I", zlib.crc32(content) ^ 1)
    assert np.array_equal(decode_image(data[:33] + chunk + data[33:], "x.png"), PIXELS)


def test_grey_tiff_with_associated_alpha() -> None:
    """TIFF 6.0, section 18: levels are multiplied by alpha already."""
    file = io.BytesIO()
    Image.frombytes("LA", (2, 1), bytes((50, 128, 200, 255))).save(file, "TIFF")
    tag = struct.pack("<HHI", 338, 3, 1)  # ExtraSamples: 2 is alpha apart, 1 associated alpha
    assert file.getvalue().count(tag + b"\2\0") == 1
    data = file.getvalue().replace(tag + b"\2\0", tag + b"\1\0")
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == "La"
    found = decode_image(data, "x.tif", background=0)
    assert found.shape == (1, 2, 1)
    assert np.abs(found[0, :, 0].astype(int) - (50, 200)).max() <= 1


@pytest.mark.parametrize(
    "compression", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"]
)
def test_no_cut_of_a_tiff_gives_other_pixels(compression: str | None) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "TIFF", compression=compression)
    whole = file.getvalue()
    pixels = decode_image(whole, "x.tif")
    for end in range(8, len(whole)):
        try:
            found = decode_image(whole[:end], "x.tif")
        except ValueError:
            continue
        assert np.array_equal(found, pixels), end
