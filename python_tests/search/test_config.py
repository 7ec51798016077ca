"""The configuration refuses what a search could not use, by name, and needs no torch to be read."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ddsm_ext.search.config import SearchConfig


def test_round_trip_and_order_of_widths():
    config = SearchConfig(widths=(0.5, 1.0), budget_macs=0.5, segments=3)
    assert config.widths == (1.0, 0.5)
    assert SearchConfig.from_dict(config.to_dict()) == config
    assert config.cost == "macs"
    assert config.quality_stage == "full"


def test_most_evaluations():
    config = SearchConfig(population=10, generations=4, full_per_generation=2, full_final=5)
    assert config.most_evaluations() == {"cheap": 40, "full": 4 + 8 + 5}
    assert config.most_evaluations(13) == {"cheap": 43, "full": 17}
    assert SearchConfig(population=10, generations=4, stages=("full",)).most_evaluations() == {
        "full": 40
    }
    refined = SearchConfig(population=10, generations=4, refine_generations=3)
    assert refined.most_evaluations() == {"cheap": 40 + 15, "full": 4 + 12 + 12 + 15}


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"widths": (0.5, 0.25)}, r"widths is \(0.5, 0.25\); need the full width 1.0 among"),
        ({"widths": (1.0, 1.5)}, r"width is 1.5; need 0 < width <= 1"),
        ({"widths": (1.0, None)}, r"width is None; need a number"),
        ({"segments": 0}, r"segments is 0; need a whole number >= 1"),
        ({"population": 2.5}, r"population is 2.5"),
        ({"generations": True}, r"generations is True"),
        ({"seed": -1}, r"seed is -1"),
        ({"objectives": ("quality", "joules")}, r"need quality,macs or quality,ms"),
        ({"stages": ("full", "cheap")}, r"need cheap,full or cheap or full"),
        ({"stages": ("full",), "refine_generations": 1}, r"need stages cheap,full"),
        ({"mutation_prob": 1.2}, r"mutation_prob holds 1.2; need 0 <= mutation_prob <= 1"),
        ({"budget_macs": 0.0}, r"budget_macs holds 0.0; need a fraction"),
        ({"budget_macs": float("nan")}, r"budget_macs holds nan"),
        ({"budget_macs": 50}, r"budget_macs holds 50"),
        ({"budget_ms": 3.0}, r"need objectives quality,ms"),
        (
            {"objectives": ("quality", "ms"), "budget_ms": 3.0, "budget_time": 0.5},
            r"budget_ms and budget_time are both set",
        ),
        ({"seed_budgets": (0.5, 2.0)}, r"seed_budgets holds 2.0"),
        ({"max_quality_loss": -1.0}, r"max_quality_loss is -1.0; need 0 or more"),
        ({"max_quality_loss": "x"}, r"max_quality_loss is 'x'; need 0 or more"),
        ({"crossover_prob": None}, r"crossover_prob holds None; need 0 <= crossover_prob <= 1"),
        ({"objectives": ("quality", "ms"), "budget_ms": float("inf")}, r"budget_ms holds inf"),
        ({"widths": 1.0}, r"widths is 1.0; need a list"),
        ({"stages": "full"}, r"stages is 'full'; need a list"),
        ({"seed_budgets": None}, r"seed_budgets is None; need a list"),
    ],
)
def test_refusals(values, sentence):
    with pytest.raises(ValueError, match=sentence):
        SearchConfig(**values)


def test_unknown_keys_get_a_suggestion():
    with pytest.raises(ValueError, match="unknown key 'segment'; did you mean segments"):
        SearchConfig.from_dict({"segment": 3})


def test_reading_it_imports_no_torch():
    code = (
        "import sys; from ddsm_ext.search.config import SearchConfig; SearchConfig();"
        "assert not {'torch', 'numpy', 'pymoo'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
