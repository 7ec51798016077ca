"""CIFAR-10 in binary records, from files written as its page describes them."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from ddsm_ext.data.cifar import is_cifar10, read_cifar10
from ddsm_ext.data.config import DataConfig
from ddsm_ext.data.dataset import load_dataset
from ddsm_ext.data.images import png_bytes

RNG = np.random.default_rng(0)
COUNT = 4
NAMES = "airplane automobile bird cat deer dog frog horse ship truck".split()  # noqa: SIM905
BATCHES = {
    name: (RNG.integers(0, 256, (COUNT, 3072), dtype=np.uint8), RNG.integers(0, 10, COUNT).tolist())
    for name in (*(f"data_batch_{n}" for n in range(1, 6)), "test_batch")
}


def binary_files() -> dict[str, bytes]:
    files = {
        f"cifar-10-batches-bin/{name}.bin": b"".join(
            bytes([label]) + plane.tobytes() for label, plane in zip(labels, planes, strict=True)
        )
        for name, (planes, labels) in BATCHES.items()
    }
    return {**files, "cifar-10-batches-bin/batches.meta.txt": "\n".join(NAMES).encode()}


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, data in reversed(files.items()):  # any order
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    path.write_bytes(gzip.compress(file.getvalue()))
    return path


def write_folder(path: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_bytes(data)


def expected(start: str) -> tuple[np.ndarray, list[int]]:
    names = [name for name in sorted(BATCHES) if start == "all" or name.startswith(start)]
    planes = np.concatenate([BATCHES[name][0] for name in names])
    labels = [label for name in names for label in BATCHES[name][1]]
    pixels = np.stack([planes[:, :1024], planes[:, 1024:2048], planes[:, 2048:]], axis=2)
    return pixels.reshape(-1, 32, 32, 3), labels


@pytest.mark.parametrize("where", ["tar", "zip", "folder", "parent"])
def test_archive_and_folders(tmp_path: Path, where: str) -> None:
    files = binary_files()
    if where == "tar":
        path = write_tar(tmp_path / "cifar.tar.gz", files)
    elif where == "zip":
        path = tmp_path / "cifar"
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    else:
        write_folder(tmp_path, files)
        path = tmp_path if where == "parent" else tmp_path / "cifar-10-batches-bin"
    assert is_cifar10(path)
    for split, start in (("train", "data"), ("test", "test"), ("all", "all")):
        found = read_cifar10(path, split)
        pixels, labels = expected(start)
        assert np.array_equal(found.pixels, pixels)
        assert found.labels.tolist() == labels
        assert found.labels.dtype == np.int64
        assert found.class_names == tuple(NAMES)


def test_one_file(tmp_path: Path) -> None:
    path = tmp_path / "data_batch_1.bin"
    path.write_bytes(binary_files()["cifar-10-batches-bin/data_batch_1.bin"])
    assert is_cifar10(path)
    found = read_cifar10(path)
    assert np.array_equal(found.pixels, expected("data_batch_1")[0])
    assert found.class_names == tuple("0123456789")


def test_others_are_no_cifar(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    assert not is_cifar10(tmp_path)
    image = png_bytes(np.zeros((2, 2, 3), np.uint8))
    assert not is_cifar10(write_tar(tmp_path / "images.tar.gz", {"cat/1.png": image}))
    write_folder(tmp_path, {"data_batch_1/1.png": image})
    (tmp_path / "cifar-10-batches-of-mine.png").write_bytes(image)
    assert not is_cifar10(tmp_path)


class Evil:
    def __reduce__(self):
        return os.system, ("touch executed",)


@pytest.mark.parametrize("content", [pickle.dumps({"data": Evil()}), b""])
@pytest.mark.parametrize("where", ["tar", "folder", "file"])
def test_the_python_version_is_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, content: bytes
) -> None:
    monkeypatch.chdir(tmp_path)
    files = {
        "cifar-10-batches-py/batches.meta": content,
        "cifar-10-batches-py/data_batch_1": content,
    }
    path = tmp_path / "cifar-10-python.tar.gz"
    write_tar(path, files)
    if where != "tar":
        write_folder(tmp_path, files)
        path = tmp_path / "cifar-10-batches-py" / ("data_batch_1" if where == "file" else "")
    with pytest.raises(
        ValueError, match="is the Python version of CIFAR-10, which is pickled;"
    ) as e:
        load_dataset(DataConfig(source=str(path)))
    assert str(e.value).startswith(f"{path}: ")
    assert str(e.value).endswith(
        "need the binary version (cifar-10-binary.tar.gz) or a folder of images"
    )
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0 bytes; need a multiple of 3073"),
        (bytes(3072), "3072 bytes; need a multiple of 3073"),
        (bytes(3073) + b"\x0a" + bytes(3072), "a label is 10; need 0 to 9"),
    ],
)
def test_damaged_batches_are_refused_by_name(tmp_path: Path, content: bytes, message: str) -> None:
    name = "data_batch_1.bin"
    (tmp_path / name).write_bytes(content)
    for path in (tmp_path / name, tmp_path):
        with pytest.raises(ValueError, match=rf"{name}: .*({message})"):
            read_cifar10(path)
    archive = write_tar(tmp_path / "x.tar.gz", {f"cifar/{name}": content})
    with pytest.raises(ValueError, match=rf"x\.tar\.gz: cifar/{name}: .*{message}"):
        read_cifar10(archive)


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_cifar10(tmp_path / "none.tar.gz")
    with pytest.raises(ValueError, match=r"holds no CIFAR-10 data_batch_N\.bin"):
        read_cifar10(tmp_path)
    with pytest.raises(ValueError, match="split is 'val'"):
        read_cifar10(tmp_path, "val")
