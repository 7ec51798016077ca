"""metrics.json: rows of one label are of one strategy, and its headline is the run's own."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ddsm_ext.eval.statistics import ReferenceStatistics
from ddsm_ext.report.comparison import compare, lines_of
from ddsm_ext.report.headline import headline
from ddsm_ext.run import configure
from ddsm_ext.run.metrics import save_row, save_timing, saved_row
from ddsm_ext.run.scoring import Scorer
from ddsm_ext.sampling.strategy import Strategy

CONTEXT = {"reference": {"name": "r", "images": 9, "digest": "d"}, "weights": "w"}
SEEDS = [f"{1024 * i}-{1024 * i + 1023}" for i in range(8)]
FIRST, SECOND = Strategy((0.5, 1.0), (0.0,)), Strategy((0.25, 0.5), (0.0,))


def row(label: str, kind: str, seeds: str, frechet: float, **more: Any) -> dict[str, Any]:
    return {
        "label": label, "kind": kind, "widths": [1.0], "cuts": [], "seeds": seeds,
        "frechet": frechet, "images": 1024, "macs_per_image": 100, "ms_per_image": 1.0, **more,
    }  # fmt: skip


def of(strategy: Strategy, macs: int) -> dict[str, Any]:
    return {
        "widths": list(strategy.widths), "cuts": list(strategy.cuts), "macs_per_image": macs
    }  # fmt: skip


@pytest.fixture
def scored(tmp_path: Path) -> Path:
    for seeds in SEEDS:
        save_row(tmp_path, CONTEXT, row("full width", "full", seeds, 1.0))
        save_row(tmp_path, CONTEXT, row("strategy", "strategy", seeds, 1.2, **of(FIRST, 55)))
    save_timing(tmp_path, {"ms_per_image": {"full": 2.0, "strategy": 1.0}})
    return tmp_path


def read(run: Path) -> dict[str, Any]:
    return json.loads((run / "metrics.json").read_text())


def test_another_strategy_takes_the_place_of_one_of_its_name(scored: Path) -> None:
    """As after another search and scores of half of the ranges."""
    for seeds in SEEDS[:4]:
        save_row(scored, CONTEXT, row("full width", "full", seeds, 1.0))
        save_row(scored, CONTEXT, row("strategy", "strategy", seeds, 3.0, **of(SECOND, 25)))
    metrics = read(scored)
    result = headline(metrics)
    assert result is not None
    assert result.macs_saved == pytest.approx(0.75)
    assert result.against_full is not None
    assert (result.against_full.line.mean, result.against_full.ranges) == (3.0, 4)
    assert "timing" not in metrics  # it was of the other strategy
    assert sum(each["label"] == "full width" for each in metrics["rows"]) == 8


def test_a_score_again_takes_the_place_of_itself_alone(scored: Path) -> None:
    save_row(scored, CONTEXT, row("strategy", "strategy", SEEDS[0], 9.0, **of(FIRST, 55)))
    metrics = read(scored)
    found = [each["frechet"] for each in metrics["rows"] if each["kind"] == "strategy"]
    assert sorted(found) == [1.2] * 7 + [9.0]
    assert "timing" in metrics


def test_another_number_of_images_is_no_range_of_the_same_mean(scored: Path) -> None:
    save_row(scored, CONTEXT, row("full width", "full", "100000-100127", 3.0, images=128))
    save_row(scored, CONTEXT, row("width 0.5", "width", "100000-100127", 3.0, images=128))
    lines = {line.label: line for line in lines_of(read(scored)["rows"])}
    assert lines["full width"].scores == dict.fromkeys(SEEDS, 1.0)  # most of its samples
    assert lines["width 0.5"].scores == {"100000-100127": 3.0}
    assert compare(lines["width 0.5"], lines["full width"]) is None


def test_seeds_count_once_in_a_mean(scored: Path) -> None:
    save_row(scored, CONTEXT, row("full width", "full", "500-1523", 3.0))
    lines = {line.label: line for line in lines_of(read(scored)["rows"])}
    assert lines["full width"].scores == dict.fromkeys(SEEDS, 1.0)


def test_a_named_strategy_is_no_headline(scored: Path) -> None:
    for seeds in SEEDS:
        costs = of(Strategy((0.75, 1.0), (0.0,)), 80)
        save_row(scored, CONTEXT, row("mine", "other", seeds, 1.1, **costs))
    result = headline(read(scored))
    assert result is not None
    assert result.macs_saved == pytest.approx(0.45)
    assert [line.label for line in lines_of(read(scored)["rows"])][-1] == "mine"


def test_scores_of_an_earlier_version_are_kept_and_named_anew(scored: Path) -> None:
    """It knew a reference by its name, and every named strategy was of the kind "strategy"."""
    metrics = read(scored)
    del metrics["reference"]["digest"], metrics["digest"], metrics["version"]
    metrics["rows"].append(row("mine", "strategy", SEEDS[0], 1.1, macs_per_image=80))
    (scored / "metrics.json").write_text(json.dumps(metrics))
    found = saved_row(scored, CONTEXT, "strategy", "strategy", FIRST, range(1024))
    assert found is not None
    assert found["frechet"] == 1.2
    save_row(scored, CONTEXT, row("width 0.5", "width", SEEDS[0], 2.0, macs_per_image=26))
    metrics = read(scored)
    assert metrics["reference"]["digest"] == "d"
    assert "timing" not in metrics  # of one of them, nobody knows which
    kinds = {each["label"]: each["kind"] for each in metrics["rows"]}
    assert (kinds["strategy"], kinds["mine"]) == ("strategy", "other")
    assert len(metrics["rows"]) == 18


class Means:
    name, dim, digest = "means", 3, "00"


def context_of(mu: float) -> dict[str, Any]:
    reference = ReferenceStatistics(np.full(3, mu), np.eye(3), 100)
    network = SimpleNamespace(state_dict=dict)
    sampler: Any = SimpleNamespace(config=configure("digits"), progress=None, network=network)
    return Scorer(sampler, Means(), reference, None, "ref.npz").context()


def test_a_reference_made_again_under_its_name_is_another(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    constant = Strategy.constant(1.0)
    save_row(tmp_path, context_of(0.0), row("full width", "full", "0-1", 1.0))

    def found(mu: float) -> Any:
        return saved_row(tmp_path, context_of(mu), "full width", "full", constant, [0, 1])

    assert found(0.0) is not None
    assert found(9.0) is None
    save_row(tmp_path, context_of(9.0), row("full width", "full", "0-1", 1.0))
    assert "1 scores of other settings are dropped" in caplog.text


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda text: text.replace("1.2", "1.3", 1), "does not match its own SHA-256"),
        (lambda text: text[: len(text) // 2], "is not JSON"),
        (lambda text: "[]", "holds a JSON list"),
    ],
)
def test_damaged_scores_are_refused_by_name_and_stay(
    scored: Path, change: Callable[[str], str], what: str
) -> None:
    path = scored / "metrics.json"
    path.write_text(change(path.read_text()))
    before = path.read_bytes()
    refused = pytest.raises(ValueError, match=f"{re.escape(str(path))}: {what}")
    with refused:
        saved_row(scored, CONTEXT, "strategy", "strategy", FIRST, range(1024))
    with refused:
        save_row(scored, CONTEXT, row("full width", "full", "0-1", 1.0))
    with refused:
        save_timing(scored, {"ms_per_image": {"full": 2.0, "strategy": 1.0}})
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"frechet": float("nan")}, "frechet is nan; need a number"),
        ({"frechet": "0.5"}, "frechet is '0.5'; need a number"),
        ({"kind": "widht"}, "kind is 'widht'; need one of 'full', 'strategy', 'width'"),
        ({"seeds": "all"}, "seeds is 'all'; need numbers and ranges"),
        ({"kdi": 0.5}, "has an unknown key 'kdi'; did you mean kid?"),
    ],
)
def test_a_row_that_is_none_is_refused(scored: Path, wrong: dict[str, Any], sentence: str) -> None:
    before = (scored / "metrics.json").read_bytes()
    with pytest.raises(ValueError, match=re.escape(sentence)):
        save_row(scored, CONTEXT, {**row("width 0.5", "width", "0-1", 1.0), **wrong})
    assert (scored / "metrics.json").read_bytes() == before
