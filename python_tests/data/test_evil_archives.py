"""Archives made to do harm are refused by name, and the limits of all archives."""

from __future__ import annotations

import gzip
import lzma
import os
import struct
import tarfile
import zipfile

import pytest
from data.made_archives import link, make_zip, picture, tar_bytes

from ddsm_ext.data.entries import ReadLimits
from ddsm_ext.data.source import images_from_archive


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
    elif name == "link":
        info = zipfile.ZipInfo("a.png")
        info.create_system, info.external_attr = 3, 0o120777 << 16
        make_zip(path, {info: b"/etc/passwd"})
    elif name == "no image":
        make_zip(path, {"notes.txt": b"hello"})
    else:
        path.write_bytes(b"#!/bin/sh\ntouch evil\n")


@pytest.mark.parametrize(
    "name",
    [
        *("climbs", "absolute", "backslash", "bomb", "many bombs", "lying size", "encrypted"),
        *("cut", "wrong checksum", "link", "no image", "text"),
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
