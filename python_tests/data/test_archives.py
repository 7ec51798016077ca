"""ZIP and tar archives: read in memory under caps; hostile ones are refused by name."""

from __future__ import annotations

import bz2
import errno
import gzip
import io
import lzma
import os
import pickle
import random
import struct
import tarfile
import zipfile
from collections import Counter

import numpy as np
import pytest
from data.made_archives import FILES, found, link, make_zip, picture, tar_bytes
from PIL import Image

from ddsm_ext.data.entries import DamagedImage, ReadLimits
from ddsm_ext.data.source import images_from_archive, list_source


@pytest.mark.parametrize(
    "method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
def test_zip(tmp_path, method):
    make_zip(tmp_path / "a.zip", compression=method)
    assert found(images_from_archive(tmp_path / "a.zip")) == FILES
    assert list_source(tmp_path / "a.zip").images == sorted(FILES)
    assert os.listdir(tmp_path) == ["a.zip"]


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_tar(tmp_path, pack, kind):
    (tmp_path / "a.tar").write_bytes(pack(tar_bytes(kind=kind)))
    assert found(images_from_archive(tmp_path / "a.tar")) == FILES
    assert list_source(tmp_path / "a.tar").images == sorted(FILES)
    assert os.listdir(tmp_path) == ["a.tar"]


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_tar_of_several_compressed_streams(tmp_path, pack):
    data = tar_bytes()
    (tmp_path / "a.tar").write_bytes(pack(data[:1000]) + pack(data[1000:]))
    assert found(images_from_archive(tmp_path / "a.tar")) == FILES


def test_same_name_twice_is_refused(tmp_path):
    first, second = tar_bytes({"a.png": picture(1)}), tar_bytes({"a.png": picture(2)})
    (tmp_path / "a.tar").write_bytes(first[:1024] + second)
    with pytest.raises(ValueError, match=r"'a\.png' occurs twice"):
        list_source(tmp_path / "a.tar")


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


@pytest.mark.parametrize("pack", [None, bytes, gzip.compress, bz2.compress, lzma.compress])
def test_other_files_are_neither_read_nor_judged(tmp_path, pack):
    entries = {"0.png": picture(0), "log.csv": b"0,0\n" * 2_000_000, "../readme": b"x"}
    entries |= {"/abs.txt": b"y", "1.png": picture(1), "movie.mp4": bytes(1000)}
    limits = ReadLimits(max_entry_bytes=5000)
    path = tmp_path / "a"
    if pack is None:
        make_zip(path, entries, compression=zipfile.ZIP_DEFLATED)
    else:
        links = [link("dog", "/etc", tarfile.SYMTYPE), link("null", "", tarfile.CHRTYPE)]
        path.write_bytes(pack(tar_bytes(entries, links)))
    assert list(found(images_from_archive(path, limits=limits)).values()) == [(None, 0), (None, 1)]
    others = list_source(path, limits).others
    assert others == Counter({".csv": 1, ".txt": 1, ".mp4": 1, "": 1 if pack is None else 3})


def test_an_encrypted_file_that_is_no_image_is_passed_over(tmp_path):
    make_zip(tmp_path / "a.zip", {"a.png": picture(1), "secret.txt": b"x"})
    data = bytearray((tmp_path / "a.zip").read_bytes())
    data[data.rfind(b"PK\1\2") + 8] |= 1
    (tmp_path / "a.zip").write_bytes(data)
    assert found(images_from_archive(tmp_path / "a.zip")) == {"a.png": (None, 1)}


def test_what_is_passed_over_opens_no_way_for_a_bomb(tmp_path):
    entries = {"log.csv": bytes(1 << 22), "a.png": bytes(1 << 26)}
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(tar_bytes(entries)))
    with pytest.raises(ValueError, match=r"a\.tar\.gz: .* times its size; need images"):
        list(images_from_archive(tmp_path / "a.tar.gz"))


