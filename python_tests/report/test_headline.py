"""The three headline figures, against values worked out by hand."""

from __future__ import annotations

import pytest

from ddsm_ext.report.headline import headline


def row(kind: str, frechet: float, macs: float | None, ms: float | None) -> dict[str, object]:
    return {"kind": kind, "frechet": frechet, "macs_per_image": macs, "ms_per_image": ms}


def test_figures_of_a_scored_run() -> None:
    rows = [row("full", 2.0, 100, 10), row("full", 3.0, 100, 12), row("full", 2.5, 100, 11)]
    result = headline({"rows": [*rows, row("strategy", 2.9, 40, 5.5)]})
    assert result is not None
    assert result.macs_saved == pytest.approx(0.6)
    assert result.time_saved == pytest.approx(0.5)  # 5.5 ms against the median of 10, 11, 12
    assert result.realised_saving == pytest.approx(0.5 / 0.6)
    assert result.full_mean == pytest.approx(2.5)
    assert result.within_spread
    assert result.lines()[0][1] == "60 %"


def test_a_worse_strategy_is_called_outside() -> None:
    result = headline({"rows": [row("full", 2.0, 1, 1), row("full", 2.2, 1, 1),
                                row("strategy", 2.3, 1, 1)]})  # fmt: skip
    assert result is not None
    assert not result.within_spread
    assert "outside" in result.lines()[2][2]


def test_no_headline_without_both_scores() -> None:
    assert headline({}) is None
    assert headline({"rows": [row("full", 1, 1, 1)]}) is None
    assert headline({"rows": [row("strategy", 1, 1, 1)]}) is None


def test_unmeasured_time_is_said() -> None:
    result = headline({"rows": [row("full", 2.0, 10, None), row("strategy", 2.0, 5, None)]})
    assert result is not None
    assert result.time_saved is None
    assert result.realised_saving is None
    assert result.lines()[1][1] == "not measured"
