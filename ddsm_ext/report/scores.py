"""The table of a run's scores, the same on its page and on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ddsm_ext.report.comparison import FURTHER, Line, beside_full


def score_table(lines: Sequence[Line]) -> tuple[list[str], list[list[str]]]:
    """Return the headings and a row a line, as text.

    Quality, MACs and time, which strategies are compared by, come before the scores that not every
    run has: on a narrow page those are what lies beyond the edge.

    Args:
        lines: of `comparison.lines_of`.
    """
    further = [key for key in FURTHER if any(key in line.more for line in lines)]
    head = ["sampler", "ranges", "Fréchet", "vs full", "MMACs/image", "ms/image"]
    rows = [
        [
            line.label,
            f"{len(line.scores)} x {line.images or '?'}",
            number(line.mean, 4),
            "-" if found is None or found.other is line else found.words,
            number(line.macs, 4, 1e-6),
            number(line.ms, 3),
            *(number(line.more.get(key), 3) for key in further),
        ]
        for line, found in beside_full(lines)
    ]
    return head + [FURTHER[key] for key in further], rows


def number(value: Any, digits: int, scale: float = 1.0) -> str:
    """Return `scale * value` as text of about `digits` digits; a dash where it is no number."""
    if not isinstance(value, int | float):
        return "-"
    scaled = value * scale
    return f"{scaled:,.0f}" if abs(scaled) >= 10**digits else f"{scaled:.{digits}g}"
