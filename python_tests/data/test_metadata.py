"""Metadata and seldom tags: what decides no pixel is passed over, what does is heeded."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from ddsm_ext.data.images import decode_image

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


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
