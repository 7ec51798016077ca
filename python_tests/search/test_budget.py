"""The budget solver equals brute force, whether or not the segments are a limit."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddsm_ext.search.budget import solve_budget


def brute_force(errors, costs, budget, segments):
    """Least error over every assignment within the budget and the segments."""
    steps, widths = errors.shape
    costs = np.broadcast_to(costs, errors.shape)
    rows = np.arange(steps)
    best = np.inf
    for choice in itertools.product(range(widths), repeat=steps):
        runs = 1 + sum(a != b for a, b in itertools.pairwise(choice))
        within = costs[rows, list(choice)].sum() <= budget + 1e-9
        if within and runs <= segments:
            best = min(best, errors[rows, list(choice)].sum())
    return best


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 6),
    st.integers(1, 4),
    st.sampled_from([1, 2, 3, 6]),  # 6 steps at most: with 6 there is no limit
    st.integers(0, 2**32 - 1),
    st.sampled_from(["smooth", "ties", "costs by step"]),
    st.floats(0, 1),
)
def test_equals_brute_force(steps, widths, segments, seed, kind, share):
    random = np.random.default_rng(seed)
    errors = random.random((steps, widths))
    costs = random.random((steps, widths) if kind == "costs by step" else widths) + 0.05
    if kind == "ties":
        errors, costs = np.round(4 * errors), np.round(4 * costs) + 1
    table = np.broadcast_to(costs, errors.shape)
    # the cheapest constant width can always be met
    low, high = table.sum(axis=0).min(), table.max(axis=1).sum()
    budget = low + share * (high - low)
    found = solve_budget(errors, costs, budget, segments)
    rows, choice = np.arange(steps), list(found.choice)
    assert found.error == pytest.approx(brute_force(errors, costs, budget, segments), abs=1e-9)
    assert found.error == pytest.approx(errors[rows, choice].sum(), abs=1e-12)
    assert found.cost == pytest.approx(table[rows, choice].sum(), abs=1e-12)
    assert found.cost <= budget * (1 + 1e-9)
    assert 1 + sum(a != b for a, b in itertools.pairwise(choice)) <= segments


def test_knapsack_with_a_duality_gap():
    # Beyond the cheapest widths: 10 less error for 6 units or 11 for 7 at the first step, 9 less
    # for 5 at the second. With 10 to spare both improvements do not fit, and the best single one
    # is under the hull of the multipliers' paths.
    errors = np.array([[20.0, 10.0, 9.0], [20.0, 11.0, 20.0]])
    costs = np.array([[1.0, 7.0, 8.0], [1.0, 6.0, 9.0]])
    assert solve_budget(errors, costs, 13.0, 2).choice == (1, 1)
    assert solve_budget(errors, costs, 12.0, 2).choice == (2, 0)
    assert solve_budget(errors, costs, 7.5, 2).error == 31.0


def test_a_thousand_steps_in_seconds():
    at = np.linspace(0, 1, 1000)[:, None]
    noise = np.random.default_rng(0).random((1000, 4))
    errors = (1 - np.array([1, 0.75, 0.5, 0.25])) ** 2 * np.exp(-6 * at) * (1 + 0.05 * noise)
    costs = np.array([6070.0, 3420.0, 1520.0, 382.5])
    start = time.perf_counter()
    found = solve_budget(errors, costs, 0.5 * 6070e3, 4)
    assert time.perf_counter() - start < 60
    assert found.cost <= 0.5 * 6070e3
    # weak duality: no strategy of any number of segments has less error than this
    multipliers = np.linspace(0, 1e-3, 1001)
    bounds = [(errors + m * costs).min(axis=1).sum() - m * 0.5 * 6070e3 for m in multipliers]
    assert max(bounds) <= found.error < 1.001 * max(bounds)


def test_a_large_budget_takes_the_best_width_everywhere():
    errors = np.array([[0.0, 1.0], [3.0, 2.0], [0.0, 4.0]])
    assert solve_budget(errors, [2.0, 1.0], 100.0, 3).choice == (0, 1, 0)
    assert solve_budget(errors, [2.0, 1.0], 100.0, 1).choice == (0, 0, 0)


def test_refusals():
    errors = np.ones((3, 2))
    with pytest.raises(ValueError, match=r"budget is 2\.9, the cheapest strategy costs 3;"):
        solve_budget(errors, [2.0, 1.0], 2.9, 3)
    with pytest.raises(ValueError, match=r"cheapest strategy costs 1\.00001;"):  # 3 x 1.0000011 / 3
        solve_budget(errors, [2.0, 1.0000011 / 3], 0.5, 3)
    assert solve_budget(errors, [2.0, 1.0000011 / 3], 1.00001, 3).choice == (1, 1, 1)
    with pytest.raises(ValueError, match=r"shape \[3, 2\], costs \[3\]"):
        solve_budget(errors, [2.0, 1.0, 1.0], 5.0, 3)
    with pytest.raises(ValueError, match="positive"):
        solve_budget(errors, [2.0, 0.0], 5.0, 3)
    with pytest.raises(ValueError, match="positive"):
        solve_budget(errors * np.nan, [2.0, 1.0], 5.0, 3)
    with pytest.raises(ValueError, match="segments is 0"):
        solve_budget(errors, [2.0, 1.0], 5.0, 0)
    with pytest.raises(ValueError, match="budget is nan"):
        solve_budget(errors, [2.0, 1.0], float("nan"), 3)
