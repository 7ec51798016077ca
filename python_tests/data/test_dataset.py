"""Data sets from digits, folders, archives and CIFAR-10."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tarfile
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from ddsm_ext.data.config import DataConfig
from ddsm_ext.data.dataset import ImageDataset, load_dataset
from ddsm_ext.data.images import save_png
from ddsm_ext.data.splits import split_indices

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
    in_name = data.index(b"cat")  # the classes are in the digest as well
    renamed = data[:in_name] + b"bat" + data[in_name + 3 :]
    for damaged in (data[:-5], data[:-1] + bytes([data[-1] ^ 1]), b"", renamed):
        file.write_bytes(damaged)
        again = load_dataset(DataConfig(source=str(tmp_path / "moved"), cache=str(cache)))
        assert (again.digest, again.class_names) == (first.digest, ("cat", "dog"))
    save_png(tmp_path / "moved" / "cat" / "0.png", np.full((4, 4, 3), 9, np.uint8))
    changed = load_dataset(DataConfig(source=str(tmp_path / "moved"), cache=str(cache)))
    assert values(changed)[0] == 9
    assert len(list(cache.iterdir())) == 2


def quietly(**settings) -> ImageDataset:
    """Load a set of which nothing is left out."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return load_dataset(DataConfig(**settings))


def identity(pixels: np.ndarray, labels: list[int] | None) -> str:
    """What runs of every version keep of their images, so that they resume."""
    digest = hashlib.sha256(f"uint8 {list(pixels.shape)} labels {labels is not None}\n".encode())
    digest.update(pixels.tobytes())
    digest.update(b"" if labels is None else np.array(labels, "<i8").tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize(
    ("folders", "labels"),
    [
        ([""], None),
        (["cat", "dog"], [0, 0, 1, 1]),
        (["wrap/0", "wrap/1"], [0, 0, 1, 1]),
        (["cat"], [0, 0]),
        (["train/cat", "train/dog"], [0, 0, 1, 1]),
        (["train/cat", "train/dog", "test/bird", "test/cat"], [1, 1, 2, 2]),
        (["train", "test"], None),
        (["train/images", "test/images"], [0, 0]),
    ],
)
def test_identities_of_ordinary_sets_are_those_of_earlier_versions(tmp_path, folders, labels):
    pixels = []
    for folder in folders:
        for index in range(2):
            image = np.random.default_rng(len(pixels)).integers(0, 256, (4, 4, 3), dtype=np.uint8)
            save_png(tmp_path / folder / f"{index}.png", image)
            pixels.append(None if "test" in folder else image.transpose(2, 0, 1))
    dataset = quietly(source=str(tmp_path))
    expected = np.stack([image for image in pixels if image is not None])
    assert dataset.digest == identity(expected, labels)


def test_validation_images_are_not_trained_on(tmp_path):
    for part in ("train", "val", "other"):
        image_folder(tmp_path / part)
    with pytest.warns(UserWarning, match="12 images lie in no split's folder; only 'all' has them"):
        train = load_dataset(DataConfig(source=str(tmp_path), held_out=0.5))
    assert len(train) == 12
    assert train.class_names == ("cat", "dog")
    assert train.has_held_out
    assert len(load_dataset(DataConfig(source=str(tmp_path), split="test"))) == 12
    with pytest.warns(UserWarning, match="12 images are of none of the classes, so 'all' has no"):
        assert len(load_dataset(DataConfig(source=str(tmp_path), split="all"))) == 36


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_labels_of_dataset_tool(tmp_path, kind):
    labels = {f"00000/img{index:08d}.png": 2 - index % 3 for index in range(6)}
    for index, name in enumerate(labels):
        save_png(tmp_path / "edm" / name, np.full((4, 4, 3), index, np.uint8))
    table = {"labels": [list(pair) for pair in labels.items()]}
    (tmp_path / "edm" / "dataset.json").write_text(json.dumps(table))
    source = tmp_path / "edm"
    if kind != "folder":
        source = shutil.make_archive(str(tmp_path / "packed"), kind, source)
    dataset = quietly(source=str(source))
    assert dataset.labels.tolist() == [2, 1, 0, 2, 1, 0]
    assert dataset.class_names == ("0", "1", "2")
    (tmp_path / "edm" / "dataset.json").write_text('{"labels": null}')
    if kind == "folder":
        assert quietly(source=str(source)).labels is None
        (tmp_path / "edm" / "dataset.json").write_text('{"labels": [')
        with pytest.raises(
            ValueError, match=r"dataset\.json: is not JSON .*need a table of labels"
        ):
            load_dataset(DataConfig(source=str(source)))


def test_damaged_images_are_passed_over_and_the_same_ones_again(tmp_path):
    folder = image_folder(tmp_path / "data")
    whole = quietly(source=str(folder))
    damaged = folder / "cat" / "3.png"
    damaged.write_bytes(damaged.read_bytes()[:50])
    with pytest.raises(ValueError, match=r"3\.png: .*need .*, or data\.skip_damaged above 0"):
        load_dataset(DataConfig(source=str(folder)))
    settings = DataConfig(source=str(folder), skip_damaged=1, cache=str(tmp_path / "cache"))
    digests = set()
    for config in (settings, settings, replace(settings, cache=None)):  # the second is the cache's
        with pytest.warns(
            UserWarning, match=r"1 damaged images are passed over: .*3\.png: "
        ) as said:
            dataset = load_dataset(config)
        assert len(said) == 1
        assert values(dataset) == [0, 1, 2, 4, 5, *range(100, 106)]
        assert dataset.labels.tolist() == [0] * 5 + [1] * 6
        digests.add(dataset.digest)
    assert len(digests) == 1
    assert digests != {whole.digest}
    with pytest.raises(ValueError, match=r"3\.png"):
        load_dataset(replace(settings, skip_damaged=0))


def test_transparent_pixels_are_white_unless_said(tmp_path):
    image = np.dstack([np.full((4, 4, 3), 71, np.uint8), np.zeros((4, 4, 1), np.uint8)])
    (tmp_path / "data").mkdir()
    Image.fromarray(image).save(tmp_path / "data" / "a.png")
    where = {"source": str(tmp_path / "data"), "cache": str(tmp_path / "cache")}
    assert (quietly(**where).images == 255).all()
    for background in (0, 90):
        dataset = quietly(**where, background=background)
        assert (dataset.images == background).all()
    with pytest.raises(ValueError, match="background is 256; need"):
        DataConfig(background=256)


def test_the_largest_image_is_a_setting(tmp_path):
    save_png(tmp_path / "data" / "a.png", np.zeros((8, 8, 3), np.uint8))
    for cache in (None, str(tmp_path / "cache")):
        assert len(quietly(source=str(tmp_path / "data"), max_pixels=64, cache=cache)) == 1
        with pytest.raises(ValueError, match=r"a\.png: 8x8 pixels; need at most 63"):
            load_dataset(DataConfig(source=str(tmp_path / "data"), max_pixels=63, cache=cache))
    DataConfig(max_pixels=2 * Image.MAX_IMAGE_PIXELS)  # beyond, Pillow refuses
    with pytest.raises(ValueError, match="max_pixels is"):
        DataConfig(max_pixels=2 * Image.MAX_IMAGE_PIXELS + 1)


def test_what_is_left_out_is_said_once(tmp_path):
    image_folder(tmp_path)
    for name in ("a.avif", "cat/b.heic", "cat/c.HEIC"):
        (tmp_path / name).write_bytes(b"x")
    message = r"3 of 15 files are of other kinds and left out: 2 \.heic, 1 \.avif"
    with pytest.warns(UserWarning, match=message) as said:
        assert len(load_dataset(DataConfig(source=str(tmp_path)))) == 12
    assert len(said) == 1


def test_formats_are_read_together(tmp_path):
    kinds = {"a.png": "PNG", "b.bmp": "BMP", "c.tif": "TIFF", "d.gif": "GIF", "e.ppm": "PPM"}
    for level, (name, kind) in enumerate(kinds.items()):
        Image.fromarray(np.full((4, 4), level, np.uint8)).save(tmp_path / name, kind)
    assert values(quietly(source=str(tmp_path), channels=1)) == [0, 1, 2, 3, 4]


def test_names_that_are_no_utf8(tmp_path):
    folder, other = b"\xff\xe9", "cafe"
    for root in (os.fsencode(tmp_path / "data"), os.fsencode(tmp_path) + b"/\xe4"):
        for kind in (folder, os.fsencode(other)):
            path = Path(os.fsdecode(root + b"/" + kind + b"/\xfc.png"))
            save_png(path, np.full((4, 4, 3), len(kind), np.uint8))
        source = os.fsdecode(root)
        for _ in range(2):
            dataset = quietly(source=source, cache=str(tmp_path / "cache"))
            assert values(dataset) == [4, 2]
            assert dataset.class_names == ("cafe", "\\udcff\\udce9")
            "".join((*dataset.class_names, dataset.name)).encode()


def test_the_cache_sees_linked_folders_and_tables(tmp_path):
    image_folder(tmp_path / "else")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "else")
    settings = {"source": str(tmp_path / "data"), "cache": str(tmp_path / "cache")}
    assert values(quietly(**settings))[0] == 0
    save_png(tmp_path / "else" / "cat" / "0.png", np.full((4, 4, 3), 9, np.uint8))
    assert values(quietly(**settings))[0] == 9
    (tmp_path / "data" / "dataset.json").write_text('{"labels": null}')
    assert quietly(**settings).labels is None


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


