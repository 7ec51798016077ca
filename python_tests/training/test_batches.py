"""Order of the images: a pure function of seed, step and rank."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from training.toy_net import toy_data

from ddsm_ext.training.batches import StepBatches, batch_indices, step_loader


@pytest.mark.parametrize(
    ("count", "batch", "world"), [(10, 3, 1), (7, 20, 1), (12, 4, 2), (5, 2, 3)]
)
def test_every_epoch_shows_every_image_once(count, batch, world):
    steps = 4 * count
    stream = torch.cat(
        [
            batch_indices(count, batch, 1, step, rank=rank, world_size=world)
            for step in range(steps)
            for rank in range(world)
        ]
    )
    epochs = stream[: len(stream) // count * count].view(-1, count)
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(count))
    assert not torch.equal(epochs[0], epochs[1])


def test_order_depends_on_the_seed_only():
    first = batch_indices(100, 10, 1, 7)
    assert torch.equal(first, batch_indices(100, 10, 1, 7))
    assert not torch.equal(first, batch_indices(100, 10, 2, 7))


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_starts_anywhere(workers):
    batches = StepBatches(toy_data(), 5, seed=4)
    whole = [batches[step] for step in range(12)]
    before = torch.random.get_rng_state()
    for step, batch in zip(range(6, 12), step_loader(batches, 6, 12, workers), strict=True):
        assert torch.equal(batch.images, whole[step].images)
        assert batch.labels is None
    assert torch.equal(torch.random.get_rng_state(), before)


def test_half_of_the_images_are_mirrored():
    data = toy_data(1)
    batches = StepBatches(data, 1000, seed=0)
    images, original = batches[0].images, torch.from_numpy(data.images[0])
    mirrored = sum(int(torch.equal(image, original.flip(2))) for image in images)
    plain = sum(int(torch.equal(image, original)) for image in images)
    assert mirrored + plain == 1000
    assert abs(mirrored - 500) < 80  # five standard deviations of a fair coin
    still = StepBatches(type(data)(**{**data.__dict__, "flips": False}), 10, seed=0)
    assert all(torch.equal(image, original) for image in still[0].images)


@pytest.mark.parametrize("workers", [0, 2])
def test_labels_stay_with_their_images(workers):
    data = toy_data(20)
    labels = np.arange(20) * 7 % 5
    data = dataclasses.replace(data, labels=labels, flips=False)
    by_image = {image.tobytes(): label for image, label in zip(data.images, labels, strict=True)}
    for batch in step_loader(StepBatches(data, 6, 1, labelled=True), 0, 5, workers):
        assert batch.labels.dtype == torch.int64
        found = [by_image[image.numpy().tobytes()] for image in batch.images]
        assert batch.labels.tolist() == found
    assert StepBatches(data, 6, 1)[0].labels is None


def test_ranks_see_different_images():
    parts = [StepBatches(toy_data(40), 10, 0, rank, 4) for rank in range(4)]
    seen = [image.numpy().tobytes() for part in parts for image in part[0].images]
    assert all(a != b for a, b in itertools.combinations(seen, 2))
