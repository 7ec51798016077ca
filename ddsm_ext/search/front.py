"""The Pareto front of a search, and the choice of one strategy from it.

Non-domination, spread and hypervolume are those of points (quality, cost), both minimised.
"""

from __future__ import annotations

import dataclasses
import decimal
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np

from ddsm_ext.io.document import Document
from ddsm_ext.io.typed import Amount, Count, Label, Positive, read
from ddsm_ext.sampling.strategy import Strategy
from ddsm_ext.settings import Refusal

Point = tuple[float, float]  # (quality, cost)
# A budget of 0.5 takes a strategy of exactly half the cost, whatever the order of its sum
BUDGET_TOLERANCE = 1e-9


def rounded_up(value: float) -> str:
    """Return a number in six digits that read as no less, so that it may be typed as a limit."""
    text = f"{value:.6g}"
    if float(text) >= value:
        return text
    six = decimal.Context(prec=6, rounding=decimal.ROUND_CEILING)
    return f"{six.create_decimal_from_float(value):g}"


@dataclass(frozen=True)
class FrontPoint:
    """One strategy of the front.

    Args:
        strategy: the strategy.
        cost: cost of an image over all steps, in the front's unit.
        cost_relative: that cost as a fraction of the full width's.
        quality: score that made the front, lower is better.
        standard_error: of the score; None where it is not known.
        samples: how many samples were scored; 0 where the quality is the proxy.
        loss: how much the score is above the full width's, on the same seeds.
        loss_half_width: half-width of the 95 % interval of that difference; 0 where not known.
        proxy: sampler-weighted error of the widths, mean over the steps; None without errors.
        generation: generation that first scored it, 0 the first race.
        rescored: whether the score is of seeds that had no part in choosing this strategy; the
            score that chose it is the best of several, and so too good.
    """

    strategy: Strategy
    cost: Positive
    cost_relative: Positive
    quality: float
    standard_error: Amount | None = None
    samples: Count = 0
    loss: float = 0.0
    loss_half_width: Amount = 0.0
    proxy: Amount | None = None
    generation: Count = 0
    rescored: bool = False

    @property
    def greatest_loss(self) -> float:
        """Upper end of the loss's interval: what the strategy was shown to lose at most."""
        return self.loss + self.loss_half_width


