"""Splits and classes by the names of folders, and by dataset.json."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from ddsm_ext.data.layout import Layout


def files(*folders: str, count: int = 2) -> list[str]:
    return [f"{folder}/{i}.png".lstrip("/") for folder in folders for i in range(count)]


def classes(names: list[str], split: str = "train", tables: Any = None) -> tuple[str, ...]:
    return Layout("x", names, tables or {}).part(split).class_names


def image_folder_classes(root: Path) -> list[str]:
    """Classes as torchvision's ImageFolder finds them (datasets/folder.py, find_classes)."""
    return sorted(entry.name for entry in os.scandir(root) if entry.is_dir())


@pytest.mark.parametrize(
    ("root", "names"),
    [
        ("", files("cat", "dog")),
        ("", files("cat/2020", "cat/2021", "dog/2020")),
        ("train", files("train/n01/images", "train/n02/images", "val/images", "test/images")),
        ("train", files("train/cat", "train/dog", "test")),
        ("train", files("train/cat", "train/train", "test/cat", "test/train")),  # trains, CIFAR-100
        ("w/train", files("w/train/b", "w/train/a/deep", "w/val/a", "w/val/b")),
        ("", files("apple", "train")),
        ("", files("valid", "invalid")),
    ],
)
def test_classes_are_those_of_image_folder(tmp_path: Path, root: str, names: list[str]) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    expected = image_folder_classes(tmp_path / root)
    part = Layout("x", names, {}).part("train")
    assert list(part.class_names) == expected
    assert part.labels is not None
    below = len(root.split("/")) if root else 0
    for name in part.names:
        assert part.class_names[part.labels[name]] == name.split("/")[below]


@pytest.mark.parametrize(
    "names",
    [
        files(""),
        [*files("cat"), "top.png"],
        files("train", "test"),
        files("images/train", "images/val"),
        ["00000/img00000000.png", "00000/img00000999.png", "00001/img00001000.png"],
        ["images/00000/00042.png", "images/69000/69999.png"],  # FFHQ
    ],
)
def test_images_outside_class_folders_have_no_classes(names: list[str]) -> None:
    part = Layout("x", names, {}).part("train")
    assert (part.labels, part.class_names) == (None, ())


def test_a_wrapping_folder_is_no_class() -> None:
    assert classes(files("photos/cat", "photos/dog")) == ("cat", "dog")
    assert classes(files("data/photos")) == ("photos",)


@pytest.mark.parametrize("train", ["train", "Training", "TRAIN"])
@pytest.mark.parametrize("other", ["val", "Valid", "validation", "test", "Testing"])
@pytest.mark.parametrize("wrap", ["", "data/", "test/"])
def test_folders_of_splits(train: str, other: str, wrap: str) -> None:
    kept, out = files(f"{wrap}{train}/cat"), files(f"{wrap}{other}/cat")
    layout = Layout("x", [*kept, *out], {})
    assert layout.divided
    assert layout.part("train").names == kept
    assert layout.part("test").names == out
    assert layout.part("all").names == [*kept, *out]


def test_validation_is_the_test_only_where_there_is_none() -> None:
    names = files("train", "val", "test", "extra")
    layout = Layout("x", names, {})
    assert layout.part("train").names == files("train")
    assert layout.part("test").names == files("test")
    assert layout.part("all").names == names
    assert list(layout.notes("train")) == ["2 images lie in no split's folder; only 'all' has them"]
    assert not list(layout.notes("all"))


def test_one_folder_of_a_split_divides_nothing() -> None:
    for names in (files("train/cat", "train/dog"), files("test/cat", "test/dog")):
        layout = Layout("x", names, {})
        assert not layout.divided
        assert layout.part("train").names == names
        assert layout.part("train").class_names == ("cat", "dog")
    with pytest.raises(ValueError, match="x: has folders of test and val, none of train; need one"):
        Layout("x", files("val", "test"), {}).part("train")


def test_ids_are_the_same_in_each_split() -> None:
    layout = Layout("x", files("train/cat", "train/dog", "val/bird", "val/dog"), {})
    for split in ("train", "test", "all"):
        assert layout.part(split).class_names == ("bird", "cat", "dog")
    assert set((layout.part("test").labels or {}).values()) == {0, 2}
    unlabelled = Layout("x", files("train/cat", "train/dog", "test/images"), {})
    assert unlabelled.part("train").class_names == ("cat", "dog")
    assert unlabelled.part("test").labels is None


SHARDS = [f"{i // 4:05d}/img{i:08d}.png" for i in range(8)]


@pytest.mark.parametrize("as_dict", [False, True])
@pytest.mark.parametrize("wrap", ["", "edm/"])
@pytest.mark.parametrize("separator", ["/", "\\"])
def test_labels_of_dataset_tool(as_dict: bool, wrap: str, separator: str) -> None:
    """As EDM's `_load_raw_labels`: dict(labels)[name], of as many classes as the largest + 1."""
    names = [wrap + name for name in SHARDS]
    pairs = [[name.replace("/", separator), 2 * (i % 2)] for i, name in enumerate(SHARDS)]
    table = {"labels": dict(map(tuple, pairs)) if as_dict else pairs}
    part = Layout("x", names, {wrap.rstrip("/"): table}).part("train")
    assert part.labels == {name: 2 * (i % 2) for i, name in enumerate(names)}
    assert part.class_names == ("0", "1", "2")


@pytest.mark.parametrize("labels", [None, [], {}, [[name, [0.5, 1.0]] for name in SHARDS]])
def test_dataset_json_without_classes(labels: Any) -> None:
    layout = Layout("x", SHARDS, {"": {"labels": labels}})
    assert layout.part("train").labels is None
    assert len(list(layout.notes("train"))) == bool(labels)
    assert classes(files("cat", "dog"), tables={"": {"labels": None}}) == ()


@pytest.mark.parametrize(
    "table",
    [
        [1, 2],
        {},
        {"name": "x"},
        {"labels": "ab"},
        {"labels": ["cat", "dog"]},
        {"labels": {"0": {}}},
    ],
)
def test_a_dataset_json_of_something_else_decides_nothing(table: Any) -> None:
    assert classes(files("cat", "dog"), tables={"": table}) == ("cat", "dog")


def test_dataset_json_of_names_and_of_each_split() -> None:
    names = files("train/a", "test/a")
    named = [[name, kind] for name, kind in zip(files("a"), ("dog", "cat"), strict=True)]
    tables = {split: {"labels": named} for split in ("train", "test")}
    part = Layout("x", names, tables).part("test")
    assert part.class_names == ("cat", "dog")
    assert part.labels == {"test/a/0.png": 1, "test/a/1.png": 0}
    assert classes(names, "all", {"train": {"labels": named}}) == ()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([[SHARDS[0], 0]], f"x: dataset.json has no label of '{SHARDS[1]}'; need all"),
        ([[name, -1] for name in SHARDS], f"label of '{SHARDS[0]}' is -1; need 0 to 99999"),
        ([[name, 10**9] for name in SHARDS], "is 1000000000; need"),
        ([[name, True] for name in SHARDS], "is True; need"),
        ([[name, 0.5] for name in SHARDS], r"is 0\.5; need"),
    ],
)
def test_wrong_labels_are_refused(labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Layout("x", SHARDS, {"": {"labels": labels}})
