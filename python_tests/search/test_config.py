"""The configuration refuses what a search could not use, by name, and needs no torch to be read."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from ddsm_ext.search.config import SearchConfig
from ddsm_ext.search.cost import PAPER_EVALUATIONS


def test_round_trip_and_order_of_widths():
    config = SearchConfig(widths=(0.5, 1.0), budget_macs=0.5, segments=3)
    assert config.widths == (1.0, 0.5)
    assert SearchConfig.from_dict(config.to_dict()) == config
    assert config.cost == "macs"


def test_the_paper_has_its_population_generations_and_samples():
    # DDSM (arXiv 2310.03337): 50 strategies, 10 generations, 4096 samples each; 1000 steps a sample
    paper = SearchConfig(method="paper")
    assert (paper.population_size, paper.generation_count, paper.first_samples) == (50, 10, 4096)
    assert paper.most_scored_samples() * 1000 == PAPER_EVALUATIONS
    given = SearchConfig(method="paper", population=4, generations=3, samples=7)
    assert given.most_scored_samples() == 4 * 3 * 7
    assert SearchConfig(method="proxy").most_scored_samples() == 0
    # the default is said to take a small share of the paper's
    usual = SearchConfig()
    assert (usual.method, usual.population_size, usual.generation_count) == ("evolution", 10, 6)
    assert usual.most_scored_samples() * 100 < 0.01 * PAPER_EVALUATIONS


def test_samples_of_an_evolution_without_doubling():
    # 20 of the pool, 4 more generations of 10, 3 finalists beside 4 widths, the chosen one with
    # the full width; nothing is doubled
    config = SearchConfig(
        pool=20, population=10, generations=5, samples=64, most_samples=8, finalists=3,
        final_samples=100,
    )  # fmt: skip
    assert config.most_scored_samples() == (20 + 40) * 64 + 9 * 100
    assert replace(config, finalists=0).most_scored_samples() == (20 + 40) * 64
    assert replace(config, pool=1).most_scored_samples() == (4 + 40) * 64 + 9 * 100


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
        ({"method": "random"}, r"method is 'random'; need one of .evolution., .proxy., .paper."),
        ({"method": None}, r"method is None"),
        ({"proxy_budgets": 1}, r"proxy_budgets is 1; need a whole number >= 2"),
        ({"population": 1}, r"population is 1; need a whole number >= 2"),
        ({"generations": 0}, r"generations is 0; need a whole number >= 1"),
        ({"pool": 0}, r"pool is 0; need a whole number >= 1"),
        ({"pool": None}, r"pool is None; need a whole number >= 1"),
        ({"samples": 0}, r"samples is 0; need a whole number >= 1"),
        ({"most_samples": None}, r"most_samples is None"),
        ({"finalists": -1}, r"finalists is -1; need a whole number >= 0"),
        ({"final_samples": 0}, r"final_samples is 0"),
        ({"mutation_prob": 1.2}, r"mutation_prob is 1.2; need 0 <= mutation_prob <= 1"),
        ({"budget_macs": 0.0}, r"budget_macs is 0.0; need a fraction"),
        ({"budget_macs": float("nan")}, r"budget_macs is nan"),
        ({"budget_macs": 50}, r"budget_macs is 50"),
        ({"budget_ms": 3.0}, r"need objectives quality,ms"),
        (
            {"objectives": ("quality", "ms"), "budget_ms": 3.0, "budget_time": 0.5},
            r"budget_ms and budget_time are both set",
        ),
        ({"max_quality_loss": -1.0}, r"max_quality_loss is -1.0; need 0 or more"),
        ({"max_quality_loss": "x"}, r"max_quality_loss is 'x'; need 0 or more"),
        ({"crossover_prob": None}, r"crossover_prob is None; need 0 <= crossover_prob <= 1"),
        ({"objectives": ("quality", "ms"), "budget_ms": float("inf")}, r"budget_ms is inf"),
        ({"widths": 1.0}, r"widths is 1.0; need a list"),
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
