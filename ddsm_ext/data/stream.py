"""The images of a data set one after the other, for sets that no memory holds at once."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddsm_ext.data.cifar import is_cifar10
from ddsm_ext.data.config import DataConfig
from ddsm_ext.data.dataset import ImageDataset, load_dataset, set_name, source_path
from ddsm_ext.data.entries import ReadLimits
from ddsm_ext.data.fitting import Fitting
from ddsm_ext.data.layout import Layout
from ddsm_ext.data.sample_archive import is_sample_archive
from ddsm_ext.data.source import PassedOver, list_source, read_images, source_entries
from ddsm_ext.data.splits import chosen_indices

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ImageStream:
    """Those images that `load_dataset` would hold, in the order of the source.

    That is the order of sorted names, but of a tar its own.

    Args:
        config: of the images.
        name: of the set.
        labels: class of each [N]; None where the source has none.
        class_names: of the classes.
        has_held_out: as of `ImageDataset`.
        names: paths inside the source, of an image each; (): they are all in `held`.
        held: the images of a source that is read as a whole, such as CIFAR-10; None: of another.
    """

    config: DataConfig
    name: str
    labels: NDArray[np.int64] | None
    class_names: tuple[str, ...]
    has_held_out: bool
    names: tuple[str, ...] = ()
    held: ImageDataset | None = None

    @classmethod
    def open(cls, config: DataConfig, progress: Progress | None = None) -> ImageStream:
        """Return the stream of a source, after its names were read, and no more of its images.

        Args:
            config: as `load_dataset` takes it.
            progress: called with the images that are read, and all of them, where damaged ones are
                to be passed over: they are looked for first, as others then are held out.

        Raises:
            FileNotFoundError: no such file or folder.
            ValueError: a damaged or hostile file, or an empty split.
        """
        digits, path = config.source == "digits", Path(config.source)
        if digits or is_sample_archive(source_path(config.source)) or is_cifar10(path):
            held = load_dataset(config, progress)
            about = (held.labels, held.class_names, held.has_held_out)
            return cls(config, held.name, *about, held=held)
        limits = replace(ReadLimits(), max_pixels=config.max_pixels)
        listing = list_source(path, limits)
        layout = Layout(str(path), listing.images, listing.tables)
        part = layout.part(config.split)
        passed_over = PassedOver(config.skip_damaged)
        names = sorted(part.names)
        if config.skip_damaged:
            names = _undamaged(config, names, limits, passed_over, progress)
        for note in (*listing.notes(), *layout.notes(config.split), *passed_over.notes()):
            warnings.warn(f"{config.source}: {note}", stacklevel=2)
        kept = chosen_indices(config, len(names), layout.divided)
        chosen = {*names} if kept is None else {names[index] for index in kept}
        ordered = tuple(e.name for e in source_entries(path, limits) if e.name in chosen)
        ids = part.labels
        labels = None if ids is None else np.array([ids[n] for n in ordered], dtype=np.int64)
        divided = config.split == "train" and (layout.divided or config.held_out > 0)
        return cls(config, set_name(config.source), labels, part.class_names, divided, ordered)

    def __len__(self) -> int:
        return len(self.names) if self.held is None else len(self.held)

    def read(self, indices: set[int] | range) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Images by rising index.

        Args:
            indices: which ones; what is not asked for is not decoded.

        Yields:
            The index and uint8 pixels [C, H, W].

        Raises:
            ValueError: an image is damaged, or not like the first of these.
        """
        if self.held is not None:
            yield from ((index, self.held.images[index]) for index in sorted(indices))
            return
        config = self.config
        index_of = {self.names[index]: index for index in indices}
        fitting = Fitting(config.source, config)
        found = read_images(
            config.source,
            index_of,
            channels=config.channels,
            background=config.background,
            limits=replace(ReadLimits(), max_pixels=config.max_pixels),
        )
        for name, pixels in found:
            image = fitting(pixels, name)
            fitting.check()
            yield index_of[name], image

    def shape(self) -> tuple[int, int, int]:
        """Return (C, H, W) of the images, after reading the first."""
        _, first = next(self.read(range(1)))
        channels, height, width = first.shape
        return channels, height, width


def _undamaged(
    config: DataConfig,
    names: list[str],
    limits: ReadLimits,
    passed_over: PassedOver,
    progress: Progress | None,
) -> list[str]:
    """The names of images that can be decoded, sorted."""
    found = []
    images = read_images(
        config.source, frozenset(names), limits=limits, passed_over=passed_over,
        background=config.background,
    )  # fmt: skip
    for name, _ in images:
        found.append(name)
        if progress is not None:
            progress(len(found), len(names))
    return sorted(found)
