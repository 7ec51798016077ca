"""Scores of a run beside each other: means over seed ranges, paired differences in words."""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ddsm_ext.intervals import Interval, paired_interval

# Scores that not every run has; a column that would be empty is left out
FURTHER = {
    "frechet_held_out": "held-out Fréchet",
    "kid": "KID",
    "precision": "precision",
    "recall": "recall",
    "inception_score": "Inception Score",
}
# A strategy's cost is a sum in another order than a width's
_SAME_COST = 1e-9


@dataclass(frozen=True)
class Line:
    """Everything that metrics.json has of one strategy.

    Args:
        label: its name.
        kind: "full", "strategy" (the run's own), "width", "reverse", "two segments" or "other".
        scores: seeds of a range -> Fréchet distance of its samples.
        more: other scores of metrics.json by key, their means over the ranges.
        images: samples of a range.
        macs: MACs of an image; None where not counted.
        ms: time of an image, median over the ranges; None where not measured.
    """

    label: str
    kind: str
    scores: dict[str, float]
    more: dict[str, float]
    images: int | None
    macs: float | None
    ms: float | None

    @property
    def mean(self) -> float:
        """Mean Fréchet distance over the ranges."""
        return math.fsum(self.scores.values()) / len(self.scores)

    def cost(self, unit: str) -> float | None:
        """MACs ("macs") or time ("ms") of an image."""
        return self.ms if unit == "ms" else self.macs


@dataclass(frozen=True)
class Comparison:
    """How much higher, which is worse, one line scores than another on the same seeds.

    Args:
        line: the one.
        other: the other.
        interval: mean of the differences and its 95 % interval; a width of 0 says that there is
            one range only.
        ranges: ranges of seeds that both have.
    """

    line: Line
    other: Line
    interval: Interval
    ranges: int

    @property
    def words(self) -> str:
        """What the interval shows, e.g. "worse by 0.24 ± 0.06"."""
        found = self.interval
        if not found.mean and not found.half_width:
            return "the same"
        if self.ranges < 2:
            return f"{found.text()}, one range"
        if found.above_zero:
            return f"worse by {found.text('')}"
        if found.below_zero:
            return f"better by {Interval(-found.mean, found.half_width).text('')}"
        return f"no difference seen ({found.text()})"


def lines_of(rows: Sequence[Mapping[str, Any]]) -> list[Line]:
    """Return one line a label from the rows of metrics.json, in their order.

    A mean is one of ranges of the same size, the size of most of the label's samples, and takes no
    seed twice.
    """
    by_label: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_label.setdefault(str(row["label"]), []).append(row)
    return [_line(label, group) for label, group in by_label.items()]


def _ranges(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows of a label that have one mean."""
    samples = Counter[int | None]()
    for row in rows:
        samples[row.get("images")] += row.get("images") or 0
    size = max(samples, key=lambda images: samples[images])
    kept, ends = list[Mapping[str, Any]](), list[tuple[int, int]]()
    for row in rows:
        first, last = _ends(row.get("seeds"))
        if row.get("images") == size and all(last < a or b < first for a, b in ends):
            kept.append(row)
            ends.append((first, last))
    return kept


def _ends(seeds: Any) -> tuple[int, int]:
    """First and last of the seeds "0-99,200"."""
    numbers = [int(number) for number in re.findall(r"\d+", str(seeds))]
    return (min(numbers), max(numbers)) if numbers else (0, -1)


def _line(label: str, rows: Sequence[Mapping[str, Any]]) -> Line:
    rows = _ranges(rows)
    first = rows[0]
    means = {key: _mean([row.get(key) for row in rows]) for key in FURTHER}
    return Line(
        label=label,
        kind=str(first.get("kind", "")),
        scores={str(row.get("seeds")): float(row["frechet"]) for row in rows},
        more={key: mean for key, mean in means.items() if mean is not None},
        images=first.get("images"),
        macs=first.get("macs_per_image"),
        ms=_median([row.get("ms_per_image") for row in rows]),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return math.fsum(known) / len(known) if known else None


def _median(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return statistics.median(known) if known else None


def compare(line: Line, other: Line) -> Comparison | None:
    """Return how two lines differ over the ranges that both have; None where they share none."""
    shared = [seeds for seeds in line.scores if seeds in other.scores]
    if not shared:
        return None
    pairs = [line.scores[s] for s in shared], [other.scores[s] for s in shared]
    return Comparison(line, other, paired_interval(*pairs), len(shared))


def beside_full(lines: Sequence[Line]) -> list[tuple[Line, Comparison | None]]:
    """Return each line with how it differs from the full width's; None where they share no ranges,
    or the full width has no scores."""
    full = next((line for line in lines if line.kind == "full"), None)
    return [(line, None if full is None else compare(line, full)) for line in lines]


def best_constant(line: Line, lines: Sequence[Line], unit: str = "macs") -> Line | None:
    """Return the constant width that a user would take in place of a line's strategy.

    It is the best scored one of the narrower widths up to the narrowest that costs no less than
    the strategy: the constants have the advantage in cost, and that of the choice.

    Args:
        line: the strategy.
        lines: all lines.
        unit: of the costs, "macs" or "ms".

    Returns:
        the width's line; None where only the full width costs as much, or costs are not known.
    """
    cost = line.cost(unit)
    widths = [(c, other) for other in lines if other.kind == "width" and (c := other.cost(unit))]
    if not cost:
        return None
    enough = [c for c, _ in widths if c >= cost * (1 - _SAME_COST)]
    if not enough:
        return None
    affordable = [other for c, other in widths if c <= min(enough)]
    return min(affordable, key=lambda other: other.mean)
