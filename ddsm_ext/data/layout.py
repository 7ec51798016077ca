"""Split and class of each image of a source, by the names of its folders and by dataset.json."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ddsm_ext.data.entries import plain_name
from ddsm_ext.settings import Refusal, is_int

TABLE = "dataset.json"  # labels as dataset_tool.py of StyleGAN and EDM writes them
# Words as in SPLIT_KEYWORDS of Hugging Face's datasets (data_files.py), and that of PASCAL VOC.
SPLITS = {
    **dict.fromkeys(("train", "training", "trainval"), "train"),
    **dict.fromkeys(("val", "valid", "validate", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "tests", "testing", "eval", "evaluation", "holdout"), "test"),
}
_SPLIT_ENDING = re.compile(r"(?<=.)(?:set|data|images)$")  # as of "trainset", "testdata"
_MOST_CLASSES = 100_000
# Folders of images by number are no classes: those of dataset_tool.py, of FFHQ, of img2dataset
# (the shard's number begins the name) and of Danbooru (the image's number modulo 1000).
_SHARD = re.compile(
    r"(?:.*/)?(?:\d{5}/img\d{8}|(\d\d)000/\1\d{3}|(\d{5})/\2\d{4}"
    r"|0(?=\d{3}/)(0*(\d+))/(?:[1-9]\d*\3|\4))\.\w+",
    re.DOTALL,
)
_WORD = re.compile(r"[^\W\d_]+")
_SAID = 5  # class names that a sentence lists

Label = str | int | None  # a folder, or what dataset.json says; None: no class
_Folders = tuple[str, ...]


@dataclass(frozen=True)
class Part:
    """Images of one split."""

    names: list[str]
    labels: dict[str, int] | None  # name -> class; None where there are no classes
    class_names: tuple[str, ...]


class Layout:
    """Splits and classes of the images of a source.

    The class is the folder at the top, below the split's where there are splits, as torchvision's
    ImageFolder has it; folders that wrap all images do not count. A dataset.json decides instead
    for the images below its folder.

    Args:
        source: what errors call it.
        names: paths of all its images, with `/` between folders.
        tables: folder inside the source -> value of the dataset.json in it.

    Raises:
        ValueError: a dataset.json of these images lacks one, or has a label that is none.
    """

    def __init__(self, source: str, names: Sequence[str], tables: Mapping[str, Any]) -> None:
        self.source, self.names = source, list(names)
        self.has_vectors = False  # labels that are no classes, such as camera positions
        self._passed_over: list[str] = []  # tables that decide nothing, and why
        folders = [tuple(name.split("/")[:-1]) for name in names]
        splits, above, below = _splits(folders)
        self.divided = len({*splits} - {None}) > 1
        self.splits = splits if self.divided else [None] * len(folders)
        labels = _top_folders(below if self.divided else folders)
        tops = {*_top_folders(above)}
        # cat/train, cat/test, dog/train
        self._above = self.divided and len(tops - {None}) > 1
        named = {label: _split_of(label) for label in {*labels} - {None} if label is not None}
        # a folder of one split alone
        is_split = None not in labels and all(part and not rest for part, rest in named.values())
        if is_split or all(map(_SHARD.fullmatch, names)):
            labels = [None] * len(labels)
        self._like_splits = [] if self.divided else sorted(k for k, v in named.items() if v[0])
        self.labels: list[Label] = [*labels]
        left = set(range(len(names)))
        for folder in sorted(tables, reverse=True):  # that in a folder before that above it
            left -= self._take_labels(folder, tables[folder], left)
        self._above = self._above and bool(left)
        self._ids = self._class_ids()
        self._label_of = dict(zip(self.names, self.labels, strict=True))

    def _take_labels(self, folder: str, table: Any, left: set[int]) -> set[int]:
        """Labels from one dataset.json; returns which images it decides for."""
        if not isinstance(table, dict) or "labels" not in table:
            return set()  # a file of the same name, of something else
        start = f"{folder}/" if folder else ""
        pairs = _pairs(table["labels"])
        if pairs is None:
            self._passed_over.append(f"{start}{TABLE} has no pairs of a name and a label")
            return set()
        below = {i: _table_name(name[len(start) :]) for i, name in enumerate(self.names)
                 if i in left and name.startswith(start)}  # fmt: skip
        labels: dict[str, Any] = {}
        for name, label in pairs:
            if labels.setdefault(_table_name(name), label) != label:
                raise Refusal(f"{self.source}: {start}{TABLE} has two labels of {name!r}; need one")
        labels = _of_other_suffix(labels, [*below.values()])
        if labels and not any(name in labels for name in below.values()):
            self._passed_over.append(f"{start}{TABLE} names none of the images")
            return set()
        for index, name in below.items():
            if labels and name not in labels:
                raise Refusal(f"{self.source}: {start}{TABLE} has no label of {name!r}; need all")
            self.labels[index] = self._label(labels.get(name), f"{start}{TABLE}: label of {name!r}")
        return {*below}

    def _label(self, value: Any, what: str) -> Label:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, list):
            self.has_vectors = True
            return None
        if value is None or isinstance(value, str) or (is_int(value, 0) and value < _MOST_CLASSES):
            return value
        raise Refusal(
            f"{self.source}: {what} is {value!r}; need 0 to {_MOST_CLASSES - 1}, a name or null"
        )

    def _class_ids(self) -> dict[Label, int]:
        """Classes of the training part, and of each part that shares one with it."""
        by_split: dict[str | None, set[Label]] = defaultdict(set)
        for split, label in zip(self.splits, self.labels, strict=True):
            by_split[split].add(label)
        known = by_split.get("train", set(self.labels))
        used = set().union(*(s for s in by_split.values() if None not in s and s & known))
        if None in known:
            return {}
        if all(isinstance(label, int) for label in used):
            return {label: label for label in used}  # type: ignore[misc]
        return {label: index for index, label in enumerate(sorted(used, key=str))}

    def label(self, name: str) -> str | None:
        """Class of one image, None where it has none."""
        label = self._label_of[name]
        return None if label is None else _text(label)

    def notes(self, split: str) -> Iterator[str]:
        """What to say of the images of a split."""
        outside = self.splits.count(None) if self.divided and split != "all" else 0
        if outside:
            yield f"{outside} images lie in no split's folder; only 'all' has them"
        for reason in self._passed_over:
            yield f"{reason}, and is passed over"
        unknown = [label for label in self._like_splits if label in self._ids]
        if unknown:
            said = ", ".join([*map(_text, unknown[:_SAID]), *["..."][: len(unknown) > _SAID]])
            yield (
                f"folders named like a split are classes here: {said}; need two such, as train and "
                "test, to divide the images"
            )
        others = sum(label not in self._ids for label in self.labels)
        if split == "all" and self.divided and self._ids and others:
            yield f"{others} images are of none of the classes, so 'all' has no classes"
            return
        for part in dict.fromkeys((split, "train")):
            labels = [label for _, label, known in self._chosen(part) if known or not self.divided]
            if (count := labels.count(None)) and count < len(labels) and not self.has_vectors:
                yield f"{count} images lie in no class folder, so there are no classes"
                break
        if self._above:
            yield "folders above those of the splits are no classes; need them below, as train/cat"
        if self.has_vectors:
            yield f"labels in {TABLE} are vectors, which are no classes"

    def _chosen(self, split: str) -> list[tuple[str, Label, str | None]]:
        """Name, label, and split by its folders, of each image of a split."""
        held_out = "test" if "test" in self.splits else "val"
        wanted = {"train": "train", "test": held_out}.get(split)
        return [
            (name, label, part)
            for name, label, part in zip(self.names, self.labels, self.splits, strict=True)
            if not self.divided or wanted in (None, part)
        ]

    def part(self, split: str) -> Part:
        """Images of one split: "train", "test" or "all".

        Where there are folders for validation and none for tests, they are "test".

        Raises:
            ValueError: there are folders of splits, but none of this one.
        """
        chosen = self._chosen(split)
        if self.names and not chosen:
            found = sorted({part for part in self.splits if part is not None})
            raise Refusal(
                f"{self.source}: has folders of {' and '.join(found)}, none of {split}; need one, "
                "or split 'all'"
            )
        names, ids = [name for name, *_ in chosen], self._ids
        if not ids or any(label not in ids for _, label, _ in chosen):
            return Part(names, None, ())
        class_names = [str(index) for index in range(max(ids.values()) + 1)]
        for label, index in ids.items():
            class_names[index] = _text(label)
        return Part(names, {name: ids[label] for name, label, _ in chosen}, tuple(class_names))


def _text(label: Label) -> str:
    """A class's name; of a folder's the bytes that are no UTF-8 become escapes."""
    return str(label).encode("utf-8", "backslashreplace").decode("utf-8")


def _shared(folders: list[_Folders]) -> _Folders:
    """Folders that wrap all of these."""
    if not folders:
        return ()
    pairs = zip(min(folders), max(folders), strict=False)  # all others sort between the two
    return tuple(a for a, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _split_of(name: str) -> tuple[str | None, tuple[str, ...]]:
    """Split that a folder's name says, None where none or several; and its other words.

    Words are letters between other characters, or before a capital: "val2017", "testA".
    """
    words = _WORD.findall(re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name))
    words = [word.lower() for word in words]
    words = [short if (short := _SPLIT_ENDING.sub("", word)) in SPLITS else word for word in words]
    said = {SPLITS[word] for word in words if word in SPLITS}
    rest = tuple(word for word in words if word not in SPLITS)
    if said == {"train", "val"}:
        said = {"train"}
    return (said.pop() if len(said) == 1 else None), rest


def _split_folders(names: Iterable[str]) -> dict[str, str]:
    """Those of the folders in one folder that are splits, and which.

    A name of one word of a split is. One with other words is where all folders here say splits, or
    where another split's has the same words: "bullet_train" beside "test_tube" are classes, as long
    as there are others.
    """
    words = {name: _split_of(name) for name in names}
    found: dict[tuple[str, ...], dict[str, str]] = defaultdict(dict)
    for name, (split, rest) in words.items():
        if split is not None:
            found[rest][name] = split
    plain = found.get((), {})
    if len({*plain.values()}) > 1:
        return plain
    every = {name: split for group in found.values() for name, split in group.items()}
    if len(every) == len(words) and len({*every.values()}) > 1:
        return every
    groups = [group for group in found.values() if len({*group.values()}) > 1]
    return {name: split for group in (plain, *groups) for name, split in group.items()}


def _splits(
    folders: list[_Folders],
) -> tuple[list[str | None], list[_Folders], list[_Folders]]:
    """Split of each folder, by the outermost that is a split's, the folders above that and below.

    Folders that all share say nothing.
    """
    shared = len(_shared(folders))
    different = {folder[shared:] for folder in folders}
    inside: dict[_Folders, set[str]] = defaultdict(set)
    for folder in different:
        for depth, name in enumerate(folder):
            inside[folder[:depth]].add(name)
    parts = {parent: _split_folders(names) for parent, names in inside.items()}
    found: dict[_Folders, tuple[str | None, _Folders, _Folders]] = {}
    for folder in different:
        for depth, name in enumerate(folder):
            if split := parts[folder[:depth]].get(name):
                here = folder[: depth + 1]
                divided = parts.get(here, {})
                if len({*divided.values()}) > 1 and len(divided) == len(inside[here]):
                    continue  # train/train, train/val: those below divide it
                below, again = folder[depth + 1 :], inside[folder[: depth + 1]]
                if len(again) == 1 and _split_of(*again)[0] == split:  # train/train/cat
                    below = below[1:]
                found[folder] = split, folder[:depth], below
                break
        else:
            found[folder] = None, (), folder
    each = [found[folder[shared:]] for folder in folders]
    return [e[0] for e in each], [e[1] for e in each], [e[2] for e in each]


def _pairs(labels: Any) -> list[tuple[str, Any]] | None:
    """Names and labels of a dataset.json: none for null; None where it holds something else."""
    pairs = [*labels.items()] if isinstance(labels, dict) else [] if labels is None else labels
    if not isinstance(pairs, list) or not all(
        isinstance(pair, list | tuple) and len(pair) == 2 and isinstance(pair[0], str)
        for pair in pairs
    ):
        return None
    return [(name, label) for name, label in pairs]


def _table_name(name: str) -> str:
    """A name in a table, or that of a file, which a Mac writes with its accents apart."""
    return unicodedata.normalize("NFC", plain_name(name))


def _of_other_suffix(labels: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Labels by the names of the images, where a table has them by another suffix."""
    if all(name in labels for name in names):
        return labels
    of_table = Counter(map(_stem, labels))
    of_images = Counter(map(_stem, names))
    by_stem = {_stem(name): label for name, label in labels.items()}
    others = {
        name: by_stem[stem]
        for name, stem in zip(names, map(_stem, names), strict=True)
        if of_images[stem] == of_table[stem] == 1
    }
    return others | labels


def _stem(name: str) -> str:
    return name.rpartition(".")[0]


def _top_folders(folders: list[_Folders]) -> list[str | None]:
    """The top folder of each, below those that wrap all; None for what lies beside such folders."""
    with_folders = [folder for folder in folders if folder]
    shared = _shared(with_folders)
    if all(folder == shared for folder in with_folders):  # it holds images alone, and wraps none
        shared = shared[:-1]
    depth = len(shared)
    return [folder[depth] if len(folder) > depth else None for folder in folders]
