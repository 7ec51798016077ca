"""Non-domination against its definition, hypervolume against sums of rectangles."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddsm_ext.search.pareto import HypervolumeMeter, nondominated, spread_choice

POINTS = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=25)


@settings(deadline=None)
@given(POINTS)
def test_nondominated_is_the_definition(points):
    front = [points[i] for i in nondominated(points)]
    by_definition = {
        p for p in points if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points)
    }
    assert set(front) == by_definition
    assert len(front) == len(by_definition)
    assert [c for _, c in front] == sorted(c for _, c in front)


def test_spread_takes_the_ends_then_the_gaps():
    front = [(10.0, 0.0), (9.0, 0.1), (8.0, 0.2), (1.0, 0.9), (0.0, 1.0)]
    assert spread_choice(front, 2) == [0, 4]
    assert spread_choice(front, 3) == [0, 2, 4]
    assert spread_choice(front, 9) == [0, 1, 2, 3, 4]
    assert spread_choice(front, 0) == []
    assert spread_choice([(1.0, 1.0)] * 3, 1) == [1]


def test_hypervolume_is_a_share_of_a_fixed_box():
    # ideal (0, 0.2), reference (4.4, 1.08): 10 % beyond the worst constant in each objective
    meter = HypervolumeMeter([(0.0, 1.0), (4.0, 0.2)])
    assert meter.reference == pytest.approx([4.4, 1.08])
    box = 4.4 * 0.88
    assert meter([(0.0, 0.2)]) == pytest.approx(1.0)
    assert meter([(2.0, 0.5)]) == pytest.approx(2.4 * 0.58 / box)
    two = 2.4 * 0.58 + (4.4 - 3.0) * (0.5 - 0.3)
    assert meter([(2.0, 0.5), (3.0, 0.3), (3.5, 0.6)]) == pytest.approx(two / box)
    assert meter([(5.0, 0.1), (0.0, 2.0)]) == 0.0
    assert meter([]) == 0.0


def test_hypervolume_of_equal_constants():
    meter = HypervolumeMeter([(3.0, 1.0)])
    assert 0 < meter([(3.0, 1.0)]) == pytest.approx(1.0)
