"""The headline figures, against values worked out by hand."""

from __future__ import annotations

import pytest

from ddsm_ext.report.headline import headline
from ddsm_ext.report.records import DecodingCost


def rows(
    kind: str, scores: list[float], macs: float | None, ms: float | None, label: str | None = None
) -> list[dict[str, object]]:
    """A row a range of seeds."""
    return [
        {
            "label": label or kind, "kind": kind, "seeds": f"{1000 * i}-{1000 * i + 999}",
            "images": 1000, "frechet": score, "macs_per_image": macs, "ms_per_image": ms,
        }
        for i, score in enumerate(scores)
    ]  # fmt: skip


FULL = rows("full", [2.0, 3.0, 2.5], 100, 10)


def test_figures_of_a_scored_run() -> None:
    result = headline({"rows": [*FULL, *rows("strategy", [2.2, 3.1, 2.9], 40, 5)]})
    assert result is not None
    assert result.macs_saved == pytest.approx(0.6)
    assert result.time_saved == pytest.approx(0.5)
    assert result.realised_saving == pytest.approx(0.5 / 0.6)
    against = result.against_full
    assert against is not None
    # the differences .2, .1, .4: mean .2333, standard error .0882, t(2) = 4.3027
    assert against.interval.mean == pytest.approx(0.7 / 3)
    assert against.interval.half_width == pytest.approx(4.30265 * 0.0881917, rel=1e-5)
    assert against.ranges == 3
    assert against.words == "no difference seen (+0.23 ± 0.38)"
    assert [line[1] for line in result.lines()][:2] == ["60 %", "50 %"]


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        # the differences .24, .25, .24: mean .24333, half-width 4.30265 * .0033333
        ([2.24, 3.25, 2.74], "worse by 0.243 ± 0.014"),
        ([1.76, 2.75, 2.26], "better by 0.243 ± 0.014"),
    ],
)
def test_words_match_the_interval(scores: list[float], words: str) -> None:
    """A strategy worse in every range is called worse, however far the ranges spread."""
    result = headline({"rows": [*FULL, *rows("strategy", scores, 40, 5)]})
    assert result is not None
    assert result.against_full is not None
    assert result.against_full.words == words
    assert result.lines()[2][:2] == ("quality", words)


def test_scores_of_other_seeds_are_not_compared() -> None:
    other = [{**row, "seeds": f"9{row['seeds']}"} for row in rows("strategy", [1.0], 40, 5)]
    result = headline({"rows": [*FULL, *other]})
    assert result is not None
    assert result.against_full is None
    assert result.lines()[2][1] == "not measured"


def test_one_range_has_no_interval_and_says_so() -> None:
    result = headline({"rows": [*FULL[:1], *rows("strategy", [1.5], 40, 5)]})
    assert result is not None
    assert result.lines()[2][1] == "-0.5, one range"
    assert "95 %" not in result.lines()[2][2]


def widths(**scores: float) -> list[dict[str, object]]:
    costs = {"75": (56, 8), "50": (26, 5), "25": (7, 4.9)}
    return [
        row
        for name, score in scores.items()
        for row in rows("width", [score] * 3, *costs[name.removeprefix("w")], label=name)
    ]


@pytest.mark.parametrize(
    ("macs", "ms", "unit", "scores", "label"),
    [
        # the narrowest that costs no less
        (50, 6, "macs", {"w75": 3.0, "w50": 4.0, "w25": 5.0}, "w75"),
        (26, 6, "macs", {"w75": 3.0, "w50": 4.0, "w25": 5.0}, "w50"),
        # a dead width: the cheaper one scores better, and would be taken
        (20, 6, "macs", {"w75": 3.0, "w50": 4.0, "w25": 3.9}, "w25"),
        # in time another one than in MACs
        (50, 4.95, "ms", {"w75": 3.0, "w50": 4.0, "w25": 5.0}, "w50"),
        # only the full width costs as much
        (60, 9, "macs", {"w75": 3.0, "w50": 4.0, "w25": 5.0}, None),
    ],
)
def test_the_constant_beside_it(
    macs: float, ms: float, unit: str, scores: dict[str, float], label: str | None
) -> None:
    strategy = rows("strategy", [2.9] * 3, macs, ms)
    result = headline({"rows": [*FULL, *strategy, *widths(**scores)]}, unit)
    assert result is not None
    found = result.against_constant
    assert (found and found.other.label) == label
    name, figure, remark = result.lines()[3]
    assert name == "beside constant"
    if label is None:
        assert (figure, remark) == ("not measured", "no narrower width costs as much")
    else:
        share = {"w75": (56, 80), "w50": (26, 50), "w25": (7, 49)}[label][unit == "ms"]
        assert f"{label} at every step ({share} %), the best width up to one of no less" in remark


def test_no_headline_without_both_scores() -> None:
    assert headline({}) is None
    assert headline({"rows": FULL}) is None
    assert headline({"rows": rows("strategy", [1.0], 1, 1)}) is None


def test_unmeasured_time_is_said() -> None:
    result = headline({"rows": [*rows("full", [2.0], 10, None), *rows("strategy", [2.0], 5, None)]})
    assert result is not None
    assert result.time_saved is None
    assert result.realised_saving is None
    assert result.lines()[1][1] == "not measured"


def test_saving_of_the_steps_alone_leaves_decoding_out() -> None:
    """Of 100 and 40 MACs 20 are the decoder's, of 10 and 5 ms 2: 80 to 20 and 8 to 3 are left."""
    metrics = {"rows": [*FULL, *rows("strategy", [2.2, 3.1, 2.9], 40, 5)]}
    result = headline(metrics, decoding=DecodingCost(20, 2))
    assert result is not None
    assert (result.macs_saved, result.time_saved) == (pytest.approx(0.6), pytest.approx(0.5))
    assert result.of_steps is not None
    assert result.of_steps.macs == pytest.approx(1 - 20 / 80)
    assert result.of_steps.time == pytest.approx(1 - 3 / 8)
    assert result.of_steps.realised == pytest.approx((1 - 3 / 8) / (1 - 20 / 80))
    pixels, slower = headline(metrics), headline(metrics, decoding=DecodingCost(20, 12))
    assert pixels is not None
    assert slower is not None
    assert pixels.of_steps is slower.of_steps is None
