"""What a strategy costs on a sampler's steps, by width and in all, and its budget."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Self

import numpy as np

from ddsm_ext.io.document import Document
from ddsm_ext.io.typed import Amount, Count, Positive, Row, Width, read
from ddsm_ext.search.config import COSTS, SearchConfig
from ddsm_ext.search.front import BUDGET_TOLERANCE, rounded_up
from ddsm_ext.search.genome import Genome, StrategySpace
from ddsm_ext.settings import Refusal
from ddsm_ext.width import find_width

# Network evaluations of the DDSM paper's search: 50 strategies in each of 10 generations, 4096
# samples a score, 1000 steps a sample (arXiv 2310.03337, section 4 and its code).
PAPER_EVALUATIONS = 50 * 10 * 4096 * 1000
# Two measured times that differ by less are taken for the same
_LEAST_SAVING = 0.02


def share_of_paper(evaluations: int) -> str:
    """Return a number of network evaluations as a share of the paper's search, e.g. "0.38 %"."""
    return f"{100 * evaluations / PAPER_EVALUATIONS:.2g} %"


@dataclass(frozen=True)
class _Row(Row):
    """A row of a cost table's file: a width, its cost, and where it was measured their spread."""

    width: Width
    cost: Positive
    min_ms: Amount | None = None
    median_ms: Amount | None = None
    iqr_ms: Amount | None = None
    rounds: Count | None = None

    @property
    def spread(self) -> dict[str, float]:
        """The measured values by name; none in a table of MACs."""
        return {k: v for k, v in self.to_dict().items() if k not in ("width", "cost")}


@dataclass(frozen=True)
class CostTable(Document):
    """Width -> cost of one image and step.

    Args:
        unit: "macs" or "ms".
        costs: width -> cost; positive and finite.
        conditions: where and how it was measured (machine, cpu, gpu, device, torch, threads,
            batch, dtype, network, date); empty for MACs.
        spread: width -> min, median and interquartile range of the network's step in ms, and the
            rounds; empty for MACs.
        overhead: ms of each cost that no width saves: the sampler's own work on a step.
        decoding: cost of decoding an image of latents, which comes once, beside its steps.
    """

    what: ClassVar[str] = "cost table"
    file_keys: ClassVar[tuple[str, ...]] = ("unit", "conditions", "overhead", "decoding", "rows")

    unit: str
    costs: dict[float, float]
    conditions: dict[str, Any] = field(default_factory=dict)
    spread: dict[float, dict[str, float]] = field(default_factory=dict)
    overhead: float = 0.0
    decoding: float = 0.0

    def __post_init__(self) -> None:
        if self.unit not in COSTS:
            raise Refusal(f"cost table: unit is {self.unit!r}; need macs or ms")
        for width, cost in self.costs.items():
            if not (0 < width <= 1 and math.isfinite(cost) and cost > 0):
                raise Refusal(
                    f"cost table: width {width} costs {cost}; need a width in (0, 1], a cost > 0"
                )
        if not self.costs:
            raise Refusal("cost table: has no widths; need at least one")
        if not 0 <= self.overhead < min(self.costs.values()):
            raise Refusal(
                f"cost table: overhead is {self.overhead:g}; need 0 or more, below every cost"
            )
        if not 0 <= self.decoding < math.inf:
            raise Refusal(f"cost table: decoding is {self.decoding:g}; need 0 or more")

    def to_dict(self) -> dict[str, Any]:
        """Return the table as its file has it: a row a width."""
        rows = [
            {"width": width, "cost": cost, **self.spread.get(width, {})}
            for width, cost in sorted(self.costs.items(), reverse=True)
        ]
        return {
            "unit": self.unit,
            "conditions": self.conditions,
            "overhead": self.overhead,
            "decoding": self.decoding,
            "rows": rows,
        }

    @classmethod
    def from_content(cls, content: Any, source: str) -> Self:
        """Read a file's content; one from before overhead and decoding were measured has none."""
        if isinstance(content, dict):
            content = {"overhead": 0.0, "decoding": 0.0, **content}
        return super().from_content(content, source)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CostTable:
        """Build a table from `to_dict()` output.

        Raises:
            ValueError: a value is refused.
        """
        rows = read(tuple[_Row, ...], values["rows"], "rows")
        return cls(
            unit=read(Literal["macs", "ms"], values["unit"], "unit"),
            costs={row.width: row.cost for row in rows},
            conditions=read(dict[str, Any], values["conditions"], "conditions"),
            spread={row.width: row.spread for row in rows if row.spread},
            overhead=read(Amount, values["overhead"], "overhead"),
            decoding=read(Amount, values["decoding"], "decoding"),
        )

    def of_widths(self, widths: Sequence[float]) -> CostTable:
        """Return the table of some of its widths.

        Raises:
            ValueError: it lacks one.
        """
        rows = {w: row for w, row in self.spread.items() if find_width(widths, w) is not None}
        costs = {float(w): _lookup(self.costs, w) for w in widths}
        return replace(self, costs=costs, spread=rows)

    def cost_of(self, width: float) -> float:
        """Return the cost of an image and step at a width.

        Raises:
            ValueError: the table lacks it.
        """
        return _lookup(self.costs, width)

    def useful_widths(self) -> list[float]:
        """Return the widths that cost less than every wider one, from wide to narrow."""
        kept: list[float] = []
        for width in sorted(self.costs, reverse=True):
            least = min((self.costs[w] for w in kept), default=math.inf)
            if self.costs[width] < least * (1 - _LEAST_SAVING):
                kept.append(width)
        return kept

    def check_conditions(self, expect: Mapping[str, Any]) -> None:
        """Refuse a table in ms that was measured elsewhere or otherwise.

        Args:
            expect: conditions that it must have been measured under; others may differ.

        Raises:
            ValueError: one is another; the sentence names it.
        """
        for name, value in expect.items():
            found = self.conditions.get(name)
            if self.unit == "ms" and found != value:
                raise Refusal(
                    f"cost table: was measured with {name} {json.dumps(found)}, this run has "
                    f"{json.dumps(value)}; need a new measurement"
                )


