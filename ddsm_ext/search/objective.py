"""The two objectives: what a strategy costs on a sampler's steps, and quality callables for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ddsm_ext.sampling.strategy import Strategy
from ddsm_ext.search.config import SearchConfig
from ddsm_ext.search.cost_table import CostTable
from ddsm_ext.search.genome import Genome, StrategySpace
from ddsm_ext.settings import Refusal
from ddsm_ext.width import find_width

Quality = Callable[[Strategy], float]


class StepCost:
    """Cost of a strategy over all steps of a sampler: sum over steps of the cost of its width.

    Args:
        table: width -> cost of one image and step, in MACs or ms; positive, finite.
        space: the strategies and steps.

    Raises:
        ValueError: the table lacks a width or holds a cost that is not positive and finite.
    """

    def __init__(self, table: Mapping[float, float], space: StrategySpace) -> None:
        self.per_width = np.array([_lookup(table, w) for w in space.widths], dtype=np.float64)
        self.full = _lookup(table, 1.0) * space.steps  # an image, the full width at every step
        self.space = space

    def __call__(self, genome: Genome) -> float:
        """Return the cost of an image, in the table's unit."""
        return float(self.space.width_counts(genome) @ self.per_width)

    def relative(self, genome: Genome) -> float:
        """Return the cost as a fraction of the full width's."""
        return self(genome) / self.full


def _lookup(table: Mapping[float, float], width: float) -> float:
    index = find_width(table, width)
    if index is None:
        listed = ", ".join(f"{w:g}" for w in table)
        raise Refusal(f"search: the cost table has no width {width:g}; it has {listed}")
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


def check_budget(config: SearchConfig, cost: StepCost) -> None:
    """Refuse a budget that no strategy meets.

    Raises:
        ValueError: the budget is below the cheapest strategy.
    """
    budget = budget_cost(config, cost)
    cheapest = float(cost.per_width.min()) * cost.space.steps
    if budget is not None and budget < cheapest * (1 - 1e-9):
        unit = "MACs" if config.cost == "macs" else "ms"
        raise Refusal(
            f"search: the budget is {budget:.6g} {unit} an image ({budget / cost.full:.4g} of the "
            f"full width's), the cheapest strategy costs {cheapest:.6g} "
            f"({cheapest / cost.full:.4g}); need at least that"
        )


def additive_quality(
    errors: np.ndarray, widths: Sequence[float], log_snrs: Sequence[float]
) -> Quality:
    """quality(strategy) = mean over steps s of errors[s, width of s]; the cheapest proxy.

    Args:
        errors: [S, W] error of every step and width, e.g. `Sensitivity.for_steps`.
        widths: [W] widths of the columns.
        log_snrs: [S] log-SNR of every step.

    Raises:
        ValueError: the shapes differ.
    """
    table = np.asarray(errors, dtype=np.float64)
    if table.shape != (len(log_snrs), len(widths)):
        raise Refusal(
            f"additive_quality: errors has shape {list(table.shape)}; need "
            f"[{len(log_snrs)}, {len(widths)}]"
        )
    index = {float(w): i for i, w in enumerate(widths)}
    rows = np.arange(len(log_snrs))

    def quality(strategy: Strategy) -> float:
        columns = [index[w] for w in strategy.widths_for(log_snrs)]
        return float(table[rows, columns].mean())

    return quality
