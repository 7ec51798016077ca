"""Which images of a source a data set has: held-out parts and limits, drawn by seed."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from ddsm_ext.data.config import DataConfig
from ddsm_ext.settings import Refusal


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


def chosen_indices(
    config: DataConfig, count: int, has_test_part: bool
) -> NDArray[np.int64] | None:
    """Which images a set has of those that its source has for the split; None: all.

    Args:
        config: of the set.
        count: images that the source has for the split.
        has_test_part: whether the source itself is divided.

    Raises:
        ValueError: a test part is wanted, and there is none.
    """
    chosen = None
    if config.held_out and not has_test_part and config.split != "all":
        kept, out = split_indices(count, config.held_out, config.split_seed)
        chosen = kept if config.split == "train" else out
    elif config.split == "test" and not has_test_part:
        raise Refusal(
            f"{config.source}: has no test part of its own; need held_out > 0 for split 'test'"
        )
    left = count if chosen is None else len(chosen)
    if config.limit is not None and config.limit < left:
        _, kept = split_indices(left, config.limit / left, config.split_seed)
        chosen = kept if chosen is None else chosen[kept]
    return chosen
