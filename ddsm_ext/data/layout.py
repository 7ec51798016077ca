"""Split and class of each image of a source, by the names of its folders and by dataset.json."""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ddsm_ext.settings import Refusal, is_int

TABLE = "dataset.json"  # labels as dataset_tool.py of StyleGAN and EDM writes them
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_MOST_CLASSES = 100_000
# Folders of so many images each, by number, are no classes: those of dataset_tool.py and of FFHQ.
_SHARD = re.compile(r"(?:.*/)?(?:\d{5}/img\d{8}|(\d\d)000/\1\d{3})\.\w+", re.DOTALL)

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
        ValueError: a dataset.json lacks an image, or has a label that is none.
    """

    def __init__(self, source: str, names: Sequence[str], tables: Mapping[str, Any]) -> None:
        self.source, self.names = source, list(names)
        self.has_vectors = False  # labels that are no classes, such as camera positions
        folders = [tuple(name.split("/")[:-1]) for name in names]
        splits, below = _splits(folders)
        self.divided = len({*splits} - {None}) > 1
        self.splits = splits if self.divided else [None] * len(folders)
        labels = _top_folders(below if self.divided else folders)
        is_split = all(label is not None and label.lower() in SPLITS for label in labels)
        if is_split or all(map(_SHARD.fullmatch, names)):
            labels = [None] * len(labels)
        self.labels: list[Label] = [*labels]
        left = set(range(len(names)))
        for folder in sorted(tables, reverse=True):  # that in a folder before that above it
            left -= self._take_labels(folder, tables[folder], left)
        self._ids = self._class_ids()
        self._label_of = dict(zip(self.names, self.labels, strict=True))

    def _take_labels(self, folder: str, table: Any, left: set[int]) -> set[int]:
        """Labels from one dataset.json; returns which images it decides for."""
        given = table.get("labels", "") if isinstance(table, dict) else ""
        if isinstance(given, list) and all(isinstance(i, list) and len(i) == 2 for i in given):
            given = dict(map(tuple, given)) if all(isinstance(i[0], str) for i in given) else ""
        if given is not None and not isinstance(given, dict):
            return set()  # a file of the same name, of something else
        start = f"{folder}/" if folder else ""
        below = {i for i in left if self.names[i].startswith(start)}
        labels = {name.replace("\\", "/"): label for name, label in (given or {}).items()}
        if labels and not any(self.names[i][len(start) :] in labels for i in below):
            return set()
        for index in below:
            name = self.names[index][len(start) :]
            if labels and name not in labels:
                raise Refusal(f"{self.source}: {start}{TABLE} has no label of {name!r}; need all")
            self.labels[index] = self._label(labels.get(name), f"{start}{TABLE}: label of {name!r}")
        return below

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
        if self.has_vectors:
            yield f"labels in {TABLE} are vectors, which are no classes"

    def part(self, split: str) -> Part:
        """Images of one split: "train", "test" or "all".

        Where there are folders for validation and none for tests, they are "test".

        Raises:
            ValueError: there are folders of splits, but none of this one.
        """
        held_out = "test" if "test" in self.splits else "val"
        wanted = {"train": "train", "test": held_out}.get(split)
        chosen = [
            (name, label)
            for name, label, part in zip(self.names, self.labels, self.splits, strict=True)
            if not self.divided or wanted in (None, part)
        ]
        if self.names and not chosen:
            found = sorted({part for part in self.splits if part is not None})
            raise Refusal(
                f"{self.source}: has folders of {' and '.join(found)}, none of {split}; need one, "
                "or split 'all'"
            )
        names, ids = [name for name, _ in chosen], self._ids
        if not ids or any(label not in ids for _, label in chosen):
            return Part(names, None, ())
        class_names = [str(index) for index in range(max(ids.values()) + 1)]
        for label, index in ids.items():
            class_names[index] = _text(label)
        return Part(names, {name: ids[label] for name, label in chosen}, tuple(class_names))


def _text(label: Label) -> str:
    """A class's name; of a folder's the bytes that are no UTF-8 become escapes."""
    return str(label).encode("utf-8", "backslashreplace").decode("utf-8")


def _shared(folders: list[_Folders]) -> _Folders:
    """Folders that wrap all of these."""
    if not folders:
        return ()
    pairs = zip(min(folders), max(folders), strict=False)  # all others sort between the two
    return tuple(a for a, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _splits(folders: list[_Folders]) -> tuple[list[str | None], list[_Folders]]:
    """Split of each folder, by the outermost that has a split's name, and the folders below that.

    Folders that all share say nothing.
    """
    shared = len(_shared(folders))
    splits, below = [], []
    for folder in folders:
        parts = [SPLITS.get(name.lower()) for name in folder[shared:]]
        at = next((i for i, part in enumerate(parts) if part), None)
        splits.append(None if at is None else parts[at])
        below.append(folder[shared:] if at is None else folder[shared + at + 1 :])
    return splits, below


def _top_folders(folders: list[_Folders]) -> list[str | None]:
    """The top folder of each, below those that wrap all; None for what lies beside such folders."""
    shared = _shared(folders)
    if shared in folders:  # images lie in it: that one does not wrap
        shared = shared[:-1]
    depth = len(shared)
    return [folder[depth] if len(folder) > depth else None for folder in folders]
