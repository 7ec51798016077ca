"""Errors of means and of paired differences, as every comparison here states them. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ddsm_ext.settings import Refusal

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean and the half-width of its 95 % confidence interval.

    Args:
        mean: the mean.
        half_width: 0 where the error is not known, as of one value alone.
    """

    mean: float
    half_width: float

    @property
    def above_zero(self) -> bool:
        """Whether the whole interval lies above 0."""
        return self.mean - self.half_width > 0.0

    @property
    def below_zero(self) -> bool:
        """Whether the whole interval lies below 0."""
        return self.mean + self.half_width < 0.0

    @property
    def holds_zero(self) -> bool:
        """Whether the interval has a width, and 0 in it."""
        return self.half_width > 0.0 and not (self.above_zero or self.below_zero)

    def text(self, sign: str = "+") -> str:
        """Return e.g. "+0.243 ± 0.014": the half-width to two digits, the mean to as many places,
        and to more where rounding would hide on which side of 0 the interval lies.

        Args:
            sign: as in a format: "+" for both signs, "" for minus alone.
        """
        mean, half = self.mean, self.half_width
        if not half:
            return f"{mean:{sign}.3g}"
        first = max(0, 1 - math.floor(math.log10(half)))
        for places in range(first, first + 4):
            shown = Interval(round(mean, places), round(half, places))
            if shown.above_zero == self.above_zero and shown.below_zero == self.below_zero:
                break
        return f"{mean:{sign}.{places}f} ± {half:.{places}f}"


def standard_error(values: Sequence[float]) -> float | None:
    """Return the standard error of the mean of independent values; None for less than two."""
    return float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else None


def mean_interval(values: Sequence[float]) -> Interval:
    """Return the mean of independent values with its interval from Student's t.

    Raises:
        ValueError: there are no values.
    """
    if not len(values):
        raise Refusal("mean_interval: there are no values; need at least one")
    mean = math.fsum(values) / len(values)
    error = standard_error(values)
    if not error:
        return Interval(mean, 0.0)
    from scipy.special import stdtrit  # a second to import with scipy.stats, which has it too

    return Interval(mean, float(stdtrit(len(values) - 1, 0.5 + CONFIDENCE / 2)) * error)


def paired_interval(a: Sequence[float], b: Sequence[float]) -> Interval:
    """Return the mean of a - b over pairs with its interval from Student's t.

    Raises:
        ValueError: there are not as many of each, or none.
    """
    if len(a) != len(b):
        raise Refusal(f"paired_interval: {len(a)} and {len(b)} values; need as many of each")
    return mean_interval([x - y for x, y in zip(a, b, strict=True)])


def jackknife(
    statistic: Callable[[np.ndarray], float], rows: np.ndarray, blocks: int
) -> list[float]:
    """Return the pseudo-values of a statistic of rows, one for each block of rows left out.

    With b blocks, T of all rows and T_i of all but block i they are b T - (b - 1) T_i. Their mean
    is an estimate without the bias of order 1 / N that a Fréchet distance has, so that estimates of
    different N compare; their spread gives its error, and the spread of the differences between two
    sets of rows made from the same noise gives that of the difference.

    Args:
        statistic: rows [n, D] -> a number.
        rows: [N, D]; block i holds the rows i, i + b, i + 2b ...
        blocks: b, from 2 to N / 2.

    Raises:
        ValueError: the number of blocks is another.

    Source: Efron & Tibshirani 1993, "An introduction to the bootstrap", chapter 11.
    """
    if not 2 <= blocks <= len(rows) // 2:
        raise Refusal(f"jackknife: {blocks} blocks of {len(rows)} rows; need 2 to {len(rows) // 2}")
    block = np.arange(len(rows)) % blocks
    whole = statistic(rows)
    return [blocks * whole - (blocks - 1) * statistic(rows[block != b]) for b in range(blocks)]
