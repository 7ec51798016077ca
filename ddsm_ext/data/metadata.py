"""Image files without the metadata that a decoder may stumble over."""

from __future__ import annotations

import struct
import zlib

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_PIXELS = b"IHDR PLTE IDAT IEND tRNS".split()  # chunks that decide the first picture
_ORIENTATION = 274
# TIFF's tags that say where the pixels are and how they are written.
_TIFF_PIXELS = frozenset(
    (256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 292, 293,
     317, 320, 322, 323, 324, 325, 338, 339,
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
        if not _is_metadata(kind) or (kind == b"eXIf" and whole):
            kept.append(data[start:end])
        start = end
    return b"".join((*kept, data[start:]))


def _is_metadata(kind: bytes) -> bool:
    """Whether a chunk of PNG is one that readers may leave out, by the case of its first letter.

    One that differs from a chunk of pixels by one letter, or in case alone, may be that, with its
    name damaged.
    """
    if not kind.isalpha() or kind[:1].isupper():
        return False
    differing = [sum(a != b for a, b in zip(kind, known, strict=True)) for known in _PNG_PIXELS]
    return min(differing) > 1 and kind.lower() not in [known.lower() for known in _PNG_PIXELS]


def _bare_tiff(data: bytes, order: str) -> bytes:
    """The file with a directory of the first picture's own in place of the old one.

    It is no longer than that, and the file stays as long as it was: what is cut off is missed.
    """
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
    directory = struct.pack(f"{order}H", len(kept)) + b"".join(kept) + b"\0" * 4
    return data[:start] + directory + data[start + len(directory) :]
