"""Classes of a run whose network takes labels: their names, and which one a seed is an image of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ddsm_ext.io.document import Document
from ddsm_ext.settings import Refusal, TypeRefusal, did_you_mean, shown

CLASSES_FILE = "classes.json"


@dataclass(frozen=True)
class Classes(Document):
    """classes.json: the names of a run's classes, in the order of their labels."""

    what: ClassVar[str] = "list of classes"

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        listed = isinstance(self.names, tuple) and all(isinstance(n, str) for n in self.names)
        if not listed:
            raise TypeRefusal(f"Classes: names is {shown(self.names)}; need a list of texts")


def save_classes(dataset: Any, folder: Path) -> None:
    """Write the names of a data set's classes into a run folder, if it has any."""
    if dataset.labels is not None:
        Classes(tuple(dataset.class_names)).save(folder / CLASSES_FILE)


def class_names(folder: Path, count: int) -> tuple[str, ...]:
    """Return the names of a run's classes; the labels themselves where no file names them.

    Args:
        folder: the run folder.
        count: classes of its network.

    Raises:
        ValueError: the file is damaged, or names another number of classes.
    """
    file = folder / CLASSES_FILE
    if not file.exists():
        return tuple(map(str, range(count)))
    names = Classes.load(file).names
    if len(names) != count:
        raise Refusal(f"{file}: names {len(names)} classes; need {count}, those of the network")
    return names


def labels_named(text: str, names: Sequence[str], what: str) -> tuple[int, ...]:
    """Return the labels of classes that a user names, e.g. "cat,dog" or "3,5".

    Args:
        text: names or labels, separated by commas; a name wins over a label.
        names: of all classes.
        what: what errors call the option.

    Raises:
        ValueError: there is no such class.
    """
    labels = []
    for part in map(str.strip, text.split(",")):
        if part in names:
            labels.append(list(names).index(part))
        elif part.isdecimal() and int(part) < len(names):
            labels.append(int(part))
        else:
            known = did_you_mean(part, names) if len(names) <= 20 or not part.isdecimal() else ""
            raise Refusal(
                f"{what}: there is no class {part!r}; need a name, or a label of 0 ... "
                f"{len(names) - 1}{known}"
            )
    return tuple(labels)


def labels_of(seeds: Sequence[int], classes: Sequence[int], count: int) -> list[int]:
    """Return the label of each seed's image: the classes in turn, so that seeds 0 ... have all.

    Args:
        seeds: of the images.
        classes: which ones; none: all.
        count: classes of the network.
    """
    chosen = classes or range(count)
    return [chosen[seed % len(chosen)] for seed in seeds]
