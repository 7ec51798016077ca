"""The images of a step: an endless shuffled stream, a pure function of (seed, step, rank)."""

from __future__ import annotations

import functools
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ddsm_ext.data.dataset import ImageDataset
from ddsm_ext.data.latent_dataset import LatentDataset
from ddsm_ext.diffusion.noise import generator
from ddsm_ext.settings import Refusal


class Stream(IntEnum):
    """First key after the seed in `diffusion.noise.generator`: no two uses share a stream."""

    ORDER = 1  # (epoch): permutation of the images
    FLIP = 2  # (rank, step): mirrored images
    NOISE = 3  # (rank, step, draw): timesteps and noise
    WIDTH = 4  # (step): middle widths, the same on every rank
    MODULE = 5  # (rank, step): dropout and whatever else the network draws
    ROUTE = 6  # (step): width of a step that a strategy decides, the same on every rank
    LABEL = 7  # (rank, step): which images the network sees without their class
    AUGMENT = 8  # (rank, step): how images are augmented
    LATENT = 9  # (rank, step): the noise by which the latents of a KL autoencoder are drawn


@functools.lru_cache(maxsize=4)
def _permutation(count: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(
        count, generator=generator(seed, Stream.ORDER, epoch), device="cpu"
    )  # [N]


def batch_indices(
    count: int, batch_size: int, seed: int, step: int, *, rank: int = 0, world_size: int = 1
) -> Tensor:
    """Images of one step and rank: a window of the stream of all epochs' permutations.

    Every image comes once an epoch; a batch may end one epoch and begin the next.

    Args:
        count: images in the data set.
        batch_size: images a step and rank.
        seed: the run's seed.
        step: 0-based step.
        rank: this process.
        world_size: processes in all.

    Returns:
        int64 [batch_size].
    """
    start = (step * world_size + rank) * batch_size
    pieces = []
    while batch_size > 0:
        epoch, offset = divmod(start, count)
        piece = _permutation(count, seed, epoch)[offset : offset + batch_size]
        pieces.append(piece)
        start += len(piece)
        batch_size -= len(piece)
    return torch.cat(pieces)


class Batch(NamedTuple):
    """Images of a step, and the class of each."""

    images: Tensor  # [B, C, H, W]: uint8 pixels, or float32 latents
    labels: Tensor | None = None  # int64 [B]; None: the network takes none


@dataclass(frozen=True)
class StepBatches(Dataset[Batch]):
    """Batch of a step by its number, so that any loader process makes the same one."""

    dataset: ImageDataset | LatentDataset
    batch_size: int  # images a step and rank
    seed: int
    rank: int = 0
    world_size: int = 1
    labelled: bool = False  # whether the network takes labels

    def __getitem__(self, step: int) -> Batch:
        """Images of `step`, mirrored at random where the data set allows, and their labels."""
        indices = batch_indices(
            len(self.dataset),
            self.batch_size,
            self.seed,
            step,
            rank=self.rank,
            world_size=self.world_size,
        )
        mirrored = None
        if self.dataset.flips:
            stream = generator(self.seed, Stream.FLIP, self.rank, step)
            draws = torch.rand(len(indices), generator=stream, dtype=torch.float32, device="cpu")
            mirrored = draws < 0.5  # [B]
        noise = generator(self.seed, Stream.LATENT, self.rank, step)
        images = self.dataset.batch(indices, mirrored, noise)
        known = self.dataset.labels if self.labelled else None
        return Batch(images, None if known is None else torch.from_numpy(known)[indices])


def _leave_signals_to_main(_worker: int) -> None:
    """Ctrl-C reaches the whole process group; only the main process may act on it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def step_loader(batches: StepBatches, first: int, last: int, workers: int) -> Iterator[Batch]:
    """Batches of the steps `first` to `last - 1`, made here or by loader processes.

    Args:
        workers: loader processes; 0 makes the batches in this one.
    """
    loader = DataLoader(
        batches,
        batch_size=None,
        sampler=range(first, last),
        num_workers=workers,
        worker_init_fn=_leave_signals_to_main,
        generator=torch.Generator(),  # else the loader draws from the global stream
    )
    return iter(loader)


def check_labels(
    dataset: ImageDataset | LatentDataset, label_count: int, what: str = "train"
) -> None:
    """Refuse a data set whose classes are not those of a network of `label_count` classes.

    Args:
        dataset: images whose labels the network is given.
        label_count: 0: the network takes no labels, and any data set serves.
        what: what errors begin with.

    Raises:
        ValueError: there are no classes, or another number of them; of classes without names, as
            of an archive of samples, there may be fewer.
    """
    if label_count == 0:
        return
    if dataset.labels is None:
        raise Refusal(
            f"{what}: {dataset.name} has no classes, the network takes labels of {label_count}; "
            "need images in a folder a class or a dataset.json, or a network without num_classes"
        )
    most = len(dataset.class_names)
    named = dataset.class_names != tuple(map(str, range(most)))
    if most > label_count or (named and most < label_count):
        raise Refusal(
            f"{what}: {dataset.name} has {most} classes, the network takes labels of "
            f"{label_count}; need num_classes {most}"
        )