def test_a_folder_named_digits_is_not_the_built_in_set(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(quietly(source="digits")) == 1797
    image_folder(tmp_path / "digits")
    assert len(quietly(source="./digits")) < 1797
    with pytest.warns(UserWarning, match=r"built-in digits; need \./digits"):
        assert len(load_dataset(DataConfig(source="digits"))) == 1797


def test_the_name_of_the_folder_one_is_in(tmp_path, monkeypatch):
    monkeypatch.chdir(image_folder(tmp_path / "pets"))
    assert quietly(source=".").name == "pets"
    config = DataConfig(source=Path("x") / "y")
    assert config.source == os.path.join("x", "y")
    assert json.loads(json.dumps(config.to_dict()))["source"] == config.source


def test_a_pipe_named_like_an_image_does_not_hang_the_cache(tmp_path):
    os.mkfifo(image_folder(tmp_path / "d") / "f.png")
    with pytest.raises(ValueError, match=r"f\.png: not a regular file; need"):
        load_dataset(DataConfig(source=str(tmp_path / "d"), cache=str(tmp_path / "c")))


def test_reading_tells_how_far_it_is(tmp_path):
    for number in range(3):
        save_png(tmp_path / f"{number}.png", np.zeros((4, 4, 1), np.uint8))
    told = []
    load_dataset(DataConfig(source=str(tmp_path)), lambda *count: told.append(count))
    assert told == [(1, 3), (2, 3), (3, 3)]
