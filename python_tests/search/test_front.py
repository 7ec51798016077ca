"""Choices from a front whose points are written out here."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddsm_ext.sampling.strategy import Strategy
from ddsm_ext.search.front import (
    Front,
    FrontPoint,
    HypervolumeMeter,
    nondominated,
    rounded_up,
    spread_choice,
)

POINTS = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=25)


FULL = 4.0


def point(cost, quality, width=0.5, half_width=0.0):
    return FrontPoint(
        strategy=Strategy.constant(width),
        cost=cost,
        cost_relative=cost / 100,
        quality=quality,
        standard_error=0.25,
        samples=512,
        loss=quality - FULL,
        loss_half_width=half_width,
        proxy=quality / 100,
        generation=2,
    )


def front(unit="macs"):
    # the full width, 100 and 4.0, is beaten by a strategy of cost 70
    points = (point(10, 9.0, 0.25), point(30, 5.0), point(50, 4.2), point(70, 3.9))
    constants = (point(100, FULL, 1.0), point(10, 9.0, 0.25))
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


def test_a_loss_that_no_point_meets_is_met_by_the_full_width():
    worse = Front((point(10, 9.0), point(50, 6.0)), (point(100, FULL, 1.0),), "macs", "score")
    assert worse.pick(max_quality_loss=1.0) == worse.constants[0]
    assert worse.pick() == worse.constants[0]


def noisy_front(*points):
    return Front(points, (point(100, FULL, 1.0),), "macs", "score")


def test_a_lucky_point_is_not_picked():
    # below the full width by one score, but by no more than its error
    lucky, sure = point(20, 3.9, half_width=0.5), point(60, 3.7, half_width=0.2)
    assert noisy_front(lucky, sure).pick() == sure
    assert noisy_front(lucky).pick() == noisy_front().constants[0]
    assert noisy_front(lucky, sure).pick(max_quality_loss=0.4) == lucky
    assert lucky.greatest_loss == pytest.approx(0.4)


def test_within_a_budget_what_surely_loses_least_is_picked():
    # the better score is known to 1.0, the other to 0.1: 4.2 at worst against 5.0
    steady, lucky = point(40, 4.1, half_width=0.1), point(50, 4.0, half_width=1.0)
    front = noisy_front(steady, lucky)
    assert front.pick(max_cost=0.5) == steady
    assert front.pick(max_cost=0.5, max_quality_loss=0.25) == steady
    with pytest.raises(ValueError, match=r"loses 0\.1 of quality, at most 0\.2, max_quality_loss"):
        front.pick(max_cost=0.5, max_quality_loss=0.15)
    # of equal ones the cheaper
    assert noisy_front(point(30, 4.5), point(50, 4.25, half_width=0.25)).pick(max_cost=1).cost == 30


def test_saved_and_loaded(tmp_path):
    path = tmp_path / "front.json"
    whole = Front(front().points, front().constants, "macs", "score", point(50, 4.2))
    whole.save(path)
    assert Front.load(path) == whole
    content = json.loads(path.read_text())
    assert content["constants"][0]["width"] == 1.0
    assert content["chosen"]["cost"] == 50
    assert content["points"][0]["standard_error"] == 0.25
    assert content["points"][0]["samples"] == 512
    assert content["points"][0]["loss"] == 5.0
    assert content["points"][0]["loss_half_width"] == 0.0
    path.write_text(json.dumps({**content, "network_evaluations": 1}))
    with pytest.raises(ValueError, match=r"front\.json: does not match its own SHA-256"):
        Front.load(path)
    del content["digest"]
    text = {**content["points"][0], "cost": "50"}
    wrong = ({"points": [text]}, {"cost_unit": "s"}, {"network_evaluations": 1.5})
    for change in ({"version": 2}, {"points": []}, {"points": 3}, {"constants": [{}]}, *wrong):
        path.write_text(json.dumps({**content, **change}))
        with pytest.raises(ValueError, match=r"front\.json: "):
            Front.load(path)
    del content["chosen"]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"front\.json: lacks 'chosen'"):
        Front.load(path)


def test_a_front_of_an_earlier_version_is_read(tmp_path):
    # front.json as commit 7df344f wrote it: a cheap and a full score, no errors of them
    def row(cost, quality, width):
        strategy = {"widths": [width], "cuts": [], "origin": {"kind": "search"}}
        return {
            "cost": cost,
            "cost_relative": cost / 100,
            "quality": quality,
            "cheap": quality / 1000,
            "full": quality,
            "generation": 3,
            "strategy": strategy,
        }

    content = {
        "version": 1,
        "cost_unit": "macs",
        "quality_name": "frechet",
        "full_cost": 100.0,
        "full_quality": 4.0,
        "chosen": None,
        "constants": [{"width": 1.0, **row(100.0, 4.0, 1.0)}],
        "points": [row(40.0, 4.5, 0.5), row(100.0, 4.0, 1.0)],
    }
    path = tmp_path / "front.json"
    path.write_text(json.dumps(content))
    found = Front.load(path)
    assert found.network_evaluations == 0
    first = found.points[0]
    assert (first.quality, first.proxy, first.loss, first.generation) == (4.5, 0.0045, 0.5, 3)
    assert (first.standard_error, first.samples, first.loss_half_width) == (None, 0, 0.0)
    assert found.pick(max_cost=0.5) == first
    assert found.pick() == found.points[1]
    found.save(path)
    assert Front.load(path) == found


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


@pytest.mark.parametrize("value", [0.1, 382.5 / 6070.0, 1 / 3, 2 / 3, 1.0, 1e-9 / 3, 1e9 / 7, 3825])
def test_what_is_rounded_up_reads_as_no_less_and_hardly_more(value):
    text = rounded_up(value)
    assert value <= float(text) < value * (1 + 1e-5)
    assert len(text.split("e")[0].replace(".", "").lstrip("0")) <= 6


@pytest.mark.parametrize(("unit", "name"), [("macs", "max_cost"), ("ms", "max_cost"),
                                            ("ms", "budget_ms")])  # fmt: skip
def test_the_least_budget_that_is_named_is_accepted(unit, name):
    points = (point(100 / 7, 9.0, 0.25), point(50, 4.2))
    some = Front(points, (point(300 / 7, FULL, 1.0),), unit, "score")
    with pytest.raises(ValueError, match="need at least that") as refused:
        some.pick(**{name: 0.01})
    found = re.search(r"costs (\S+) of the full width's \w+(?:, (\S+) ms)?", str(refused.value))
    least = found[2 if name == "budget_ms" else 1]
    assert some.pick(**{name: float(least)}) == points[0]


def test_the_least_loss_that_is_named_is_accepted():
    some = Front((point(10, FULL + 2 / 3),), (point(100, FULL, 1.0),), "macs", "score")
    with pytest.raises(ValueError, match="need a larger budget or loss") as refused:
        some.pick(max_cost=0.5, max_quality_loss=0.1)
    least = re.search(r"at most (\S+), max_quality_loss", str(refused.value))[1]
    assert some.pick(max_cost=0.5, max_quality_loss=float(least)) == some.points[0]
