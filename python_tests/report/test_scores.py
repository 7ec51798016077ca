"""The table of scores: what stands where, against values worked out by hand."""

from __future__ import annotations

from ddsm_ext.report.comparison import lines_of
from ddsm_ext.report.scores import number, score_table


def rows(label: str, kind: str, scores: list[float], **more: object) -> list[dict[str, object]]:
    """A row a range of 100 seeds."""
    return [
        {
            "label": label, "kind": kind, "seeds": f"{100 * i}-{100 * i + 99}", "images": 100,
            "frechet": score, **more,
        }
        for i, score in enumerate(scores)
    ]  # fmt: skip


FULL = rows("full width", "full", [2.0, 3.0], macs_per_image=12e6, ms_per_image=4.0)


def test_a_row_has_quality_cost_and_what_else_was_scored() -> None:
    half = rows("width 0.5", "width", [2.5, 3.5], macs_per_image=3.5e6, ms_per_image=1.25, kid=0.5)
    head, cells = score_table(lines_of([*FULL, *half]))
    assert head == ["sampler", "ranges", "Fréchet", "vs full", "MMACs/image", "ms/image", "KID"]
    # both ranges are worse by 0.5: the interval has no width
    assert [cell for i, cell in enumerate(cells[1]) if i != 3] == [
        "width 0.5", "2 x 100", "3", "3.5", "1.25", "0.5",
    ]  # fmt: skip
    assert cells[1][3].startswith("worse by 0.5")
    assert cells[0] == ["full width", "2 x 100", "2.5", "-", "12", "4", "-"]


def test_time_stands_before_the_scores_that_not_every_run_has() -> None:
    extra = {"precision": 0.8, "recall": 0.7, "frechet_held_out": 3.0}
    head, _ = score_table(lines_of(rows("full width", "full", [2.0], **extra)))
    assert head[5:] == ["ms/image", "held-out Fréchet", "precision", "recall"]


def test_what_is_not_known_is_a_dash() -> None:
    head, cells = score_table(lines_of(rows("strategy", "strategy", [2.0])))
    assert len(head) == 6
    assert cells == [["strategy", "1 x 100", "2", "-", "-", "-"]]
    other = [{**row, "seeds": "900-999"} for row in rows("strategy", "strategy", [2.0])]
    assert score_table(lines_of([*FULL, *other]))[1][1][3] == "-"  # no common seeds


def test_numbers_keep_their_digits() -> None:
    assert number(1.23456, 3) == "1.23"
    assert number(305971200, 4, 1e-6) == "306"
    assert number(12345.6, 3) == "12,346"
    assert number(None, 3) == "-"