class StepCost:
    """Cost of a strategy over all steps of a sampler: sum over runs of the cost of their width.

    Args:
        table: width -> cost of one image and step, in MACs or ms; positive, finite.
        space: the strategies and steps.
        fixed: cost of an image that no strategy changes, as of a weak model that guides, or of
            decoding.

    Raises:
        ValueError: the table lacks a width or holds a cost that is not positive and finite.
    """

    def __init__(
        self, table: Mapping[float, float], space: StrategySpace, fixed: float = 0.0
    ) -> None:
        self.per_width = np.array([_lookup(table, w) for w in space.widths], dtype=np.float64)
        # an image, the full width at every step
        self.full = _lookup(table, 1.0) * space.runs + fixed
        self.cheapest = float(self.per_width.min()) * space.runs + fixed
        self.fixed = fixed
        self.space = space

    def __call__(self, genome: Genome) -> float:
        """Return the cost of an image, in the table's unit."""
        return float(self.space.width_counts(genome) @ self.per_width) + self.fixed

    def relative(self, genome: Genome) -> float:
        """Return the cost as a fraction of the full width's."""
        return self(genome) / self.full


def _lookup(table: Mapping[float, float], width: float) -> float:
    index = find_width(table, width)
    if index is None:
        listed = ", ".join(f"{w:g}" for w in table)
        raise Refusal(f"search: the cost table has no width {width:g}, only {listed}; need it")
    cost = list(table.values())[index]
    if not (math.isfinite(cost) and cost > 0):
        raise Refusal(f"search: the cost of width {width:g} is {cost}; need > 0")
    return float(cost)


def cost_per_width(
    config: SearchConfig, table: CostTable | Mapping[float, float]
) -> dict[float, float]:
    """Return width -> cost of a table, in the unit that the configuration counts.

    Raises:
        ValueError: the table is in the other unit.
    """
    if isinstance(table, CostTable):
        if table.unit != config.cost:
            raise Refusal(
                f"search: the cost table is in {table.unit}, objectives counts {config.cost}; "
                "need the same"
            )
        table = table.costs
    return {float(w): float(c) for w, c in table.items()}


def budget_cost(config: SearchConfig, cost: StepCost) -> float | None:
    """Return the budget of the chosen strategy in the costs' unit, an image; None for none."""
    fraction = config.budget_macs if config.cost == "macs" else config.budget_time
    return config.budget_ms if fraction is None else fraction * cost.full


def check_budget(config: SearchConfig, cost: StepCost, decoding: float = 0.0) -> None:
    """Refuse a budget that no strategy meets.

    Args:
        config: of the search.
        cost: of the strategies.
        decoding: what of an image's cost is decoding.

    Raises:
        ValueError: the budget is below the cheapest strategy.
    """
    budget = budget_cost(config, cost)
    cheapest = cost.cheapest
    if budget is not None and budget < cheapest * (1 - BUDGET_TOLERANCE):
        unit = "MACs" if config.cost == "macs" else "ms"
        share = decoding / cost.full
        decoder = f"decoding alone takes {decoding:.6g} ({share:.4g}), " if decoding else ""
        raise Refusal(
            f"search: the budget is {budget:.6g} {unit} an image ({budget / cost.full:.4g} of the "
            f"full width's), {decoder}the cheapest strategy costs {rounded_up(cheapest)} "
            f"({rounded_up(cheapest / cost.full)}); need at least that"
        )
