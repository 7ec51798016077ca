"""Data sets from digits, folders, archives and CIFAR-10."""

from __future__ import annotations

import os
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from ddsm_ext.data.config import DataConfig
from ddsm_ext.data.dataset import load_dataset, split_indices
from ddsm_ext.data.images import save_png

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "cifar10-jpeg.tar.xz"


def image_folder(root: Path, split_folders: bool = False) -> Path:
    """Two classes of six 4x4 images each; a pixel tells which."""
    for kind in ("cat", "dog"):
        for index in range(6):
            part = ("test" if index >= 4 else "train") if split_folders else ""
            value = (100 if kind == "dog" else 0) + index
            save_png(root / part / kind / f"{index}.png", np.full((4, 4, 3), value, np.uint8))
    return root


def values(dataset) -> list[int]:
    return dataset.images[:, 0, 0, 0].tolist()


def test_digits_are_the_originals_scaled():
    dataset = load_dataset(DataConfig())
    digits = load_digits()
    assert dataset.images.shape == (1797, 1, 8, 8)
    assert np.abs(dataset.images[:, 0] / 255 - digits.images / 16).max() <= 0.5 / 255
    assert dataset.labels.tolist() == digits.target.tolist()
    assert (dataset.name, dataset.flips, dataset.shape) == ("digits", False, (1, 8, 8))
    assert dataset[3].shape == (1, 8, 8)


def test_digits_resized_and_coloured():
    dataset = load_dataset(DataConfig(image_size=16, channels=3, limit=20))
    assert dataset.images.shape == (20, 3, 16, 16)
    assert (dataset.images[:, 0] == dataset.images[:, 2]).all()


def test_held_out_parts_are_disjoint_and_complete():
    parts = [load_dataset(DataConfig(held_out=0.2, split=split)) for split in ("train", "test")]
    assert [len(part) for part in parts] == [1438, 359]
    whole = load_dataset(DataConfig(held_out=0.2, split="all"))
    rows = {image.tobytes() for image in whole.images}
    train_rows, test_rows = ({image.tobytes() for image in part.images} for part in parts)
    assert train_rows | test_rows == rows
    assert len({part.digest for part in (*parts, whole)}) == 3
    assert [part.has_held_out for part in (*parts, whole)] == [True, False, False]
    assert not load_dataset(DataConfig()).has_held_out
    with pytest.raises(ValueError, match="digits: has no test part of its own"):
        load_dataset(DataConfig(split="test"))


def test_split_indices():
    kept, out = split_indices(10, 0.3, seed=1)
    assert sorted([*kept, *out]) == list(range(10))
    assert len(out) == 3
    assert not np.array_equal(out, split_indices(10, 0.3, seed=2)[1])
    for held_out, count in ((0.0, 10), (1.0, 10), (0.5, 1)):
        with pytest.raises(ValueError, match="split: held_out"):
            split_indices(count, held_out, 0)


def test_folder_zip_and_tars_are_the_same_data(tmp_path):
    folder = image_folder(tmp_path / "data")
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        for file in sorted(folder.rglob("*.png"), reverse=True):
            archive.write(file, file.relative_to(folder))
    for suffix in ("", ".gz", ".xz"):
        with tarfile.open(tmp_path / f"data.tar{suffix}", f"w:{suffix[1:]}") as archive:
            for file in sorted(folder.rglob("*.png"), reverse=True):
                archive.add(file, str(file.relative_to(folder)))
    sources = [folder, *tmp_path.glob("data.*")]
    datasets = [load_dataset(DataConfig(source=str(source))) for source in sources]
    assert len(sources) == 5
    for dataset in datasets:
        assert values(dataset) == [0, 1, 2, 3, 4, 5, 100, 101, 102, 103, 104, 105]
        assert dataset.labels.tolist() == [0] * 6 + [1] * 6
        assert dataset.class_names == ("cat", "dog")
        assert (dataset.name, dataset.flips) == ("data", True)
    assert len({dataset.digest for dataset in datasets}) == 1


def test_train_and_test_folders_are_the_split(tmp_path):
    source = str(image_folder(tmp_path, split_folders=True))
    assert values(load_dataset(DataConfig(source=source, held_out=0.5))) == [
        *range(4),
        *range(100, 104),
    ]
    test = load_dataset(DataConfig(source=source, split="test"))
    assert values(test) == [4, 5, 104, 105]
    assert test.labels.tolist() == [0, 0, 1, 1]
    assert load_dataset(DataConfig(source=source)).has_held_out
    assert len(load_dataset(DataConfig(source=source, split="all"))) == 12


