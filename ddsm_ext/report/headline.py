"""The headline figures of a run, worked out from its metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ddsm_ext.report.comparison import Comparison, Line, best_constant, compare, lines_of
from ddsm_ext.report.records import DecodingCost

_UNSCORED = "ddsm eval scores it"


@dataclass(frozen=True)
class Saved:
    """Shares of MACs and time that a strategy saves beside the full width."""

    macs: float
    time: float

    @property
    def realised(self) -> float:
        """Time saved over MACs saved."""
        return self.time / self.macs


@dataclass(frozen=True)
class Headline:
    """MACs saved, time saved and quality of the strategy, beside what a user would take instead.

    Args:
        macs_saved: share of the full width's MACs; None where not counted.
        time_saved: share of its time; None where not measured.
        against_full: the strategy's scores beside the full width's; None where they share no seeds.
        against_constant: beside the best of the constant widths up to the narrowest that costs no
            less; None where none of these is scored.
        constant_cost: what that width costs, as a share of the full width's cost.
        missing_constant: why there is none.
        of_steps: MACs and time saved of the steps alone, without decoding; None of pixels, or where
            one of these is not known.
    """

    macs_saved: float | None
    time_saved: float | None
    against_full: Comparison | None
    against_constant: Comparison | None
    constant_cost: float | None = None
    missing_constant: str = _UNSCORED
    of_steps: Saved | None = None

    @property
    def realised_saving(self) -> float | None:
        """Time saved over MACs saved; 1 means that every saved operation saved its time."""
        if not self.macs_saved or self.time_saved is None:
            return None
        return self.time_saved / self.macs_saved

    def lines(self) -> list[tuple[str, str, str]]:
        """Return (name, figure, remark) of each figure, as text."""
        unknown = "not measured"
        macs = unknown if self.macs_saved is None else f"{100 * self.macs_saved:.0f} %"
        time = unknown if self.time_saved is None else f"{100 * self.time_saved:.0f} %"
        realised = self.realised_saving
        remark = "measured while sampling"
        if realised is not None:
            remark += f"; realised saving {realised:.2f}"
        return [
            ("MACs saved", macs, "a sampled image, beside the full width at every step"),
            ("time saved", time, remark),
            _quality("quality", self.against_full, "the full width at every step"),
            self._constant(),
        ]

    def _constant(self) -> tuple[str, str, str]:
        share = "" if self.constant_cost is None else f" ({100 * self.constant_cost:.0f} %)"
        other = f"{{}} at every step{share}, the best width up to one of no less cost"
        return _quality("beside constant", self.against_constant, other, self.missing_constant)


def _quality(
    name: str, found: Comparison | None, other: str, missing: str = _UNSCORED
) -> tuple[str, str, str]:
    if found is None:
        return name, "not measured", missing
    scores = f"Fréchet distance {found.line.mean:.3g} against {found.other.mean:.3g} of "
    interval = f"95 % interval over {found.ranges} seed ranges" if found.ranges > 1 else "one range"
    images = "" if found.line.images is None else f" of {found.line.images} samples"
    remark = f"{scores}{other.format(found.other.label)} (lower is better); {interval}{images}"
    return name, found.words, remark


def headline(
    metrics: Mapping[str, Any], unit: str = "macs", decoding: DecodingCost | None = None
) -> Headline | None:
    """Work out the headline from the content of metrics.json.

    Args:
        metrics: parsed metrics.json.
        unit: what the search counted as cost, "macs" or "ms".
        decoding: what of each image's cost is decoding; None: nothing.

    Returns:
        the figures; None when the full width or the strategy has no score yet.
    """
    lines = lines_of(metrics.get("rows", []))
    full = next((line for line in lines if line.kind == "full"), None)
    chosen = next((line for line in lines if line.kind == "strategy"), None)
    if full is None or chosen is None:
        return None
    timing = metrics.get("timing", {}).get("ms_per_image", {})
    times = full.ms, chosen.ms
    if timing:  # measured side by side, which counts more than times minutes apart
        times = float(timing["full"]), float(timing["strategy"])
    constant = best_constant(chosen, lines, unit)
    narrower = any(line.kind == "width" and line.cost(unit) for line in lines)
    return Headline(
        macs_saved=_saved(full.macs, chosen.macs),
        time_saved=_saved(*times),
        against_full=compare(chosen, full),
        against_constant=None if constant is None else compare(chosen, constant),
        constant_cost=_share(full, constant, unit) if constant else None,
        missing_constant="no narrower width costs as much" if narrower else _UNSCORED,
        of_steps=None if decoding is None else _of_steps(full, chosen, times, decoding),
    )


def _share(full: Line, line: Line, unit: str) -> float | None:
    whole, part = full.cost(unit), line.cost(unit)
    return None if not whole or not part else part / whole


def _saved(full: float | None, chosen: float | None, beside: float = 0.0) -> float | None:
    """Share of a cost that is saved, without what of both is `beside` the steps."""
    if not full or not chosen or full <= beside:
        return None
    return 1.0 - (chosen - beside) / (full - beside)


def _of_steps(
    full: Line, chosen: Line, times: tuple[float | None, float | None], decoding: DecodingCost
) -> Saved | None:
    macs, time = _saved(full.macs, chosen.macs, decoding.macs), _saved(*times, decoding.ms)
    return Saved(macs, time) if macs and time is not None else None
