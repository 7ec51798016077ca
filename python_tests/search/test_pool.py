"""The pool and the proxy's front against brute force over all strategies."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from search.synthetic import COSTS, WIDTHS, all_points, errors, log_snrs

from ddsm_ext.search.budget import solve_budget
from ddsm_ext.search.cost import StepCost
from ddsm_ext.search.genome import Genome, StrategySpace
from ddsm_ext.search.pool import (
    budget_genome,
    candidate_pool,
    level_total,
    proxy_front,
    spread_budgets,
)


def problem(steps: int, segments: int, widths=WIDTHS, table=None):
    space = StrategySpace(log_snrs(steps), widths, segments)
    cost = StepCost(COSTS, space)
    columns = [WIDTHS.index(w) for w in widths]
    found = errors(steps)[:, columns] if table is None else table
    return space, cost, space.by_level(log_snrs(steps), found)


def brute_points(level_errors, level_costs, segments):
    """(cost, error) of every assignment of widths to levels within the segments."""
    rows = np.arange(len(level_errors))
    for choice in itertools.product(range(level_errors.shape[1]), repeat=len(rows)):
        if 1 + sum(a != b for a, b in itertools.pairwise(choice)) <= segments:
            at = rows, list(choice)
            yield level_costs[at].sum(), level_errors[at].sum()


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_budget_genomes_are_the_best_at_every_budget(steps, widths, segments, seed):
    random = np.random.default_rng(seed)
    # some steps share a level
    levels = sorted(random.integers(0, steps, steps + 2).astype(float).tolist())
    runs = random.integers(1, 3, steps + 2)
    space = StrategySpace(levels, WIDTHS[:widths], segments, runs)
    cost = StepCost(COSTS, space, fixed := 1234.5 * (seed % 2))
    by_level = space.by_level(levels, random.random((steps + 2, widths)))
    runs_by_level = np.array([runs[np.equal(levels, level)].sum() for level in sorted({*levels})])
    level_costs = runs_by_level[:, None] * np.array([COSTS[w] for w in WIDTHS[:widths]])
    points = [(c + fixed, e) for c, e in brute_points(by_level, level_costs, segments)]
    for budget in sorted({c for c, _ in points}):  # every budget at which the best may change
        found = budget_genome(space, cost, by_level, budget, segments)
        assert cost(found) <= budget * (1 + 1e-9)
        assert len(found.widths) <= segments
        best = min(e for c, e in points if c <= budget * (1 + 1e-9))
        assert level_total(space, by_level, found) == pytest.approx(best, abs=1e-9)


def test_the_proxys_front_is_the_best_at_every_budget():
    steps, segments = 9, 3
    space, cost, by_level = problem(steps, segments)
    budgets = spread_budgets(cost, 15)
    assert budgets[0] == pytest.approx(382.5 * steps)
    assert budgets[-1] == pytest.approx(6070.0 * steps)
    assert np.diff(budgets) == pytest.approx([(6070.0 - 382.5) * steps / 14] * 14)
    found = proxy_front(space, cost, by_level, [*budgets, 1.0], segments)  # 1.0 buys nothing
    known = all_points(steps, segments)
    points = [(level_total(space, by_level, g) / steps, cost.relative(g)) for g in found]
    assert points == sorted(points, key=lambda p: (p[1], -p[0]))
    for budget in budgets:
        share = budget / cost.full * (1 + 1e-9)
        best = min(q for q, c in known if c <= share)
        assert min(q for q, c in points if c <= share) == pytest.approx(best, abs=1e-12)
    for quality, relative in points:
        better = [q for q, c in known if c <= relative * (1 + 1e-9) and q < quality - 1e-12]
        assert not better


def test_the_pool_holds_the_constants_and_the_best_of_the_budget():
    steps, segments = 10, 4
    space, cost, by_level = problem(steps, segments)
    budget = 0.42 * cost.full
    pool = candidate_pool(space, cost, by_level, budgets=10, budget=budget, size=25)
    assert len(pool) == len(set(pool)) <= 25
    assert pool[: len(WIDTHS)] == space.constants()
    for count in (2, 3, 4):
        best = min(q for q, c in all_points(steps, count) if c <= 0.42)
        within = [g for g in pool if len(g.widths) <= count and cost(g) <= budget]
        found = min(level_total(space, by_level, g) for g in within) / steps
        assert found == pytest.approx(best, abs=1e-12)
    # the plain guess: the narrowest width, then as many full steps as the budget pays for
    full = max(n for n in range(11) if n * 6070.0 + (10 - n) * 382.5 <= budget)
    assert Genome((10 - full,), (3, 0)) in pool
    # every one can be written down and read again
    assert [space.from_row(space.to_row(g)) for g in pool] == pool


@pytest.mark.parametrize("size", [1, 5, 12, 40, 500])
@pytest.mark.parametrize("share", [None, 0.5])
def test_the_size_is_kept(size, share):
    space, cost, by_level = problem(12, 3)
    budget = None if share is None else share * cost.full
    pool = candidate_pool(space, cost, by_level, budgets=10, budget=budget, size=size)
    stays = len(WIDTHS) + (0 if share is None else 3)  # of 2 and 3 segments, and the guess
    assert len(pool) <= max(size, stays)
    assert len(pool) == len(set(pool))
    assert set(space.constants()) <= set(pool)
    if size == 12:
        assert len(pool) == 12
        # spread over costs, of every number of segments
        assert {len(g.widths) for g in pool} == {1, 2, 3}
        relative = sorted(cost.relative(g) for g in pool)
        assert max(np.diff(relative)) < 0.45


def test_a_thousand_levels_keep_the_limit():
    steps = 1000
    space, cost, by_level = problem(steps, 4)
    costs = np.array([COSTS[w] for w in WIDTHS])
    for share in (0.0630149, 0.4):
        limit = share * cost.full
        found = budget_genome(space, cost, by_level, limit, 4)
        assert cost(found) <= limit * (1 + 1e-9)
        assert all(boundary % 10 == 0 for boundary in found.boundaries)
        # no worse than a hundredth than the best that may cut between any two levels
        exact = solve_budget(by_level, costs, limit, 4).error
        assert exact <= level_total(space, by_level, found) * (1 + 1e-9)
        assert level_total(space, by_level, found) <= 1.01 * exact


@pytest.mark.parametrize(
    ("steps", "segments", "widths", "count"),
    [(10, 3, (1.0,), 1), (10, 1, WIDTHS, 4), (1, 3, WIDTHS, 4), (2, 6, (1.0, 0.5), 4)],
)
def test_small_spaces(steps, segments, widths, count):
    space, cost, by_level = problem(steps, segments, widths)
    for budget in (None, cost.full, cost.per_width.min() * steps):
        pool = candidate_pool(space, cost, by_level, budgets=5, budget=budget, size=30)
        assert len(pool) == len(set(pool)) <= count
        assert set(space.constants()) <= set(pool)


def test_a_budget_of_just_the_cheapest_strategy():
    space, cost, by_level = problem(7, 3)
    cheapest = 382.5 * 7
    for limit in (cheapest, cheapest * (1 - 5e-10), cheapest * (1 + 5e-10)):
        assert budget_genome(space, cost, by_level, limit, 3) == space.constants()[3]
    with pytest.raises(ValueError, match="need at least that"):
        budget_genome(space, cost, by_level, cheapest * 0.999, 3)
    pool = candidate_pool(space, cost, by_level, budgets=4, budget=cheapest, size=10)
    assert set(space.constants()) <= set(pool)


def test_measured_times_may_order_the_widths_otherwise():
    # a machine on which the full width is the fastest
    space = StrategySpace(log_snrs(6), (1.0, 0.5), 3)
    cost = StepCost({1.0: 1.0, 0.5: 2.0}, space)
    by_level = space.by_level(log_snrs(6), errors(6)[:, [0, 2]])
    pool = candidate_pool(space, cost, by_level, budgets=5, budget=cost.full, size=10)
    assert [space.canonical(g.boundaries, g.widths) for g in pool] == pool
    assert set(space.constants()) <= set(pool)
