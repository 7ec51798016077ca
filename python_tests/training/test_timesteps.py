"""Distributions of timesteps: what is drawn, and that the mean loss stays that of uniform ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ddsm_ext.diffusion.noise import generator
from ddsm_ext.training.timesteps import BINS, MEMORY, ErrorTable, Subset, Uniform, Weighted


def test_uniform_is_torchs_own() -> None:
    found = Uniform(50).draw(9, torch.Generator().manual_seed(3))
    assert torch.equal(found, torch.randint(50, (9,), generator=torch.Generator().manual_seed(3)))
    assert Uniform(50).factors(found) is None


def test_a_subset_gives_each_of_its_timesteps_equally_often() -> None:
    values = torch.tensor([2, 3, 11])
    found = Subset(values).draw(30_000, generator(1))
    seen, counts = found.unique(return_counts=True)
    assert torch.equal(seen, values)
    # five standard deviations of a binomial of 1/3
    assert (counts - 10_000).abs().max() < 5 * math.sqrt(30_000 * 2 / 9)
    assert Subset(values).factors(found) is None


def test_weighted_timesteps_follow_their_probabilities() -> None:
    p = torch.tensor([0.5, 0.125, 0.0625, 0.3125], dtype=torch.float64)
    counts = torch.bincount(Weighted(p).draw(100_000, generator(2)), minlength=4)
    deviations = (counts - 100_000 * p).abs() / (100_000 * p * (1 - p)).sqrt()
    assert deviations.max() < 5


def test_factors_keep_the_mean() -> None:
    """sum_t p(t) f(t) loss(t) = mean of loss(t), for any loss."""
    rng = np.random.default_rng(0)
    p = rng.random(40) + 0.01
    p /= p.sum()
    loss = rng.random(40)
    factors = Weighted(torch.from_numpy(p)).factors(torch.arange(40))
    assert float((p * factors.double().numpy() * loss).sum()) == pytest.approx(
        loss.mean(), rel=1e-6
    )


def test_probabilities_are_a_mixture_of_uniform_and_error() -> None:
    timesteps, share = 3 * BINS, 0.25
    table = ErrorTable((0.5, 0.25), timesteps)
    rng = np.random.default_rng(1)
    t, errors = np.arange(timesteps), rng.random(timesteps)
    seen = table.none_seen()
    table.see(seen, 0.25, torch.from_numpy(t), torch.from_numpy(errors))
    table.add(seen)
    by_bin = errors.reshape(BINS, 3).mean(1).repeat(3)
    wanted = (1 - share) / timesteps + share * by_bin / by_bin.sum()
    np.testing.assert_allclose(table.probabilities(0.25, share), wanted, rtol=1e-12)
    assert set(table.probabilities(0.5, share).tolist()) == {1 / timesteps}  # of which none is seen


def test_older_steps_count_less_and_other_widths_keep_theirs() -> None:
    table = ErrorTable((0.5, 0.25), BINS)
    t = torch.arange(BINS)
    for width, error in ((0.5, 7.0), (0.25, 1.0), (0.25, 3.0)):
        seen = table.none_seen()
        table.see(seen, width, t, torch.full((BINS,), error))
        table.add(seen)
    sums, counts = table.totals
    assert sums[1].tolist() == pytest.approx([MEMORY * 1.0 + 3.0] * BINS)
    assert counts[1].tolist() == pytest.approx([MEMORY + 1.0] * BINS)
    assert sums[0].tolist() == [7.0] * BINS


def test_uniform_until_every_range_is_seen() -> None:
    table = ErrorTable((0.5,), 1000)
    seen = table.none_seen()
    table.see(seen, 0.5, torch.arange(0, 900), torch.rand(900, generator=generator(3)))
    table.add(seen)
    assert set(table.probabilities(0.5, 0.9).tolist()) == {1e-3}


def test_few_timesteps_have_a_range_each() -> None:
    table = ErrorTable((0.5,), 5)
    assert table.totals.shape == (2, 1, 5)