@dataclass(frozen=True)
class Front(Document):
    """Whole Pareto front by rising cost.

    Args:
        points: non-dominated strategies, by rising cost and so by falling (better) quality.
        constants: the constant-width strategies, widest first, for comparison.
        cost_unit: unit of the costs: "macs" or "ms", an image over all steps of the sampler.
        quality_name: what the quality is, for people to read.
        chosen: the strategy chosen under the search's own budget; None if nothing was within it.
            Its scores may be of other samples than the points': its loss is to the full width's on
            those, and its quality is the full width's here plus that loss.
        network_evaluations: evaluations of the network that the search's scores took.
    """

    what: ClassVar[str] = "front"
    file_keys: ClassVar[tuple[str, ...]] = (
        "cost_unit",
        "quality_name",
        "full_cost",
        "full_quality",
        "network_evaluations",
        "chosen",
        "constants",
        "points",
    )

    points: tuple[FrontPoint, ...]
    constants: tuple[FrontPoint, ...]
    cost_unit: str
    quality_name: str
    chosen: FrontPoint | None = None
    network_evaluations: int = 0

    @property
    def full_cost(self) -> float:
        """Cost of the full width at every step, in the front's unit."""
        return self.constants[0].cost

    @property
    def full_quality(self) -> float:
        """Quality of the full width at every step."""
        return self.constants[0].quality

    def pick(
        self,
        *,
        max_cost: float | None = None,
        budget_ms: float | None = None,
        max_quality_loss: float | None = None,
    ) -> FrontPoint:
        """Return the best strategy within a budget, or the cheapest within a loss of quality.

        A strategy's loss counts by the upper end of its interval, so that none is taken for the
        luck of one score; the full width itself loses nothing.

        Args:
            max_cost: most cost as a fraction of the full width's, in the front's unit.
            budget_ms: most ms an image over all steps, for a front in ms.
            max_quality_loss: most that the quality may be above the full width's, in its own unit.
                With a budget too, the best within the budget must also keep to it. None with no
                budget means 0: the cheapest that is shown to be no worse than the full width.

        Raises:
            ValueError: nothing on the front is within the limits, or they do not fit together.
        """
        limit, text = self._limit(max_cost, budget_ms)
        loss = max_quality_loss
        if loss is None and limit is None:
            loss = 0.0
        if loss is not None and not loss >= 0:
            raise Refusal(f"pick: max_quality_loss is {loss}; need 0 or more")
        if limit is None:
            assert loss is not None
            return self._cheapest(loss)
        within = [p for p in self.points if p.cost <= limit * (1 + BUDGET_TOLERANCE)]
        if not within:
            cheapest = self.points[0]
            raise Refusal(
                f"pick: the budget is {text}, the cheapest strategy costs {self._cost(cheapest)}; "
                "need at least that"
            )
        best = min(within, key=lambda p: (p.greatest_loss, p.cost))
        if loss is not None and best.greatest_loss > loss:
            raise Refusal(
                f"pick: the best strategy within {text} loses {best.loss:.6g} of quality, at most "
                f"{rounded_up(best.greatest_loss)}, max_quality_loss is {loss:g}; need a larger "
                "budget or loss"
            )
        return best

    def _cheapest(self, loss: float) -> FrontPoint:
        within = (p for p in self.points if p.greatest_loss <= loss)
        return next(within, self.constants[0])

    def _limit(self, max_cost: float | None, budget_ms: float | None) -> tuple[float | None, str]:
        """The budget in the costs' unit, None for none, and as text."""
        if max_cost is not None and budget_ms is not None:
            raise Refusal("pick: max_cost and budget_ms are both set; need one")
        name, value = ("max_cost", max_cost) if budget_ms is None else ("budget_ms", budget_ms)
        if value is None:
            return None, ""
        if not (math.isfinite(value) and value > 0):
            raise Refusal(f"pick: {name} is {value}; need a number above 0")
        if name == "max_cost":
            return value * self.full_cost, f"{value:g} of the full width's {_NAMES[self.cost_unit]}"
        if self.cost_unit != "ms":
            raise Refusal(
                f"pick: {name} is set, the front's costs are in {self.cost_unit}; need ms"
            )
        return value, f"{value:g} ms an image"

    def _cost(self, point: FrontPoint) -> str:
        absolute = f", {rounded_up(point.cost)} ms an image" if self.cost_unit == "ms" else ""
        share = rounded_up(point.cost / self.full_cost)
        return f"{share} of the full width's {_NAMES[self.cost_unit]}{absolute}"

    def to_dict(self) -> dict[str, Any]:
        """Return the front as `front.json` has it."""
        return {
            "cost_unit": self.cost_unit,
            "quality_name": self.quality_name,
            "full_cost": self.full_cost,
            "full_quality": self.full_quality,
            "network_evaluations": self.network_evaluations,
            "chosen": _to_row(self.chosen) if self.chosen else None,
            "constants": [{"width": p.strategy.widths[0], **_to_row(p)} for p in self.constants],
            "points": [_to_row(p) for p in self.points],
        }

    @classmethod
    def from_content(cls, content: Any, source: str) -> Self:
        """Read a file's content; one from before evaluations were counted says none."""
        if isinstance(content, dict):
            content = {"network_evaluations": 0, **content}
        return super().from_content(content, source)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Front:
        """Build a front from `to_dict()` output.

        Raises:
            ValueError: it has no strategies, or a value is refused.
        """
        if not values["points"] or not values["constants"]:
            raise Refusal("holds no strategies; need points and constants")
        read(Positive, values["full_cost"], "full_cost")  # that of the first of the constants
        full, rows = read(float, values["full_quality"], "full_quality"), dict(values)
        for name in ("points", "constants"):
            listed = read(tuple[Any, ...], values[name], name)
            rows[name] = tuple(_from_row(r, full, f"{name}[{i}]") for i, r in enumerate(listed))
        chosen = values["chosen"]
        return cls(
            rows["points"],
            rows["constants"],
            read(Literal["macs", "ms"], values["cost_unit"], "cost_unit"),
            read(Label, values["quality_name"], "quality_name"),
            None if chosen is None else _from_row(chosen, full, "chosen"),
            read(Count, values["network_evaluations"], "network_evaluations"),
        )


