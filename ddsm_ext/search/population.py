"""The first population: constant widths, budget solutions of the sensitivity, random segments."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ddsm_ext.search.budget import solve_budget
from ddsm_ext.search.genome import Genome, StrategySpace
from ddsm_ext.search.objective import StepCost
from ddsm_ext.settings import Refusal

# Random genomes tried for each place before a small space counts as used up
_TRIES = 50


def constant_genomes(space: StrategySpace) -> list[Genome]:
    """Return the constant-width strategies, in the order of the space's widths."""
    return [space.constant(i) for i in range(len(space.widths))]


def errors_by_level(
    space: StrategySpace, log_snrs: Sequence[float], errors: np.ndarray
) -> np.ndarray:
    """Sum the errors of steps that share a noise level.

    Args:
        space: the strategies.
        log_snrs: [S] log-SNR of every step.
        errors: [S, W] error of every step and width.

    Returns:
        [L, W] total error of every level, in the space's order.

    Raises:
        ValueError: the shape is another, or a value is not finite.
    """
    table = np.asarray(errors, dtype=np.float64)  # [S, W]
    shape = (space.steps, len(space.widths))
    if table.shape != shape or not np.isfinite(table).all():
        raise Refusal(
            f"search: errors has shape {list(table.shape)}; need finite values, {list(shape)}"
        )
    rank = np.searchsorted(space.levels, np.asarray(log_snrs, dtype=np.float64))
    total = np.zeros((len(space.levels), shape[1]))
    np.add.at(total, rank, table)
    return total


def budget_genomes(
    space: StrategySpace, cost: StepCost, level_errors: np.ndarray, budgets: Sequence[float]
) -> list[Genome]:
    """Return the strategies of least total error at each budget that can be met.

    Args:
        space: the strategies.
        cost: their cost.
        level_errors: [L, W] from `errors_by_level`.
        budgets: fractions of the full width's cost.
    """
    found: list[Genome] = []
    level_costs = space.counts[:, None] * cost.per_width  # [L, W]
    for budget in budgets:
        limit = budget * cost.full
        if limit < cost.per_width.min() * space.steps:
            continue
        solution = solve_budget(level_errors, level_costs, limit, space.segments)
        genome = space.from_levels(solution.choice)
        if genome not in found:
            found.append(genome)
    return found


def random_genomes(
    space: StrategySpace, count: int, known: Sequence[Genome], random: np.random.Generator
) -> list[Genome]:
    """Return `count` different random strategies that are not among `known`, fewer if the space
    runs out."""
    seen, made = set(known), list[Genome]()
    for _ in range(_TRIES * count):
        if len(made) == count:
            break
        segments = int(random.integers(1, space.segments + 1))
        cuts = np.sort(random.integers(0, len(space.levels) + 1, segments - 1))
        widths = random.integers(0, len(space.widths), segments)
        genome = space.canonical(cuts.tolist(), widths.tolist())
        if genome not in seen:
            seen.add(genome)
            made.append(genome)
    return made