def test_flat_folder_has_no_labels(tmp_path):
    save_png(tmp_path / "a.png", np.zeros((4, 4, 1), np.uint8))
    dataset = load_dataset(DataConfig(source=str(tmp_path)))
    assert dataset.labels is None
    assert dataset.class_names == ()


def test_crop_takes_the_centre_and_resize_keeps_flat_areas(tmp_path):
    pixels = np.zeros((8, 20, 3), np.uint8)
    pixels[:, 6:14] = 200
    save_png(tmp_path / "a.png", pixels)
    save_png(tmp_path / "b.png", pixels.transpose(1, 0, 2))
    for size in (4, 8, 16):
        dataset = load_dataset(DataConfig(source=str(tmp_path), image_size=size))
        assert dataset.images.shape == (2, 3, size, size)
        assert (dataset.images == 200).all()
    grey = load_dataset(DataConfig(source=str(tmp_path), image_size=4, channels=1))
    assert grey.images.shape == (2, 1, 4, 4)


def test_unequal_and_oblong_images_need_a_size(tmp_path):
    save_png(tmp_path / "a.png", np.zeros((4, 6, 3), np.uint8))
    with pytest.raises(ValueError, match="images are 4x6; need squares, or image_size set"):
        load_dataset(DataConfig(source=str(tmp_path)))
    save_png(tmp_path / "b.png", np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(ValueError, match=r"b\.png is \[3, 4, 4\], a\.png is \[3, 4, 6\]"):
        load_dataset(DataConfig(source=str(tmp_path)))


def test_bad_sources(tmp_path):
    with pytest.raises(FileNotFoundError, match="need 'digits', an image folder"):
        load_dataset(DataConfig(source=str(tmp_path / "none")))
    (tmp_path / "a.zip").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"a\.zip: .*need a whole ZIP"):
        load_dataset(DataConfig(source=str(tmp_path / "a.zip")))
    (tmp_path / "a.bin").write_bytes(os.urandom(5000))
    with pytest.raises(ValueError, match=r"a\.bin: .*need a whole tar"):
        load_dataset(DataConfig(source=str(tmp_path / "a.bin")))


def test_cifar_binary(tmp_path):
    rng = np.random.default_rng(0)
    planes = rng.integers(0, 256, (3, 3, 32, 32), dtype=np.uint8)
    for name in ("data_batch_1.bin", "test_batch.bin"):
        records = b"".join(bytes([i]) + planes[i].tobytes() for i in range(3))
        (tmp_path / name).write_bytes(records)
    dataset = load_dataset(DataConfig(source=str(tmp_path)))
    assert np.array_equal(dataset.images, planes)
    assert dataset.labels.tolist() == [0, 1, 2]


def test_cache_is_keyed_by_content_and_checked(tmp_path):
    folder, cache = image_folder(tmp_path / "data"), tmp_path / "cache"
    config = DataConfig(source=str(folder), cache=str(cache))
    first = load_dataset(config)
    (file,) = cache.iterdir()
    assert load_dataset(config).digest == first.digest
    assert load_dataset(config).labels.tolist() == first.labels.tolist()
    shutil.move(folder, tmp_path / "moved")
    assert load_dataset(DataConfig(source=str(tmp_path / "moved"), cache=str(cache))).digest == (
        first.digest
    )
    assert list(cache.iterdir()) == [file]
    data = bytearray(file.read_bytes())
    for damaged in (data[:-5], data[:-1] + bytes([data[-1] ^ 1]), b""):
        file.write_bytes(damaged)
        again = load_dataset(DataConfig(source=str(tmp_path / "moved"), cache=str(cache)))
        assert again.digest == first.digest
    save_png(tmp_path / "moved" / "cat" / "0.png", np.full((4, 4, 3), 9, np.uint8))
    changed = load_dataset(DataConfig(source=str(tmp_path / "moved"), cache=str(cache)))
    assert values(changed)[0] == 9
    assert len(list(cache.iterdir())) == 2


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.exists(), reason="needs shared/data/cifar10-jpeg.tar.xz")
def test_real_photographs():
    dataset = load_dataset(DataConfig(source=str(SHARED), split="test", limit=500))
    assert dataset.images.shape == (500, 3, 32, 32)
    assert dataset.name == "cifar10-jpeg"
    assert dataset.class_names[0] == "airplane"
    assert np.bincount(dataset.labels, minlength=10).min() > 20
    # Channel means of CIFAR-10's test set, published with many models: 0.494, 0.485, 0.450.
    means = dataset.images.mean(axis=(0, 2, 3)) / 255
    assert np.abs(means - [0.494, 0.485, 0.450]).max() < 0.03
