"""The images that latents are of, read from their source where a score wants them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddsm_ext.data.config import DataConfig
from ddsm_ext.data.dataset import ImageDataset, load_dataset, source_digest
from ddsm_ext.data.latents import SourceImages
from ddsm_ext.data.stream import ImageStream


@dataclass(frozen=True)
class StreamedImages:
    """A set of images of which no more is held than is asked for.

    Args:
        about: what the archive says of them.
        source: where they lie now; None: where they lay then.
    """

    about: SourceImages
    source: str | None = None

    @property
    def config(self) -> DataConfig:
        """Settings of the images, where they lie now."""
        return replace(self.about.config, source=self.source or self.about.config.source)

    @property
    def name(self) -> str:
        """Of the set."""
        return self.about.name

    @property
    def digest(self) -> str:
        """SHA-256 of the source and of what decides pixels: the identity of the set."""
        return self.about.digest

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        config = self.about.config
        side = config.image_size or 0  # both are said: `SourceImages`
        return config.channels or 0, side, side

    @property
    def class_count(self) -> int:
        """How many classes there are images of; 0: they have none."""
        return self.about.class_count

    @property
    def has_held_out(self) -> bool:
        """As of `ImageDataset`."""
        return self.about.has_held_out

    def __len__(self) -> int:
        return self.about.count

    def pictures(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Some of the images, uint8 [n, C, H, W], in the order of the indices.

        Raises:
            FileNotFoundError: the source is gone.
            ValueError: it is damaged.
        """
        found = dict(self._stream.read({*indices.tolist()}))
        return np.stack([found[index] for index in indices.tolist()])

    def batches(self, size: int) -> Iterator[NDArray[np.uint8]]:
        """All images, uint8 [n, C, H, W], n up to `size`.

        Raises:
            FileNotFoundError: the source is gone.
            ValueError: it is damaged.
        """
        waiting = []
        for _, pixels in self._stream.read(range(len(self._stream))):
            waiting.append(pixels)
            if len(waiting) == size:
                yield np.stack(waiting)
                waiting = []
        if waiting:
            yield np.stack(waiting)

    def whole(self) -> ImageDataset:
        """The set with all its images in memory.

        Raises:
            FileNotFoundError: the source is gone.
            ValueError: it is damaged.
        """
        self._check()
        return load_dataset(self.config)

    @cached_property
    def _stream(self) -> ImageStream:
        self._check()
        return ImageStream.open(self.config)

    def _check(self) -> None:
        """Refuse a source that is gone, and say so where it is another than that of the latents."""
        config = self.config
        if config.source != "digits" and not Path(config.source).exists():
            raise FileNotFoundError(
                f"{config.source}: no such file or folder; need the images there that the latents "
                "are of, codec.images, where they lie now, or statistics of them (eval.reference)"
            )
        found = source_digest(config)
        if found != self.about.digest:
            warnings.warn(
                f"{config.source}: are not the images that the latents are of (SHA-256 "
                f"{found[:12]}, then {self.about.digest[:12]})",
                stacklevel=4,
            )
