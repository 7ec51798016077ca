"""Frozen settings of the images; no torch, so that `--dry-run` is quick."""

from __future__ import annotations

import os
from dataclasses import dataclass

from ddsm_ext.settings import LARGEST_IMAGE, Settings, is_number

_MOST_PIXELS = 178_956_970  # Pillow decodes no larger image


@dataclass(frozen=True)
class DataConfig(Settings):
    """Which images, and how they become [C, image_size, image_size] uint8."""

    # "digits", or a path: folder, ZIP or tar of images, binary CIFAR-10, .npz of samples
    source: str = "digits"
    image_size: int | None = None  # pixels a side; None: as in the source (all must agree)
    channels: int | None = None  # 1 or 3; None: as in the source
    split: str = "train"  # "train", "test" or "all"
    held_out: float = 0.0  # fraction kept for "test" where the source has no test part of its own
    split_seed: int = 0  # which images are held out
    flip: bool | None = None  # random horizontal flips; None: all but digits
    limit: int | None = None  # random sub-set of so many, drawn by split_seed; None: all
    cache: str | None = None  # folder of decoded images, named by content; None: decode every time
    background: int = 255  # grey level that transparent pixels are laid on: 0 black, 255 white
    skip_damaged: int = 0  # damaged images that are passed over, each with a warning; more: refused
    max_pixels: int = 1 << 26  # width x height of an image in a file; a larger one is refused

    def __post_init__(self) -> None:
        for name in ("source", "cache"):  # a Path is kept as text, which JSON has
            if isinstance(value := getattr(self, name), os.PathLike):
                object.__setattr__(self, name, os.fspath(value))
        self._check("source", isinstance(self.source, str) and bool(self.source), "a name or path")
        self._check_int("image_size", 4, LARGEST_IMAGE, optional=True)
        self._check("channels", self.channels in (None, 1, 3), "None, 1 or 3")
        self._check_choice("split", ("train", "test", "all"))
        self._check("held_out", is_number(self.held_out, 0, 0.9), "a fraction from 0 to 0.9")
        self._check_int("split_seed", 0)
        self._check("flip", self.flip in (None, True, False), "None, True or False")
        self._check_int("limit", 1, optional=True)
        self._check("cache", self.cache is None or isinstance(self.cache, str), "None or a path")
        self._check_int("background", 0, 255)
        self._check_int("skip_damaged", 0)
        self._check_int("max_pixels", 1, _MOST_PIXELS)

    @property
    def flips(self) -> bool:
        """Whether training mirrors images: digits read differently in a mirror, photographs not."""
        return self.source != "digits" if self.flip is None else self.flip
