"""Genomes are canonical, and mean the same as the strategies that they become."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from search.synthetic import COSTS, WIDTHS, genome_of, log_snrs

from ddsm_ext.search.cost import StepCost
from ddsm_ext.search.genome import Genome, StrategySpace


def vectors(space: StrategySpace):
    cuts = st.lists(st.floats(0, 1), min_size=space.n_cuts, max_size=space.n_cuts)
    index = st.integers(0, len(space.widths) - 1)
    widths = st.lists(index, min_size=space.segments, max_size=space.segments)
    return st.tuples(cuts, widths).map(lambda pair: [*pair[0], *pair[1]])


SPACE = StrategySpace(log_snrs(37), WIDTHS, 4)


@settings(deadline=None)
@given(vectors(SPACE))
def test_decoding_is_canonical(vector):
    genome = SPACE.decode(vector)
    assert all(0 < b < 37 for b in genome.boundaries)
    assert list(genome.boundaries) == sorted(set(genome.boundaries))
    assert all(a != b for a, b in zip(genome.widths, genome.widths[1:], strict=False))
    assert SPACE.decode(SPACE.encode(genome)) == genome
    assert SPACE.encode(genome).shape == (SPACE.n_genes,)
    assert SPACE.from_row(SPACE.to_row(genome)) == genome


@settings(deadline=None)
@given(vectors(SPACE), vectors(SPACE))
def test_equal_genomes_are_equal_strategies(a, b):
    strategies = [SPACE.strategy(SPACE.decode(v)).widths_for(log_snrs(37)) for v in (a, b)]
    assert (SPACE.decode(a) == SPACE.decode(b)) == (strategies[0] == strategies[1])


@settings(deadline=None)
@given(vectors(SPACE))
def test_a_strategy_gives_its_genome_back(vector):
    genome = SPACE.decode(vector)
    strategy = SPACE.strategy(genome)
    used = strategy.widths_for(log_snrs(37))
    by_level = [WIDTHS.index(w) for w in strategy.widths_for(SPACE.levels.tolist())]
    assert SPACE.from_levels(by_level) == genome
    assert SPACE.width_counts(genome).tolist() == [used.count(w) for w in WIDTHS]


def test_widths_run_from_noise_to_image():
    space = StrategySpace([4.0, 0.0, -4.0], WIDTHS, 3)
    strategy = space.strategy(genome_of(space, (2, 2), (1, 0)))
    assert strategy.widths_for([-4.0, 0.0, 4.0]) == [0.5, 0.5, 1.0]
    assert strategy.cuts == (2.0,)


def test_steps_that_share_a_level_count_each_time():
    space = StrategySpace([1.0, 1.0, 0.0, -1.0, -1.0], WIDTHS, 3)
    assert len(space.levels) == 3
    assert space.steps == 5
    assert space.width_counts(Genome((1,), (3, 0))).tolist() == [3, 0, 0, 2]


def test_more_segments_than_levels_are_cut_down():
    space = StrategySpace([0.0, 1.0], WIDTHS, 9)
    assert space.segments == 2
    assert space.n_genes == 3


def test_constants_are_the_widths():
    space = StrategySpace(log_snrs(9), WIDTHS, 3)
    assert [space.strategy(g).widths for g in space.constants()] == [(w,) for w in WIDTHS]


def test_errors_of_another_shape_are_refused():
    space = StrategySpace(log_snrs(20), WIDTHS, 3)
    with pytest.raises(ValueError, match=r"shape \[20, 3\]; need finite values, \[20, 4\]"):
        space.by_level(log_snrs(20), np.zeros((20, 3)))


def published_log_snrs() -> np.ndarray:
    """[1000] log-SNR of the linear schedule of DDPM (arXiv 2006.11239, section 4)."""
    alphas_bar = np.cumprod(1.0 - np.linspace(1e-4, 0.02, 1000))
    return np.log(alphas_bar / (1.0 - alphas_bar))


def test_published_cifar10_strategy():
    # shared/design/1-ddsm.md: t 0-265 width 1, 266-428 width .75, 429-469 a mixture (here the .75
    # that most of its steps have), 470-999 width .5; 51 % of the MMACs
    levels = published_log_snrs()
    widths = [1.0] * 266 + [0.75] * 204 + [0.5] * 530
    choice = [WIDTHS.index(w) for w in reversed(widths)]  # from noise to image
    for segments in (3, 4):
        space = StrategySpace(levels, WIDTHS, segments)
        genome = space.from_levels(choice)
        assert genome == genome_of(space, (530, 2), (204, 1), (266, 0))
        assert space.decode(space.encode(genome)) == genome
        assert space.strategy(genome).widths_for(levels) == widths
        assert StepCost(COSTS, space).relative(genome) == pytest.approx(0.51, abs=0.005)
    with pytest.raises(ValueError, match="has 3 segments; need at most 2"):
        StrategySpace(levels, WIDTHS, 2).from_levels(choice)


def test_published_width_counts_cost_51_percent():
    # counts 1.0:274, .75:181, .5:534, .25:11; 12.14 -> 6.20 GFLOPs is 51.07 %
    space = StrategySpace(published_log_snrs(), WIDTHS, 4)
    genome = genome_of(space, (11, 3), (534, 2), (181, 1), (274, 0))
    assert space.width_counts(genome).tolist() == [274, 181, 534, 11]
    assert StepCost(COSTS, space).relative(genome) == pytest.approx(6.20 / 12.14, abs=0.001)


def test_refusals():
    with pytest.raises(ValueError, match="log_snrs has 0 values"):
        StrategySpace([], WIDTHS, 3)
    with pytest.raises(ValueError, match="log_snrs has 2 values, 1 not finite"):
        StrategySpace([0.0, math.inf], WIDTHS, 3)
    with pytest.raises(ValueError, match="segments is 0"):
        StrategySpace([0.0], WIDTHS, 0)
