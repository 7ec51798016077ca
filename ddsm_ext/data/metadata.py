"""Image files without the metadata that a decoder may stumble over."""

from __future__ import annotations

import struct
import zlib

_PNG = b"\x89PNG\r\n\x1a\n"
# Chunks of PNG that decide no pixel of the first picture. One of another name may be a palette or
# transparency whose name is damaged.
_PNG_METADATA = frozenset(
    b"bKGD cHRM cICP cLLI eXIf gAMA hIST iCCP iTXt mDCV pHYs sBIT sPLT sRGB tEXt tIME zTXt "
    b"acTL fcTL fdAT".split()
)
_ORIENTATION = 274
# TIFF's tags that say where the pixels are and how they are written.
_TIFF_PIXELS = frozenset(
    (256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 317, 320, 322, 323, 324, 325, 338, 339,
     347, 512, 513, 514, 519, 520, 521, 529, 530, 532)
)  # fmt: skip


def without_metadata(data: bytes) -> bytes:
    """A PNG or TIFF with what decides its pixels, and the orientation where that is whole.

    Args:
        data: an image file; of another kind, or too damaged, it comes back as it is.
    """
    if data.startswith(_PNG):
        return _bare_png(data)
    for magic, order in ((b"II*\0", "<"), (b"MM\0*", ">")):
        if data.startswith(magic):
            return _bare_tiff(data, order)
    return data


def _bare_png(data: bytes) -> bytes:
    kept, start = [_PNG], len(_PNG)
    while start + 12 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, start)
        end = start + 12 + size
        whole = data[end - 4 : end] == struct.pack(">I", zlib.crc32(data[start + 4 : end - 4]))
        if kind not in _PNG_METADATA or (kind == b"eXIf" and whole):
            kept.append(data[start:end])
        start = end
    return b"".join((*kept, data[start:]))


def _bare_tiff(data: bytes, order: str) -> bytes:
    """The file with a directory of the first picture's own at its end."""
    try:
        (start,) = struct.unpack_from(f"{order}I", data, 4)
        (count,) = struct.unpack_from(f"{order}H", data, start)
        entries = [data[at : at + 12] for at in range(start + 2, start + 2 + 12 * count, 12)]
        heads = [struct.unpack_from(f"{order}HHI", entry) for entry in entries]
    except struct.error:
        return data
    kept = [
        entry
        for entry, (tag, kind, values) in zip(entries, heads, strict=True)
        if tag in _TIFF_PIXELS or (tag, kind, values) == (_ORIENTATION, 3, 1)
    ]
    body = data + b"\0" * (len(data) % 2)  # a directory begins at an even byte
    directory = struct.pack(f"{order}H", len(kept)) + b"".join(kept) + b"\0" * 4
    return data[:4] + struct.pack(f"{order}I", len(body)) + body[8:] + directory
