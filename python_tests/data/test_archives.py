"""ZIP and tar archives: read in memory under caps; hostile ones are refused by name."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import random
import struct
import tarfile
import zipfile

import numpy as np
import pytest

from ddsm_ext.data.archives import archive_images, images_from_archive
from ddsm_ext.data.images import ReadLimits, png_bytes

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


@pytest.mark.parametrize(
    "method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
def test_zip(tmp_path, method):
    make_zip(tmp_path / "a.zip", compression=method)
    assert found(images_from_archive(tmp_path / "a.zip")) == FILES
    assert archive_images(tmp_path / "a.zip") == sorted(FILES)
    assert os.listdir(tmp_path) == ["a.zip"]


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_tar(tmp_path, pack, kind):
    (tmp_path / "a.tar").write_bytes(pack(tar_bytes(kind=kind)))
    assert found(images_from_archive(tmp_path / "a.tar")) == FILES
    assert archive_images(tmp_path / "a.tar") == sorted(FILES)
    assert os.listdir(tmp_path) == ["a.tar"]


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_tar_of_several_compressed_streams(tmp_path, pack):
    data = tar_bytes()
    (tmp_path / "a.tar").write_bytes(pack(data[:1000]) + pack(data[1000:]))
    assert found(images_from_archive(tmp_path / "a.tar")) == FILES


def link(name: str, target: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def huge_header(kind: bytes) -> bytes:
    """Header of a record that states 8 GiB, which tarfile would read into memory."""
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, 8**11 - 1
    return info.tobuf(tarfile.USTAR_FORMAT)


EVIL_TARS = {
    "climbs": tar_bytes({"../../evil.png": picture(1)}),
    "absolute": tar_bytes({"/tmp/evil.png": picture(1)}),
    "symlink": tar_bytes(members=[link("a.png", "/etc/passwd", tarfile.SYMTYPE)]),
    "hard link": tar_bytes(members=[link("a.png", "cat/0.png", tarfile.LNKTYPE)]),
    "device": tar_bytes(members=[link("a.png", "", tarfile.CHRTYPE)]),
    "pipe": tar_bytes(members=[link("a.png", "", tarfile.FIFOTYPE)]),
    "gzip bomb": gzip.compress(tar_bytes({"a.png": bytes(1 << 26)})),
    "xz bomb": lzma.compress(bytes(1 << 26)),
    "pax bomb": gzip.compress(huge_header(tarfile.XHDTYPE) + bytes(1 << 25)),
    "long name bomb": gzip.compress(huge_header(tarfile.GNUTYPE_LONGNAME) + bytes(1 << 25)),
    "cut": tar_bytes()[:2000],
    "cut gzip": gzip.compress(tar_bytes())[:-40],
    "cut xz": lzma.compress(tar_bytes())[:-40],
    "no image": tar_bytes({"notes.txt": b"hello"}),
    "broken image": tar_bytes({"a.png": b"not a png"}),
    "text": b"#!/bin/sh\ntouch evil\n" * 100,
    "empty": b"",
}


@pytest.mark.parametrize("name", EVIL_TARS)
def test_evil_tars_are_refused_by_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.tar").write_bytes(EVIL_TARS[name])
    with pytest.raises(ValueError, match=r"evil\.tar: .*need") as error:
        list(images_from_archive(tmp_path / "evil.tar"))
    assert "\n" not in str(error.value)
    assert os.listdir(tmp_path) == ["evil.tar"]
    assert not os.path.exists("/tmp/evil.png")


def evil_zip(path, name: str) -> None:
    """A ZIP of the kind that `name` says."""
    if name in ("climbs", "absolute", "backslash"):
        entry = {"climbs": "../../evil.png", "absolute": "/tmp/evil.png", "backslash": "..\\e.png"}
        make_zip(path, {entry[name]: picture(1)})
    elif name == "bomb":
        make_zip(path, {"a.png": bytes(1 << 26)}, compression=zipfile.ZIP_DEFLATED)
    elif name == "many bombs":
        entries = {f"{i}.png": bytes(1 << 21) for i in range(8)}
        make_zip(path, entries, compression=zipfile.ZIP_DEFLATED)
    elif name == "lying size":
        make_zip(path, {"a.png": picture(1) + bytes(5000)}, compression=zipfile.ZIP_DEFLATED)
        data = path.read_bytes().replace(struct.pack("<I", len(picture(1)) + 5000), b"\x10\0\0\0")
        path.write_bytes(data)
    elif name == "encrypted":
        make_zip(path)
        data = bytearray(path.read_bytes())
        for marker, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            at = data.find(marker)
            while at >= 0:
                data[at + offset] |= 1
                at = data.find(marker, at + 4)
        path.write_bytes(data)
    elif name == "cut":
        make_zip(path)
        path.write_bytes(path.read_bytes()[:-60])
    elif name == "wrong checksum":
        make_zip(path, compression=zipfile.ZIP_STORED)
        data = bytearray(path.read_bytes())
        data[data.find(b"IDAT") + 5] ^= 1
        path.write_bytes(data)
    elif name == "no image":
        make_zip(path, {"notes.txt": b"hello"})
    else:
        path.write_bytes(b"#!/bin/sh\ntouch evil\n")


@pytest.mark.parametrize(
    "name",
    [
        *("climbs", "absolute", "backslash", "bomb", "many bombs", "lying size", "encrypted"),
        *("cut", "wrong checksum", "no image", "text"),
    ],
)
def test_evil_zips_are_refused_by_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    evil_zip(tmp_path / "evil.zip", name)
    with pytest.raises(ValueError, match=r"evil\.zip: .*need") as error:
        list(images_from_archive(tmp_path / "evil.zip"))
    assert "\n" not in str(error.value)
    assert os.listdir(tmp_path) == ["evil.zip"]


def test_caps(tmp_path):
    make_zip(tmp_path / "a.zip")
    (tmp_path / "a.tar").write_bytes(tar_bytes())
    for name in ("a.zip", "a.tar"):
        for limits, message in (
            (ReadLimits(max_entries=5), "more than 5 entries"),
            (ReadLimits(max_entry_bytes=20), "need at most 20"),
            (ReadLimits(max_total_bytes=200), "more than 200 bytes"),
        ):
            with pytest.raises(ValueError, match=message):
                list(images_from_archive(tmp_path / name, limits=limits))


def test_same_name_twice_is_refused(tmp_path):
    first, second = tar_bytes({"a.png": picture(1)}), tar_bytes({"a.png": picture(2)})
    (tmp_path / "a.tar").write_bytes(first[:1024] + second)
    with pytest.raises(ValueError, match=r"'a\.png' occurs twice"):
        archive_images(tmp_path / "a.tar")


@pytest.mark.parametrize("suffix", ["zip", "tar"])
def test_missing_and_irregular_files(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    with pytest.raises(FileNotFoundError, match="no such file"):
        list(images_from_archive(path))
    path.symlink_to("/dev/zero")
    with pytest.raises(ValueError, match="not a regular file"):
        list(images_from_archive(path))
    path.unlink()
    path.mkdir()
    with pytest.raises(ValueError, match="not a regular file"):
        list(images_from_archive(path))


def test_random_damage_gives_images_or_one_sentence(tmp_path):
    draw = random.Random(0)
    make_zip(tmp_path / "a.zip", compression=zipfile.ZIP_DEFLATED)
    contents = [("zip", (tmp_path / "a.zip").read_bytes())]
    contents += [("tar", pack(tar_bytes())) for pack in (bytes, gzip.compress)]
    refusals = []
    for suffix, content in contents:
        for _ in range(150):
            data = bytearray(content)
            for _ in range(draw.randint(1, 4)):
                data[draw.randrange(len(data))] = draw.randrange(256)
            path = tmp_path / f"damaged.{suffix}"
            path.write_bytes(data[: draw.randint(1, len(data))] if draw.random() < 0.3 else data)
            try:
                list(images_from_archive(path))
            except ValueError as error:
                refusals.append(str(error))
    assert len(refusals) > 100
    assert all(text.startswith(f"{tmp_path}/damaged.") and "\n" not in text for text in refusals)
