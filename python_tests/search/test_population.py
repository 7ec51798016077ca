"""The first population: constants, budget solutions, random strategies."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from search.synthetic import COSTS, WIDTHS, errors, log_snrs

from ddsm_ext.search.genome import StrategySpace
from ddsm_ext.search.objective import StepCost
from ddsm_ext.search.population import (
    budget_genomes,
    constant_genomes,
    errors_by_level,
    random_genomes,
)


def test_constants_are_the_widths():
    space = StrategySpace(log_snrs(9), WIDTHS, 3)
    assert [space.strategy(g).widths for g in constant_genomes(space)] == [(w,) for w in WIDTHS]


def test_budget_solutions_with_steps_that_share_a_level():
    # levels of 3, 1 and 2 steps; brute force over the 4^3 choices by level
    levels = [0.0, 0.0, 0.0, 1.0, 2.0, 2.0]
    space = StrategySpace(levels, WIDTHS, 3)
    cost = StepCost(COSTS, space)
    table = np.random.default_rng(0).random((6, 4))
    by_level = errors_by_level(space, levels, table)
    assert by_level == pytest.approx(np.stack([table[:3].sum(0), table[3], table[4:].sum(0)]))
    for budget in (0.1, 0.4, 0.7):
        (found,) = budget_genomes(space, cost, by_level, [budget])
        best = min(
            sum(by_level[i, w] for i, w in enumerate(choice))
            for choice in itertools.product(range(4), repeat=3)
            if cost(space.from_levels(choice)) <= budget * cost.full
        )
        widths = space.strategy(found).widths_for([0.0, 1.0, 2.0])
        assert sum(by_level[i, WIDTHS.index(w)] for i, w in enumerate(widths)) == pytest.approx(
            best
        )


def test_budgets_below_the_cheapest_are_left_out():
    space = StrategySpace(log_snrs(20), WIDTHS, 3)
    cost = StepCost(COSTS, space)
    found = budget_genomes(space, cost, errors(20), [0.01, 0.3, 1.0])
    assert len(found) == 2
    assert found[-1] == space.constant(0)


def test_errors_of_another_shape_are_refused():
    space = StrategySpace(log_snrs(20), WIDTHS, 3)
    with pytest.raises(ValueError, match=r"shape \[20, 3\]; need finite values, \[20, 4\]"):
        errors_by_level(space, log_snrs(20), np.zeros((20, 3)))


def test_random_genomes_differ_and_a_small_space_runs_out():
    space = StrategySpace(log_snrs(100), WIDTHS, 4)
    known = constant_genomes(space)
    made = random_genomes(space, 50, known, np.random.default_rng(0))
    assert len({*made, *known}) == 54
    assert {len(g.widths) for g in made} == {1, 2, 3, 4} - {1}
    tiny = StrategySpace([0.0, 1.0], (1.0, 0.5), 2)
    assert len(random_genomes(tiny, 50, [], np.random.default_rng(0))) == 4