@pytest.mark.parametrize("name", ["photos", "photos.cbz", "photos.zip", "photos.tar", "photos.png"])
def test_archives_are_known_by_content(tmp_path, name):
    path = tmp_path / name
    make_zip(path)
    assert found(images_from_archive(path)) == FILES
    path.write_bytes(b"#!/bin/sh\nunzip $0\n" + path.read_bytes())  # one that unpacks itself
    assert found(images_from_archive(path)) == FILES
    for pack in (bytes, gzip.compress, bz2.compress, lzma.compress):
        path.write_bytes(pack(tar_bytes()))
        assert found(images_from_archive(path)) == FILES
    old = bytearray(tar_bytes(kind=tarfile.USTAR_FORMAT, entries={"a/1.png": picture(1)}))
    old[257:265] = bytes(8)  # a tar of before POSIX has no magic, only its checksum
    old[148:156] = b"%06o\0 " % (256 + sum(old[:148]) + sum(old[156:512]))
    path.write_bytes(old)
    assert found(images_from_archive(path)) == {"a/1.png": ("a", 1)}


def saved_array() -> bytes:
    file = io.BytesIO()
    np.save(file, np.zeros(3))
    return file.getvalue()


def saved_arrays() -> bytes:
    file = io.BytesIO()
    np.savez(file, images=np.zeros(3))
    return file.getvalue()


@pytest.mark.parametrize("name", ["x", "x.zip", "x.tar"])
@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"7z\xbc\xaf\x27\x1c" + bytes(50), "is a 7z archive"),
        (b"Rar!\x1a\x07\1\0" + bytes(50), "is a RAR archive"),
        (b"\x28\xb5\x2f\xfd" + bytes(50), "is compressed by Zstandard"),
        (saved_array(), "is a NumPy array"),
        (saved_arrays(), r"holds no image \(1 \.npy\)"),
        (pickle.dumps({"a": 1}), "is a Python pickle, which is never read"),
        (picture(3), r"is one image \(PNG\)"),
        (b"\xff\xd8\xff\xe0" + bytes(50), r"is one image \(JPEG\)"),
        (gzip.compress(b"label,pixels\n", mtime=0), r"holds no tar \("),
        (bz2.compress(saved_array()), r"holds no tar \("),
    ],
)
def test_other_files_are_refused_by_what_they_are(tmp_path, name, content, what):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}: {what}.*; need") as error:
        list(images_from_archive(tmp_path / name))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("separator", ["/", "\\"])
@pytest.mark.parametrize("suffix", ["zip", "tar"])
def test_backslashes_separate_folders(tmp_path, suffix, separator):
    entries = {name.replace("/", separator): picture(i) for name, (_, i) in FILES.items()}
    path = tmp_path / f"a.{suffix}"
    if suffix == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in {f"cat{separator}": b"", **entries}.items():
                info = zipfile.ZipInfo("x")  # which would take backslashes for slashes elsewhere
                info.filename = name
                archive.writestr(info, data)
    else:
        path.write_bytes(tar_bytes(entries))
    assert found(images_from_archive(path)) == FILES
    assert not list_source(path).others


@pytest.mark.parametrize("name", ["..\\..\\e.png", "a\\..\\..\\e.png", "C:\\e.png", "\\e.png"])
@pytest.mark.parametrize("suffix", ["zip", "tar"])
def test_paths_of_windows_that_point_outside_are_refused(tmp_path, suffix, name):
    path = tmp_path / f"evil.{suffix}"
    if suffix == "zip":
        make_zip(path, {name: picture(1)})
    else:
        path.write_bytes(tar_bytes({name: picture(1)}))
    with pytest.raises(ValueError, match=rf"evil\.{suffix}: entry .* points outside the archive"):
        list(images_from_archive(path))


def test_one_name_by_two_separators_is_refused(tmp_path):
    make_zip(tmp_path / "a.zip", {"a/1.png": picture(1), "a\\1.png": picture(2)})
    with pytest.raises(ValueError, match=r"'a/1\.png' occurs twice"):
        list_source(tmp_path / "a.zip")


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES])
def test_an_archive_that_cannot_be_read_is_not_damaged(tmp_path, monkeypatch, code):
    make_zip(tmp_path / "a.zip")
    (tmp_path / "a.tar").write_bytes(tar_bytes())

    def fails(*_: object) -> bytes:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(zipfile.ZipExtFile, "read", fails)
    monkeypatch.setattr(tarfile._Stream, "read", fails)
    for name in ("a.zip", "a.tar"):
        with pytest.raises(OSError, match=rf"need a .* that can be read: .*a\.{name[2:]}") as error:
            list(images_from_archive(tmp_path / name))
        assert error.value.errno == code
    monkeypatch.setattr(zipfile, "_EndRecData", fails)  # with which zipfile begins
    with pytest.raises(OSError, match=r"need a ZIP archive that can be read: .*a\.zip") as error:
        list(images_from_archive(tmp_path / "a.zip"))
    assert error.value.errno == code


