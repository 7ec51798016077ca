"""Costs by arithmetic; tables are refused when they are damaged or come from elsewhere."""

from __future__ import annotations

import json
import math
import re

import pytest
from search.synthetic import COSTS, WIDTHS, genome_of, log_snrs

from ddsm_ext.search.config import SearchConfig
from ddsm_ext.search.cost import (
    CostTable,
    StepCost,
    budget_cost,
    check_budget,
)
from ddsm_ext.search.genome import StrategySpace

WHERE = {
    "machine": "here",
    "gpu": None,
    "torch": "2.11.0",
    "threads": 2,
    "batch": 4,
    "dtype": "float32",
    "network": "abc",
}
SPACE = StrategySpace(log_snrs(10), WIDTHS, 4)


def test_cost_is_the_sum_over_steps():
    cost = StepCost(COSTS, SPACE)
    genome = genome_of(SPACE, (4, 2), (3, 1), (3, 0))
    assert cost(genome) == 4 * 1520.0 + 3 * 3420.0 + 3 * 6070.0
    assert cost.full == 60700.0
    assert cost.relative(SPACE.constants()[0]) == 1.0
    assert cost.relative(SPACE.constants()[3]) == pytest.approx(382.5 / 6070.0)


def test_steps_that_run_twice_and_a_cost_that_stays():
    """Two halves of a guided step in one width, and a weak model of a width of its own."""
    runs = [2] * 4 + [1] * 6  # noisy steps first
    space = StrategySpace(log_snrs(10), WIDTHS, 4, runs)
    cost = StepCost(COSTS, space, fixed=100.0)
    genome = genome_of(space, (4, 2), (3, 1), (3, 0))
    assert cost(genome) == 8 * 1520.0 + 3 * 3420.0 + 3 * 6070.0 + 100.0
    assert (cost.full, cost.cheapest) == (14 * 6070.0 + 100.0, 14 * 382.5 + 100.0)
    with pytest.raises(ValueError, match=r"runs has shape \[2\]; need 1 or more of each of 10"):
        StrategySpace(log_snrs(10), WIDTHS, 4, [1, 2])
    with pytest.raises(ValueError, match="need 1 or more"):
        StrategySpace(log_snrs(10), WIDTHS, 4, [0] * 10)


def test_cost_of_widths_without_the_full_one():
    # the table must know the full width even if the space does not use it
    space = StrategySpace(log_snrs(10), (0.5, 0.25), 2)
    assert StepCost(COSTS, space).relative(space.constants()[0]) == pytest.approx(1520.0 / 6070.0)


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


def test_a_budget_below_what_decoding_takes_names_it():
    """20 steps of 100 and decoding that costs 500: 2500 in all, 2000 of which widths save."""
    table, decoding = {1.0: 100.0, 0.5: 25.0}, 500.0
    cost = StepCost(table, StrategySpace(log_snrs(20), (1.0, 0.5), 4), decoding)
    assert (cost.full, cost.cheapest) == (2500.0, 1000.0)
    sentence = (
        r"budget is 250 MACs an image \(0\.1 of the full width's\), decoding alone takes 500 "
        r"\(0\.2\), the cheapest strategy costs 1000 \(0\.4\); need at least that"
    )
    with pytest.raises(ValueError, match=sentence):
        check_budget(SearchConfig(budget_macs=0.1), cost, decoding)
    check_budget(SearchConfig(budget_macs=0.4), cost, decoding)


@pytest.mark.parametrize(
    ("settings", "group"),
    [
        ({"budget_macs": 0.01}, 2),
        ({"budget_time": 0.01, "objectives": ("quality", "ms")}, 2),
        ({"budget_ms": 0.01, "objectives": ("quality", "ms")}, 1),
    ],
)
@pytest.mark.parametrize("narrow", [0.259123456789, 1 / 3, 2 / 3, 0.9999999])
def test_the_least_budget_that_is_named_is_accepted(settings, group, narrow):
    cost = StepCost({1.0: 7.7, 0.5: 7.7 * narrow}, StrategySpace(log_snrs(10), (1.0, 0.5), 4))
    with pytest.raises(ValueError, match="need at least that") as refused:
        check_budget(SearchConfig(**settings), cost)
    least = re.search(r"strategy costs (\S+) \((\S+)\);", str(refused.value))[group]
    name, *_ = settings
    check_budget(SearchConfig(**{**settings, name: float(least)}), cost)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("machine", "other"),
        ("torch", "2.10.0"),
        ("threads", 99),
        ("batch", 1),
        ("dtype", "bfloat16"),
        ("gpu", "H200"),
        ("network", "def"),
    ],
)
def test_another_machine_or_configuration_is_refused_by_name(tmp_path, name, value):
    where = dict(WHERE)
    path = tmp_path / "cost_table.json"
    table = CostTable("ms", {1.0: 2.0, 0.5: 1.0}, where)
    table.save(path)
    with pytest.raises(ValueError, match=f"measured with {name} .*; need a new measurement"):
        CostTable.load(path).check_conditions({**where, name: value})
    found = CostTable.load(path)
    found.check_conditions(where)
    assert found == table


def test_decoding_is_kept_in_the_file(tmp_path):
    path = tmp_path / "cost_table.json"
    table = CostTable("ms", {1.0: 2.0, 0.5: 1.0}, dict(WHERE), overhead=0.5, decoding=7.0)
    table.save(path)
    assert CostTable.load(path) == table
    assert table.of_widths([1.0]).decoding == 7.0
    for bad in (-1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match=r"decoding is .*; need 0 or more"):
            CostTable("ms", {1.0: 2.0}, decoding=bad)


def test_damaged_files_are_refused_by_name(tmp_path):
    path = tmp_path / "table.json"
    good = {"version": 1, "unit": "ms", "conditions": {}, "rows": [{"width": 1.0, "cost": 2.0}]}
    for change in (
        {"version": 7},
        {"unit": "s"},
        {"rows": []},
        {"rows": [{"width": 1.0}]},
        {"rows": [{"width": 1.0, "cost": -1}]},
        {"rows": [{"width": 1.0, "cost": "2.0"}]},
        {"rows": [{"width": 1.0, "cost": 2.0, "rounds": "9"}]},
        {"rows": None},
    ):
        path.write_text(json.dumps({**good, **change}))
        with pytest.raises(ValueError, match=r"table\.json: "):
            CostTable.load(path)
    path.write_text("[]")
    with pytest.raises(ValueError, match=r"table\.json: "):
        CostTable.load(path)
    with pytest.raises(FileNotFoundError):
        CostTable.load(tmp_path / "none.json")


def test_widths_that_save_no_time():
    # .25 takes what .5 takes; .1 is slower than both
    table = CostTable("ms", {1.0: 10.0, 0.75: 8.0, 0.5: 5.0, 0.25: 4.95, 0.1: 5.5})
    assert table.useful_widths() == [1.0, 0.75, 0.5]
    # beside the widths that are asked for, not those that happen to be known
    assert table.of_widths((1.0, 0.25)).useful_widths() == [1.0, 0.25]
    with pytest.raises(ValueError, match=r"has no width 0\.3"):
        table.of_widths((1.0, 0.3))
