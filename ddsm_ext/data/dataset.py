"""Data sets held as uint8 arrays [N, C, H, W], known by the content of their pixels."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddsm_ext.data.config import DataConfig
from ddsm_ext.data.sources import RawImages, read_digits, read_path, source_digest
from ddsm_ext.settings import Refusal


@dataclass(frozen=True)
class ImageDataset:
    """Images of one split, all of one size."""

    images: NDArray[np.uint8]  # [N, C, H, W]
    labels: NDArray[np.int64] | None  # [N]; None when the source has no classes
    class_names: tuple[str, ...]
    name: str  # "digits", or the name of the source file
    digest: str  # SHA-256 of shape, pixels and labels: the identity of the set
    flips: bool = False  # whether training mirrors images at random

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        """One image, uint8 [C, H, W]."""
        return self.images[index]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        _, channels, height, width = self.images.shape
        return channels, height, width


def split_indices(
    count: int, held_out: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sorted indices of the (training, held-out) parts of `count` images.

    Args:
        count: images in all.
        held_out: fraction in the second part, 0 < held_out < 1.
        seed: which images are held out.

    Raises:
        ValueError: the fraction is out of range, or there are fewer than two images.
    """
    if not 0 < held_out < 1 or count < 2:
        raise Refusal(
            f"split: held_out is {held_out} of {count} images; need 0 < held_out < 1 and 2 images"
        )
    out_count = min(count - 1, max(1, round(held_out * count)))
    # Each image is ranked by a hash of (seed, index): no generator whose stream could change.
    ranks = [hashlib.sha256(f"{seed},{index}".encode()).digest() for index in range(count)]
    order = np.array(sorted(range(count), key=ranks.__getitem__), dtype=np.int64)  # [N]
    return np.sort(order[out_count:]), np.sort(order[:out_count])


def _digest(images: NDArray[np.uint8], labels: NDArray[np.int64] | None) -> str:
    shapes = f"uint8 {list(images.shape)} labels {labels is not None}\n"
    digest = hashlib.sha256(shapes.encode())
    digest.update(np.ascontiguousarray(images).data)
    if labels is not None:
        digest.update(np.ascontiguousarray(labels, dtype="<i8").data)
    return digest.hexdigest()


def load_dataset(config: DataConfig) -> ImageDataset:
    """Read the images that `config` names.

    Images of other sizes are cropped to their central square, then resized with Pillow: Lanczos
    when they shrink, bicubic when they grow. RGB becomes grey by ITU-R 601 luma; grey is repeated
    for RGB. The digits of scikit-learn (0..16) are scaled to 0..255. A limited set is a random
    sub-set drawn with `split_seed`, in the source's order.

    Args:
        config: source, size, channels, split and cache.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: a damaged or hostile file, images of unequal size, or an empty split.
    """
    raw, name = _read_or_cached(config)
    images, labels = raw.images, raw.labels
    if config.held_out and not raw.has_test_part and config.split != "all":
        kept, out = split_indices(len(images), config.held_out, config.split_seed)
        chosen = kept if config.split == "train" else out
        images, labels = images[chosen], None if labels is None else labels[chosen]
    elif config.split == "test" and not raw.has_test_part:
        raise Refusal(
            f"{config.source}: has no test part of its own; need held_out > 0 for split 'test'"
        )
    if config.limit is not None and config.limit < len(images):
        _, chosen = split_indices(len(images), config.limit / len(images), config.split_seed)
        images, labels = images[chosen], None if labels is None else labels[chosen]
    images = np.ascontiguousarray(images)
    digest = _digest(images, labels)
    return ImageDataset(images, labels, raw.class_names, name, digest, flips=config.flips)


def _read_or_cached(config: DataConfig) -> tuple[RawImages, str]:
    if config.source == "digits":
        return read_digits(config), "digits"
    path = Path(config.source)
    name = path.name.split(".tar")[0] if ".tar" in path.name else (path.stem or path.name)
    if config.cache is None:
        return read_path(config), name
    file = Path(config.cache) / f"{source_digest(config)}.safetensors"
    raw = RawImages.load(file)
    if raw is None:
        raw = read_path(config)
        raw.save(file)
    return raw, name
