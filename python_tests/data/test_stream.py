"""Images one after the other are those that `load_dataset` holds."""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from data.made_latents import write_photos

from ddsm_ext.data import stream as stream_module
from ddsm_ext.data.config import DataConfig
from ddsm_ext.data.dataset import load_dataset
from ddsm_ext.data.stream import ImageStream
from ddsm_ext.settings import Refusal


def zipped(folder: Path) -> Path:
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*.png"), reverse=True):
            archive.write(file, file.relative_to(folder))
    return path


def tarred(folder: Path) -> Path:
    """In an order of its own."""
    path = folder.with_suffix(".tar")
    with tarfile.open(path, "w") as archive:
        for file in sorted(folder.rglob("*.png"), key=lambda p: hash(p.name) % 7):
            archive.add(file, file.relative_to(folder))
    return path


def same(config: DataConfig) -> None:
    """As sets, with their labels; a tar has an order of its own."""
    stream, whole = ImageStream.open(config), load_dataset(config)
    assert len(stream) == len(whole)
    found = list(stream.read(range(len(stream))))
    assert [index for index, _ in found] == list(range(len(whole)))
    labels = [None] * len(whole) if stream.labels is None else stream.labels.tolist()
    pairs = sorted((pixels.tobytes(), str(labels[index])) for index, pixels in found)
    known = [None] * len(whole) if whole.labels is None else whole.labels.tolist()
    assert pairs == sorted((i.tobytes(), str(k)) for i, k in zip(whole.images, known, strict=True))
    assert stream.shape() == whole.shape
    same_facts = ("name", "class_names", "has_held_out")
    assert [getattr(stream, n) for n in same_facts] == [getattr(whole, n) for n in same_facts]


@pytest.mark.parametrize("packed", [Path, zipped, tarred])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"held_out": 0.3},
        {"held_out": 0.3, "split": "test"},
        {"held_out": 0.3, "limit": 4, "split_seed": 2},
        {"limit": 5},
        {"image_size": 6, "channels": 3},
    ],
)
def test_the_same_images(
    packed: Callable[[Path], Path], settings: dict[str, object], tmp_path: Path
) -> None:
    source = packed(write_photos(tmp_path / "photos"))
    same(DataConfig(source=str(source), **settings))


@pytest.mark.parametrize("split", ["train", "test", "all"])
def test_the_same_images_of_divided_folders(split: str, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos" / "train", 6)
    write_photos(tmp_path / "photos" / "test", 4)
    same(DataConfig(source=str(tmp_path / "photos"), split=split))


def test_the_same_digits() -> None:
    same(DataConfig(limit=30))


def test_damaged_images_are_passed_over_before_others_are_held_out(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos")
    (photos / "class-0" / "4.png").write_bytes(b"no image")
    config = DataConfig(source=str(photos), held_out=0.3, skip_damaged=1)
    with pytest.warns(UserWarning, match="1 damaged images are passed over"):
        same(config)
    with pytest.raises(Refusal, match="unknown format; need a whole"):
        list(ImageStream.open(DataConfig(source=str(photos))).read(range(10)))


def test_no_image_is_decoded_that_is_not_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = write_photos(tmp_path / "photos")
    asked: list[set[str]] = []
    read = stream_module.read_images

    def noted(path, names, **more):
        asked.append({*names})
        return read(path, names, **more)

    monkeypatch.setattr(stream_module, "read_images", noted)
    found = ImageStream.open(DataConfig(source=str(photos)))
    assert asked == []
    indices = [index for index, _ in found.read({7, 2})]
    assert indices == [2, 7]
    assert [len(names) for names in asked] == [2]


def test_unequal_images_are_refused(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 4)
    write_photos(photos, 1, size=10)
    with pytest.raises(Refusal, match="need equal images, or image_size and channels set"):
        list(ImageStream.open(DataConfig(source=str(photos))).read(range(4)))


def test_a_test_part_that_is_missing_is_refused(tmp_path: Path) -> None:
    config = DataConfig(source=str(write_photos(tmp_path / "photos")), split="test")
    with pytest.raises(Refusal, match="has no test part of its own"):
        ImageStream.open(config)
    assert np.array_equal(
        load_dataset(DataConfig(limit=3)).pictures(np.array([1])).shape, (1, 1, 8, 8)
    )
