"""Archives of small images, and what is found in them."""

from __future__ import annotations

import io
import tarfile
import zipfile

import numpy as np

from ddsm_ext.data.images import png_bytes

FILES = {f"{kind}/{index}.png": (kind, index) for kind in ("cat", "dog") for index in range(3)}


def picture(index: int) -> bytes:
    return png_bytes(np.full((3, 4, 1), index, np.uint8))


def make_zip(path, entries=None, **options) -> None:
    entries = entries or {name: picture(index) for name, (_, index) in FILES.items()}
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)


def tar_bytes(entries=None, members=(), kind=tarfile.PAX_FORMAT) -> bytes:
    entries = entries or {name: picture(index) for name, (_, index) in FILES.items()}
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=kind) as archive:
        for name, data in entries.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for info in members:
            archive.addfile(info)
    return file.getvalue()


def found(images) -> dict[str, tuple[str | None, int]]:
    return {image.name: (image.label, int(image.pixels[0, 0, 0])) for image in images}


def link(name: str, target: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info
