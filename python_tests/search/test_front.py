"""Choices from a front whose points are written out here."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddsm_ext.sampling.strategy import Strategy
from ddsm_ext.search.front import (
    Front,
    FrontPoint,
    HypervolumeMeter,
    nondominated,
    spread_choice,
)

POINTS = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=25)


def point(cost, quality, width=0.5):
    strategy = Strategy.constant(width)
    return FrontPoint(strategy, cost, cost / 100, quality, None, quality, 0)


def front(unit="macs"):
    # the full width, 100 and 4.0, is beaten by a strategy of cost 70
    points = (point(10, 9.0, 0.25), point(30, 5.0), point(50, 4.2), point(70, 3.9))
    constants = (point(100, 4.0, 1.0), point(10, 9.0, 0.25))
    return Front(points, constants, unit, "score")


@pytest.mark.parametrize(
    ("limits", "cost"),
    [
        ({"max_cost": 0.5}, 50),
        ({"max_cost": 0.4999}, 30),
        ({"max_cost": 0.99}, 70),
        ({"max_cost": 0.1}, 10),
        ({"max_quality_loss": 0.0}, 70),
        ({"max_quality_loss": 0.3}, 50),
        ({"max_quality_loss": 99.0}, 10),
        ({}, 70),
        ({"max_cost": 0.6, "max_quality_loss": 0.3}, 50),
    ],
)
def test_picks(limits, cost):
    assert front().pick(**limits).cost == cost


def test_ms_budgets_are_absolute():
    assert front("ms").pick(budget_ms=55.0).cost == 50
    assert front("ms").pick(max_cost=0.55).cost == 50


@pytest.mark.parametrize(
    ("unit", "limits", "sentence"),
    [
        (
            "macs",
            {"max_cost": 0.05},
            r"budget is 0\.05 of the full width's MACs, the cheapest strategy costs 0\.1 of",
        ),
        (
            "ms",
            {"budget_ms": 5.0},
            r"budget is 5 ms an image, the cheapest strategy costs .*, 10 ms an image",
        ),
        ("macs", {"max_cost": 0.6, "max_quality_loss": 0.1}, r"loses 0\.2 of quality"),
        ("macs", {"budget_ms": 5.0}, r"budget_ms is set, the front's costs are in macs"),
        ("ms", {"max_cost": 0.5, "budget_ms": 5.0}, r"are both set; need one"),
        ("macs", {"max_cost": -1.0}, r"max_cost is -1\.0; need a number above 0"),
        ("macs", {"max_cost": float("nan")}, r"max_cost is nan"),
        ("macs", {"max_quality_loss": -0.1}, r"max_quality_loss is -0\.1; need 0 or more"),
    ],
)
def test_limits_that_nothing_meets(unit, limits, sentence):
    with pytest.raises(ValueError, match=sentence):
        front(unit).pick(**limits)


def test_a_loss_that_no_point_meets():
    # a front that lost its full width, as after a hand edit
    worse = Front((point(10, 9.0), point(50, 6.0)), (point(100, 4.0, 1.0),), "macs", "score")
    with pytest.raises(ValueError, match=r"the best strategy loses 2 of quality"):
        worse.pick(max_quality_loss=1.0)


def test_saved_and_loaded(tmp_path):
    path = tmp_path / "front.json"
    whole = Front(front().points, front().constants, "macs", "score", point(50, 4.2))
    whole.save(path)
    assert Front.load(path) == whole
    content = json.loads(path.read_text())
    assert content["constants"][0]["width"] == 1.0
    assert content["chosen"]["cost"] == 50
    for change in ({"version": 2}, {"points": []}, {"points": 3}, {"constants": [{}]}):
        path.write_text(json.dumps({**content, **change}))
        with pytest.raises(ValueError, match=r"front\.json: "):
            Front.load(path)
    del content["chosen"]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"front\.json: lacks 'chosen'"):
        Front.load(path)


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