_NAMES = {"macs": "MACs", "ms": "time"}
# What a row has beside a point's fields: the width of a constant, and in earlier versions a score
_BESIDE = ("width", "full", "cheap")


def _to_row(point: FrontPoint) -> dict[str, Any]:
    row = dataclasses.asdict(point)
    strategy = row.pop("strategy")
    return {**row, "strategy": {name: strategy[name] for name in ("widths", "cuts", "origin")}}


def _from_row(row: Any, full_quality: float, name: str) -> FrontPoint:
    """The point of a row; one of an earlier version has a single score, and `cheap` for proxy."""
    if isinstance(row, Mapping):
        quality = read(float, row.get("quality"), f"{name}.quality")
        own = {key: value for key, value in row.items() if key not in _BESIDE}
        row = {"proxy": row.get("cheap"), "loss": quality - full_quality, **own}
    point: FrontPoint = read(FrontPoint, row, name)
    return point


def nondominated(points: Sequence[Point]) -> list[int]:
    """Indices of the points that no other one dominates, by rising cost; of equal points the first.

    Args:
        points: (quality, cost) pairs, finite.
    """
    order = sorted(range(len(points)), key=lambda i: (points[i][1], points[i][0], i))
    front: list[int] = []
    for i in order:
        if not front or points[i][0] < points[front[-1]][0]:
            front.append(i)
    return front


def spread_choice(points: Sequence[Point], count: int) -> list[int]:
    """Indices of `count` points of a front, spread over it: the ends first, then the largest gaps.

    Args:
        points: a front as `nondominated` orders it.
        count: how many to choose; all if there are no more.
    """
    if count >= len(points):
        return list(range(len(points)))
    if count <= 0:
        return []
    values = np.asarray(points, dtype=np.float64)  # [N, 2]
    extent = values.max(axis=0) - values.min(axis=0)
    values = values / np.where(extent > 0, extent, 1.0)
    chosen = [len(points) // 2] if count == 1 else [0, len(points) - 1]
    while len(chosen) < count:
        gaps = np.linalg.norm(values[:, None] - values[None, chosen], axis=2).min(axis=1)
        gaps[chosen] = -1.0
        chosen.append(int(np.argmax(gaps)))
    return sorted(chosen)


class HypervolumeMeter:
    """Share of the box between a fixed ideal and a fixed reference point that a front dominates.

    Both points come from the constant-width strategies, so that they stay the same over a search:
    the ideal is their least quality and cost, the reference their greatest ones plus 10 % of the
    difference.

    Args:
        constants: (quality, cost) of the constant-width strategies.
    """

    def __init__(self, constants: Sequence[Point]) -> None:
        values = np.asarray(constants, dtype=np.float64)  # [W, 2]
        self.ideal = values.min(axis=0)
        extent = values.max(axis=0) - self.ideal
        # with one width, or equal qualities, the box still needs a size
        extent = np.where(extent > 0, extent, np.maximum(np.abs(self.ideal), 1e-12))
        self.reference = self.ideal + 1.1 * extent

    def __call__(self, points: Sequence[Point]) -> float:
        """Hypervolume of the points over that of the box; above 1 if points beat the ideal.

        Args:
            points: (quality, cost) pairs, finite; those beyond the reference count nothing.
        """
        from pymoo.indicators.hv import HV

        inside = [points[i] for i in nondominated(points)]
        inside = [p for p in inside if p[0] < self.reference[0] and p[1] < self.reference[1]]
        if not inside:
            return 0.0
        box = float(np.prod(self.reference - self.ideal))
        return float(HV(ref_point=self.reference)(np.asarray(inside, dtype=np.float64))) / box
