"""The three headline figures of a run, worked out from its metrics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Headline:
    """MACs saved, time saved and quality of the strategy beside the full width's.

    Shares are of the full width's cost; None means that it was not measured. A Fréchet distance
    is lower for better samples; `full_scores` has one for each range of seeds.
    """

    macs_saved: float | None
    time_saved: float | None
    strategy_score: float
    full_scores: tuple[float, ...]

    @property
    def realised_saving(self) -> float | None:
        """Time saved over MACs saved; 1 means that every saved operation saved its time."""
        if not self.macs_saved or self.time_saved is None:
            return None
        return self.time_saved / self.macs_saved

    @property
    def full_mean(self) -> float:
        """Mean score of the full width over its seed ranges."""
        return sum(self.full_scores) / len(self.full_scores)

    @property
    def within_spread(self) -> bool:
        """Whether the strategy scores no worse than the full width's worst range of seeds."""
        return self.strategy_score <= max(self.full_scores)

    def lines(self) -> list[tuple[str, str, str]]:
        """Return (name, figure, remark) of the three figures, as text."""
        unknown = "not measured"
        macs = unknown if self.macs_saved is None else f"{100 * self.macs_saved:.0f} %"
        time = unknown if self.time_saved is None else f"{100 * self.time_saved:.0f} %"
        realised = self.realised_saving
        remark = "measured while sampling"
        if realised is not None:
            remark += f"; realised saving {realised:.2f}"
        scores = ", ".join(f"{score:.3g}" for score in self.full_scores)
        inside = "within" if self.within_spread else "outside"
        n = len(self.full_scores)
        quality = f"{self.strategy_score:.3g} vs {self.full_mean:.3g}"
        against = (
            f"Fréchet distance, strategy vs full width (lower is better); {inside} the full "
            f"width's spread over {n} seeds ({scores})"
            if n > 1
            else "Fréchet distance, strategy vs full width (lower is better), each measured once"
        )
        return [
            ("MACs saved", macs, "a sampled image, beside the full width at every step"),
            ("time saved", time, remark),
            ("quality", quality, against),
        ]


def headline(metrics: dict[str, Any]) -> Headline | None:
    """Work out the headline from the content of metrics.json.

    Args:
        metrics: parsed metrics.json.

    Returns:
        the figures; None when the full width or the strategy has no score yet.
    """
    rows = metrics.get("rows", [])
    full = [row for row in rows if row.get("kind") == "full"]
    chosen = next((row for row in rows if row.get("kind") == "strategy"), None)
    if not full or chosen is None:
        return None
    timing = metrics.get("timing", {}).get("ms_per_image", {})
    if timing:  # measured side by side, which counts more than times minutes apart
        time_saved: float | None = 1.0 - float(timing["strategy"]) / float(timing["full"])
    else:
        time_saved = _saved(full, chosen, "ms_per_image")
    return Headline(
        macs_saved=_saved(full, chosen, "macs_per_image"),
        time_saved=time_saved,
        strategy_score=float(chosen["frechet"]),
        full_scores=tuple(float(row["frechet"]) for row in full),
    )


def _saved(full: list[dict[str, Any]], chosen: dict[str, Any], key: str) -> float | None:
    costs = sorted(float(row[key]) for row in full if row.get(key))
    if not costs or not chosen.get(key):
        return None
    return 1.0 - float(chosen[key]) / costs[len(costs) // 2]  # the median of the seeds' times
