"""CIFAR-10 in both forms, from files written as its page describes them."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import tarfile

import numpy as np
import pytest

from ddsm_ext.data.cifar import cifar10_binary, cifar10_python, cifar_kind
from ddsm_ext.data.images import png_bytes

RNG = np.random.default_rng(0)
COUNT = 4
NAMES = "airplane automobile bird cat deer dog frog horse ship truck".split()  # noqa: SIM905
BATCHES = {
    name: (RNG.integers(0, 256, (COUNT, 3072), dtype=np.uint8), RNG.integers(0, 10, COUNT).tolist())
    for name in (*(f"data_batch_{n}" for n in range(1, 6)), "test_batch")
}


def python_2_batch(planes, labels) -> bytes:
    """As Python 2 wrote them: protocol 2, byte-string keys, the array's data a byte string."""
    data = planes.tobytes()
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nq\x03K\x00\x85U\x01b\x87R"
        b"(K\x01K" + bytes([len(planes)]) + b"M\x00\x0c\x86"
        b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89T" + len(data).to_bytes(4, "little") + data + b"tb"
    )
    numbers = b"](" + b"".join(b"K" + bytes([n]) for n in labels) + b"e"
    return b"\x80\x02}q\x01(U\x04data" + array + b"U\x06labels" + numbers + b"U\x01xU\x01yu."


def entries(form: str) -> dict[str, bytes]:
    if form == "binary":
        files = {
            f"cifar-10-batches-bin/{name}.bin": b"".join(
                bytes([label]) + plane.tobytes()
                for label, plane in zip(labels, planes, strict=True)
            )
            for name, (planes, labels) in BATCHES.items()
        }
        return {**files, "cifar-10-batches-bin/batches.meta.txt": "\n".join(NAMES).encode()}
    pack = python_2_batch if form == "python 2" else None
    files = {}
    for name, (planes, labels) in BATCHES.items():
        content = (
            pack(planes, labels) if pack else pickle.dumps({b"data": planes, b"labels": labels})
        )
        files[f"cifar-10-batches-py/{name}"] = content
    meta = pickle.dumps({"label_names": NAMES})
    return {**files, "cifar-10-batches-py/batches.meta": meta}


def write_tar(path, files: dict[str, bytes]):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, data in reversed(files.items()):  # any order
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    path.write_bytes(gzip.compress(file.getvalue()))
    return path


def expected(split: str):
    names = [name for name in sorted(BATCHES) if split == "all" or name.startswith(split)]
    planes = np.concatenate([BATCHES[name][0] for name in names])
    labels = [label for name in names for label in BATCHES[name][1]]
    pixels = np.stack([planes[:, :1024], planes[:, 1024:2048], planes[:, 2048:]], axis=2)
    return pixels.reshape(-1, 32, 32, 3), labels


@pytest.mark.parametrize("form", ["binary", "python", "python 2"])
@pytest.mark.parametrize("where", ["tar", "folder", "parent"])
def test_both_forms(tmp_path, form, where):
    files = entries(form)
    if where == "tar":
        path = write_tar(tmp_path / "cifar.tar.gz", files)
    else:
        for name, data in files.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(data)
        path = tmp_path if where == "parent" else (tmp_path / next(iter(files))).parent
    kind = form.split()[0]
    assert cifar_kind(path) == kind
    read = cifar10_binary if kind == "binary" else cifar10_python
    for split, start in (("train", "data"), ("test", "test"), ("all", "all")):
        found = read(path, split)
        pixels, labels = expected(start)
        assert np.array_equal(found.pixels, pixels)
        assert found.labels.tolist() == labels
        assert found.class_names == tuple(NAMES)


def test_one_file(tmp_path):
    path = tmp_path / "data_batch_1.bin"
    path.write_bytes(entries("binary")["cifar-10-batches-bin/data_batch_1.bin"])
    assert cifar_kind(path) == "binary"
    found = cifar10_binary(path)
    assert np.array_equal(found.pixels, expected("data_batch_1")[0])
    assert found.class_names == tuple("0123456789")


def test_others_are_no_cifar(tmp_path):
    (tmp_path / "a").mkdir()
    assert cifar_kind(tmp_path) is None
    image = png_bytes(np.zeros((2, 2, 3), np.uint8))
    assert cifar_kind(write_tar(tmp_path / "images.tar.gz", {"cat/1.png": image})) is None


class Evil:
    def __reduce__(self):
        return os.system, ("touch executed",)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data_batch_1", pickle.dumps({"data": Evil()}), "names .*posix.system"),
        ("data_batch_1", pickle.dumps([1]), "holds no uint8"),
        ("data_batch_1", pickle.dumps({"data": np.zeros((2, 3073), np.uint8)}), "holds no uint8"),
        ("data_batch_1", pickle.dumps({"data": np.zeros((2, 3072))}), "holds no uint8"),
        ("data_batch_1", pickle.dumps({"data": np.zeros((1, 3072), np.uint8)}), "labels are"),
        (
            "data_batch_1",
            pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": [10]}),
            "labels are malformed",
        ),
        ("data_batch_1", b"", "ends early|damaged"),
        ("data_batch_1.bin", b"", "0 bytes; need a multiple of 3073"),
        ("data_batch_1.bin", bytes(3072), "need a multiple of 3073"),
        ("data_batch_1.bin", b"\x0a" + bytes(3072), "labels are malformed"),
    ],
)
def test_evil_and_damaged_batches_are_refused_by_name(
    tmp_path, monkeypatch, name, content, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(content)
    read = cifar10_binary if name.endswith("bin") else cifar10_python
    for path in (tmp_path / name, tmp_path):
        with pytest.raises(ValueError, match=rf"{name}: .*({message})"):
            read(path)
    archive = write_tar(tmp_path / "x.tar.gz", {f"cifar/{name}": content})
    with pytest.raises(ValueError, match=message):
        read(archive)
    assert sorted(os.listdir(tmp_path)) == [name, "x.tar.gz"]


def test_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        cifar10_python(tmp_path / "none.tar.gz")
    with pytest.raises(ValueError, match="holds no CIFAR-10 data_batch_N"):
        cifar10_python(tmp_path)
    with pytest.raises(ValueError, match="split is 'val'"):
        cifar10_python(tmp_path, "val")
