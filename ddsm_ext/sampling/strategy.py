"""A strategy: which width the network runs at each noise level. Floats only, imports no torch.

The noise level is the log-SNR, the natural logarithm of alpha-bar / (1 - alpha-bar): high is clean
(t small), low is noisy. Unlike a timestep it means the same for every sampler and step count.
"""

from __future__ import annotations

import bisect
import itertools
import json
import math
import numbers
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ddsm_ext.io.document import Document
from ddsm_ext.io.files import one_line
from ddsm_ext.settings import Refusal, TypeRefusal
from ddsm_ext.width import check_width


@dataclass(frozen=True)
class Strategy(Document):
    """Piecewise-constant width over log-SNR.

    `widths[i]` holds for cuts[i - 1] <= log-SNR < cuts[i]: a level equal to a cut belongs to the
    segment above it, the cleaner one. The first segment reaches to -inf, the last to +inf.

    Args:
        widths: width of each segment from noisy to clean, each in (0, 1].
        cuts: strictly increasing finite log-SNRs between the segments, len(widths) - 1 of them.
        origin: where the strategy comes from, JSON-ready; not part of equality.

    Raises:
        TypeError: a width or cut is not a number, or `origin` is no mapping of JSON values.
        ValueError: a width, a cut, their order or their number does not fit.
    """

    what: ClassVar[str] = "strategy"

    widths: tuple[float, ...]
    cuts: tuple[float, ...] = ()
    origin: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        widths = tuple(check_width(w) for w in _listed("widths", self.widths))
        cuts = tuple(_number("cut", c) for c in _listed("cuts", self.cuts))
        if not widths or len(cuts) != len(widths) - 1:
            raise Refusal(
                f"Strategy: got {len(widths)} widths and {len(cuts)} cuts; "
                "need one or more widths and one cut fewer"
            )
        for cut in cuts:
            if not math.isfinite(cut):
                raise Refusal(f"Strategy: a cut is {cut}; need finite log-SNRs")
        for low, high in itertools.pairwise(cuts):
            if not low < high:
                raise Refusal(
                    f"Strategy: cut {low} is followed by {high}; need strictly increasing cuts"
                )
        object.__setattr__(self, "widths", widths)
        object.__setattr__(self, "cuts", cuts)
        object.__setattr__(self, "origin", _json_mapping(self.origin))

    @classmethod
    def constant(cls, width: float) -> Strategy:
        """Return the strategy that runs every step at `width`."""
        return cls(widths=(width,), origin={"kind": "constant"})

    @classmethod
    def from_timestep_widths(
        cls,
        widths: Sequence[float],
        log_snrs: Sequence[float],
        origin: Mapping[str, Any] | None = None,
    ) -> Strategy:
        """Return the strategy that gives `widths[t]` at noise level `log_snrs[t]` for every t.

        Runs of equal width become one segment; a cut lies halfway (in log-SNR) between the two
        timesteps that it separates.

        Args:
            widths: [T] width of each timestep, t = 0 the least noisy.
            log_snrs: [T] strictly decreasing log-SNR of each timestep.
            origin: where the widths come from; None records the number of timesteps.

        Raises:
            ValueError: the lengths differ, or `log_snrs` is not strictly decreasing.
        """
        widths = [check_width(w) for w in widths]
        log_snrs = [_number("log-SNR", v) for v in log_snrs]
        if not widths or len(widths) != len(log_snrs):
            raise Refusal(
                f"from_timestep_widths: got {len(widths)} widths and {len(log_snrs)} log-SNRs; "
                "need as many of each, at least one"
            )
        for t, (here, there) in enumerate(itertools.pairwise(log_snrs)):
            if not there < here:
                raise Refusal(
                    f"from_timestep_widths: log-SNR is {here} at t = {t} and {there} at "
                    f"t = {t + 1}; need it strictly decreasing"
                )
        segment_widths, cuts = [widths[-1]], []
        for t in range(len(widths) - 2, -1, -1):  # from noisy to clean
            if widths[t] != segment_widths[-1]:
                cuts.append(halfway(log_snrs[t + 1], log_snrs[t]))
                segment_widths.append(widths[t])
        if origin is None:
            origin = {"kind": "timestep widths", "timesteps": len(widths)}
        return cls(tuple(segment_widths), tuple(cuts), origin)

    def width_at(self, log_snr: float) -> float:
        """Return the width at `log_snr`; at a cut, the width of the cleaner segment.

        Raises:
            ValueError: `log_snr` is NaN.
        """
        if math.isnan(log_snr):
            raise Refusal("Strategy.width_at: log_snr is nan; need a number")
        return self.widths[bisect.bisect_right(self.cuts, log_snr)]

    def widths_for(self, log_snrs: Iterable[float]) -> list[float]:
        """Return the width at each of `log_snrs`, e.g. those of a sampler's steps."""
        return [self.width_at(float(v)) for v in log_snrs]


def as_strategy(strategy: Strategy | float) -> Strategy:
    """Return `strategy`, or the constant strategy of a width given as a number.

    Raises:
        TypeError: it is neither.
    """
    if isinstance(strategy, Strategy):
        return strategy
    if isinstance(strategy, numbers.Real) and not isinstance(strategy, bool):
        return Strategy.constant(float(strategy))
    raise TypeRefusal(f"strategy is {reprlib.repr(strategy)}; need a Strategy or a width in (0, 1]")


def _listed(name: str, values: object) -> tuple[Any, ...]:
    # shown by reprlib: a damaged file may hold megabytes where a list of numbers belongs
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
        raise TypeRefusal(f"Strategy: {name} is {reprlib.repr(values)}; need a list of numbers")
    return tuple(values)


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeRefusal(f"Strategy: a {name} is {reprlib.repr(value)}; need a number")
    try:
        return float(value)
    except OverflowError:
        raise Refusal(f"Strategy: a {name} is beyond the range of a float") from None


def _json_mapping(origin: object) -> dict[str, Any]:
    """Return a deep copy of `origin` made of JSON values, so that saving cannot fail later."""
    if not isinstance(origin, Mapping):
        raise TypeRefusal(
            f"Strategy: origin is {reprlib.repr(origin)}; need a mapping of JSON values"
        )
    try:
        return json.loads(json.dumps(dict(origin), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeRefusal(f"Strategy: origin is not JSON: {one_line(error)}") from None


def halfway(low: float, high: float) -> float:
    """Return a cut in (low, high]; `high` itself when no float lies between the two."""
    middle = low + 0.5 * (high - low)
    return middle if middle > low else high
