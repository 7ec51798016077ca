"""Names of the random streams of training: keys beside the seed, so that no two uses share one."""

from __future__ import annotations

from enum import IntEnum


class Stream(IntEnum):
    """First key after the seed in `diffusion.noise.generator(seed, stream, ...)`."""

    ORDER = 1  # (epoch): permutation of the images
    FLIP = 2  # (rank, step): mirrored images
    NOISE = 3  # (rank, step, draw): timesteps and noise
    WIDTH = 4  # (step): middle widths, the same on every rank
    MODULE = 5  # (rank, step): dropout and whatever else the network draws