@pytest.mark.parametrize("method", [9, 93, 99])
def test_other_methods_of_zip_are_named(tmp_path, method):
    make_zip(tmp_path / "a.zip", {"a.png": picture(1)})
    data = bytearray((tmp_path / "a.zip").read_bytes())
    struct.pack_into("<H", data, data.find(b"PK\3\4") + 8, method)
    struct.pack_into("<H", data, data.find(b"PK\1\2") + 10, method)
    (tmp_path / "a.zip").write_bytes(data)
    kind = {9: "Deflate64", 93: "Zstandard", 99: "AES"}[method]
    with pytest.raises(ValueError, match=f"'a.png' is packed by {kind}.*; need") as error:
        list(images_from_archive(tmp_path / "a.zip"))
    assert not isinstance(error.value, DamagedImage)  # which skip_damaged would drop


@pytest.mark.parametrize("suffix", ["zip", "tar"])
def test_flat_images_without_compression_pack_by_any_ratio(tmp_path, suffix):
    file = io.BytesIO()
    Image.new("L", (2400, 2400), 7).save(file, "BMP")
    path = tmp_path / f"a.{suffix}"
    if suffix == "zip":
        make_zip(path, {"a.bmp": file.getvalue()}, compression=zipfile.ZIP_DEFLATED)
    else:
        path.write_bytes(lzma.compress(tar_bytes({"a.bmp": file.getvalue()})))
    assert len(file.getvalue()) > 200 * path.stat().st_size
    (image,) = images_from_archive(path)
    assert (image.pixels == 7).all()
    with pytest.raises(ValueError, match=r"times|need at most"):  # beyond 8 bytes a pixel
        list(images_from_archive(path, limits=ReadLimits(max_pixels=1000)))


def test_a_tar_is_whole_or_refused(tmp_path):
    """tarfile itself ends in silence at a damaged header, and at the end of a file that was cut."""
    whole, path = tar_bytes(kind=tarfile.USTAR_FORMAT), tmp_path / "a.tar"
    headers = [index * 1024 for index in range(len(FILES))]  # each before a block of pixels
    damaged = [bytearray(whole) for _ in headers]
    for data, start in zip(damaged, headers, strict=True):
        data[start + 148] ^= 1  # of the checksum
    cuts = [whole[:start] for start in headers[1:]] + [whole[: headers[-1] + 1024]]
    for data in (*damaged, *cuts, *(cut + bytes(100) for cut in cuts)):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"a\.tar: "):
            list_source(path)
    path.write_bytes(whole)
    assert len(list_source(path).images) == len(FILES)


def test_a_zip_has_the_entries_that_it_says(tmp_path):
    """A comment's length, changed, may cover the entry that follows."""
    make_zip(tmp_path / "a.zip", {f"{index}.png": picture(index) for index in range(4)})
    data = bytearray((tmp_path / "a.zip").read_bytes())
    second = data.index(b"PK\1\2", data.index(b"PK\1\2") + 1)
    struct.pack_into("<H", data, second + 32, 46 + len("2.png"))
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.zip: has 3 entries and says 4; need a whole ZIP"):
        list_source(tmp_path / "a.zip")
    for count in (1, 65535, 65536):  # the last two need the record of ZIP64
        make_zip(
            tmp_path / "b.zip", {f"{index}.txt": b"" for index in range(count)} | {"a.png": b""}
        )
        assert list_source(tmp_path / "b.zip").images == ["a.png"]


def test_names_of_a_zip_that_are_utf8_without_saying_so(tmp_path):
    make_zip(tmp_path / "a.zip", {"caf\u00e9/1.png": picture(1)})
    data = bytearray((tmp_path / "a.zip").read_bytes())
    for start, flags in ((data.index(b"PK\3\4"), 6), (data.index(b"PK\1\2"), 8)):
        struct.pack_into("<H", data, start + flags, 0)
    (tmp_path / "a.zip").write_bytes(data)
    assert found(images_from_archive(tmp_path / "a.zip")) == {"caf\u00e9/1.png": ("caf\u00e9", 1)}
