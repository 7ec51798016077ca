"""Costs by arithmetic, qualities by their formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
from search.synthetic import COSTS, WIDTHS, genome_of, log_snrs

from ddsm_ext.sampling.strategy import Strategy
from ddsm_ext.search.config import SearchConfig
from ddsm_ext.search.genome import StrategySpace
from ddsm_ext.search.objective import (
    StepCost,
    additive_quality,
    budget_cost,
    check_budget,
)

SPACE = StrategySpace(log_snrs(10), WIDTHS, 4)


def test_cost_is_the_sum_over_steps():
    cost = StepCost(COSTS, SPACE)
    genome = genome_of(SPACE, (4, 2), (3, 1), (3, 0))
    assert cost(genome) == 4 * 1520.0 + 3 * 3420.0 + 3 * 6070.0
    assert cost.full == 60700.0
    assert cost.relative(SPACE.constant(0)) == 1.0
    assert cost.relative(SPACE.constant(3)) == pytest.approx(382.5 / 6070.0)


def test_cost_of_widths_without_the_full_one():
    # the table must know the full width even if the space does not use it
    space = StrategySpace(log_snrs(10), (0.5, 0.25), 2)
    assert StepCost(COSTS, space).relative(space.constant(0)) == pytest.approx(1520.0 / 6070.0)


@pytest.mark.parametrize("bad", [math.nan, 0.0, -1.0, math.inf])
def test_bad_costs_are_refused(bad):
    with pytest.raises(ValueError, match=r"the cost of width 0\.5 is .*; need > 0"):
        StepCost({**COSTS, 0.5: bad}, SPACE)


def test_budget_is_a_fraction_or_ms():
    cost = StepCost(COSTS, SPACE)
    ms = ("quality", "ms")
    assert budget_cost(SearchConfig(), cost) is None
    assert budget_cost(SearchConfig(budget_macs=0.5), cost) == 30350.0
    assert budget_cost(SearchConfig(objectives=ms, budget_ms=40.0), cost) == 40.0
    assert budget_cost(SearchConfig(objectives=ms, budget_time=0.5), cost) == 30350.0
    check_budget(SearchConfig(budget_macs=382.5 / 6070.0), cost)
    with pytest.raises(
        ValueError, match=r"budget is 40 ms an image .* cheapest strategy costs 3825"
    ):
        check_budget(SearchConfig(objectives=ms, budget_ms=40.0), cost)


def test_additive_quality_is_the_mean_error_of_the_widths():
    table = np.arange(40.0).reshape(10, 4)
    quality = additive_quality(table, WIDTHS, log_snrs(10))
    strategy = SPACE.strategy(genome_of(SPACE, (5, 3), (5, 0)))
    # rows 0-4 at column 3, rows 5-9 at column 0
    assert quality(strategy) == pytest.approx((3 + 7 + 11 + 15 + 19 + 20 + 24 + 28 + 32 + 36) / 10)
    with pytest.raises(ValueError, match=r"shape \[10, 4\]; need \[9, 4\]"):
        additive_quality(table, WIDTHS, log_snrs(9))


def test_additive_quality_takes_steps_in_sampling_order():
    # a sampler that runs from image to noise: rows belong to steps, not to sorted levels
    levels = log_snrs(10)[::-1]
    table = np.arange(40.0).reshape(10, 4)
    strategy = Strategy((0.25, 1.0), (0.0,))
    expected = sum(table[s, 3 if level < 0 else 0] for s, level in enumerate(levels)) / 10
    assert additive_quality(table, WIDTHS, levels)(strategy) == pytest.approx(expected)
