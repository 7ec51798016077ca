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


@pytest.mark.parametrize(
    ("train", "held_out"),
    [
        ("train2017", "val2017"),  # COCO
        ("training_set", "test_set"),  # Kaggle
        ("train_images", "test_images"),
        ("train", "test1"),
        ("train", "dev"),
        ("train", "eval"),
        ("train", "evaluation"),
        ("seg_train", "seg_test"),
        ("DIV2K_train_HR", "DIV2K_valid_HR"),
        ("train-set", "val-set"),
        ("trainA", "testA"),  # CycleGAN
        ("asl_train", "asl_test"),
        ("train ", "test "),
        ("train_images", "test"),
        ("trainval", "test"),
    ],
)
@pytest.mark.parametrize("again", [False, True])  # as Kaggle packs
def test_splits_with_words_around_them(train: str, held_out: str, again: bool) -> None:
    """Words of SPLIT_KEYWORDS between what are no letters, as Hugging Face's datasets has them."""
    kept, out = (
        files(*(f"{name}/{name}/{kind}" if again else f"{name}/{kind}" for kind in ("cat", "dog")))
        for name in (train, held_out)
    )
    layout = Layout("x", [*kept, *out], {})
    assert layout.part("train").names == kept
    assert layout.part("test").names == out
    for split in ("train", "test"):
        assert layout.part(split).class_names == ("cat", "dog")
        assert not list(layout.notes(split))


def test_splits_of_several_folders() -> None:
    names = files("trainA", "trainB", "testA", "testB")
    assert Layout("x", names, {}).part("train").names == files("trainA", "trainB")
    layout = Layout("x", files("seg_train/sea", "seg_test/sea", "seg_pred"), {})
    assert layout.part("train").names == files("seg_train/sea")
    assert list(layout.notes("train")) == ["2 images lie in no split's folder; only 'all' has them"]
    layout = Layout("x", [*files("train/train/cat", "train/train/dog"), "test/x.png"], {})
    assert layout.part("train").class_names == ("cat", "dog")


@pytest.mark.parametrize(
    ("folders", "said"),
    [
        (("bus", "car", "train"), "train"),
        (("bullet_train", "cat", "test_tube"), "bullet_train, test_tube"),
        (("extra", "train"), "train"),
    ],
)
def test_classes_that_may_be_splits_are_said(folders: tuple[str, ...], said: str) -> None:
    layout = Layout("x", files(*folders), {})
    assert not layout.divided
    assert layout.part("train").class_names == folders
    (note,) = layout.notes("train")
    assert f"are classes here: {said};" in note


@pytest.mark.parametrize("classes_", [("constrain", "latest"), ("develop", "evaluated")])
def test_words_within_words_are_no_splits(classes_: tuple[str, ...]) -> None:
    layout = Layout("x", files(*classes_), {})
    assert layout.part("train").class_names == classes_
    assert not list(layout.notes("train"))


def test_lost_classes_are_said() -> None:
    names = [*files("cat", "dog"), "preview.png"]
    assert list(Layout("x", names, {}).notes("train")) == [
        "1 images lie in no class folder, so there are no classes"
    ]
    for above in (
        files("a/train", "a/test", "b/train", "b/test"),
        files("a/train", "a/test", "b/train"),
        files("a/train/c", "a/test/c", "b/train/c"),
    ):
        (note,) = Layout("x", above, {}).notes("train")
        assert note.startswith("folders above those of the splits are no classes")
    stray = Layout("x", files("train/cat", "train/dog", "test/cat", "unlabelled"), {})
    assert list(stray.notes("all")) == [
        "2 images are of none of the classes, so 'all' has no classes"
    ]
    assert stray.part("all").labels is None


@pytest.mark.parametrize(
    "names",
    [
        files("train/images/cat", "train/images/dog", "test/images"),  # GTSRB
        files("train/images/cat", "train/images/dog", "test"),
        files("w/images/cat", "w/images/dog"),
        files("trainset/cat", "trainset/dog", "testset/cat"),
        files("traindata/cat", "traindata/dog", "testdata"),
        files("train/cat", "train/dog", "holdout/cat"),
        files("train/train/cat", "train/train/dog", "train/val/cat", "test/cat"),
    ],
)
def test_wrappers_and_splits_of_public_sets(names: list[str]) -> None:
    layout = Layout("x", names, {})
    train = [name for name in names if not any(w in name for w in ("test", "hold", "val"))]
    assert layout.part("train").names == train
    assert layout.part("train").class_names == ("cat", "dog")


def test_an_image_beside_folders_of_classes_is_said() -> None:
    layout = Layout("x", [*files("images/cat", "images/dog"), "images/cover.png"], {})
    assert layout.part("train").labels is None
    (note,) = layout.notes("train")
    assert note == "1 images lie in no class folder, so there are no classes"


def test_numbered_shards_are_no_classes_and_numbered_classes_are() -> None:
    for names in (
        ["00000/000000012.jpg", "00001/000010000.jpg"],  # img2dataset
        ["0001/2001.jpg", "0001/3001.jpg", "0012/12.jpg"],  # Danbooru
    ):
        assert classes(names) == ()
    digits = [f"{digit}/{number}.png" for digit in range(10) for number in (0, 10, 21)]
    assert classes(digits) == tuple("0123456789")
    assert classes(["0001/1.jpg", "0001/2.jpg", "0002/1.jpg"]) == ("0001", "0002")


def test_a_table_of_another_form_is_said_and_one_with_two_labels_refused() -> None:
    names = files("cat", "dog")
    for odd in ([[name, 1, 2] for name in names], "ab", [{"name": name} for name in names]):
        layout = Layout("x", names, {"": {"labels": odd}})
        assert layout.part("train").class_names == ("cat", "dog")
        (note,) = layout.notes("train")
        assert note == "dataset.json has no pairs of a name and a label, and is passed over"
    twice = [*([name, 0] for name in names), [f"./{names[0]}", 1]]
    with pytest.raises(ValueError, match=r"two labels of '\./cat/0\.png'; need one"):
        Layout("x", names, {"": {"labels": twice}})


def test_accents_in_one_letter_or_two_are_the_same_name() -> None:
    composed, apart = "caf\u00e9/0.png", "cafe\u0301/0.png"
    for name, other in ((composed, apart), (apart, composed)):
        part = Layout("x", [name], {"": {"labels": {other: 3}}}).part("train")
        assert part.labels == {name: 3}


@pytest.mark.parametrize("form", ["./{}.png", "{}.jpg", ".\\{}.png"])
def test_names_of_a_table_in_other_forms(form: str) -> None:
    names = files("cat", "dog")
    labels = {form.format(name[:-4]): index for index, name in enumerate(names)}
    part = Layout("x", names, {"": {"labels": labels}}).part("train")
    assert part.labels == {name: index for index, name in enumerate(names)}


def test_a_table_of_other_images_is_said() -> None:
    layout = Layout("x", files("cat", "dog"), {"": {"labels": {"bird/7.png": 1}}})
    assert layout.part("train").class_names == ("cat", "dog")
    assert list(layout.notes("train")) == [
        "dataset.json names none of the images, and is passed over"
    ]
