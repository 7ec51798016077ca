"""The strategies that a search begins with: the best under the additive proxy, and plain ones.

The proxy of a strategy's quality is the mean over its steps of the sampler-weighted error of each
step's width. Its best strategies are solved for, so that nothing has to be searched in it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ddsm_ext.search.budget import solve_budget
from ddsm_ext.search.cost import StepCost
from ddsm_ext.search.front import BUDGET_TOLERANCE, nondominated, spread_choice
from ddsm_ext.search.genome import Genome, StrategySpace

# 1000 levels take the solver two seconds a budget, 100 of ten levels each a twentieth of that
_MOST_LEVELS = 100
# Costs at which the narrowest width is followed by the full one
_GUESSES = 5


def budget_genome(
    space: StrategySpace,
    cost: StepCost,
    level_errors: np.ndarray,
    limit: float,
    segments: int,
) -> Genome:
    """Return the strategy of least total error within a cost.

    Args:
        space: the strategies.
        cost: their cost.
        level_errors: [L, W] from `StrategySpace.by_level`.
        limit: most cost of an image, in the unit of `cost`.
        segments: most segments, at most those of the space.

    Raises:
        ValueError: the limit is below the cheapest strategy.
    """
    if limit >= cost.cheapest * (1 - BUDGET_TOLERANCE):
        limit = max(limit, cost.cheapest)
    level_costs = space.counts[:, None] * cost.per_width  # [L, W]
    starts = group_starts(len(space.levels), _MOST_LEVELS)
    solution = solve_budget(
        np.add.reduceat(level_errors, starts),
        np.add.reduceat(level_costs, starts),
        limit - cost.fixed,
        min(segments, space.segments),
    )
    lengths = np.diff([*starts, len(space.levels)])
    return space.from_levels(np.repeat(solution.choice, lengths).tolist())


def group_starts(levels: int, most: int) -> np.ndarray:
    """Return the first level of each of at most `most` groups of neighbouring noise levels."""
    groups = min(levels, most)
    return np.arange(groups) * levels // groups


def proxy_front(
    space: StrategySpace,
    cost: StepCost,
    level_errors: np.ndarray,
    budgets: Sequence[float],
    segments: int,
) -> list[Genome]:
    """Return the Pareto front of the proxy at some budgets, by rising cost.

    It is exact up to 100 noise levels; of more, neighbours get one width in groups of a hundredth.

    Args:
        space: the strategies.
        cost: their cost.
        level_errors: [L, W] from `StrategySpace.by_level`.
        budgets: costs of an image in the unit of `cost`; those that nothing meets give nothing.
        segments: most segments of a strategy.
    """
    limits = [budget for budget in budgets if budget >= cost.cheapest * (1 - BUDGET_TOLERANCE)]
    found = [budget_genome(space, cost, level_errors, b, segments) for b in limits]
    genomes = list(dict.fromkeys(found))
    points = [(level_total(space, level_errors, genome), cost(genome)) for genome in genomes]
    return [genomes[i] for i in nondominated(points)]


def level_total(space: StrategySpace, level_errors: np.ndarray, genome: Genome) -> float:
    """Return the total error of a strategy, the proxy's mean times the number of steps."""
    edges = [0, *genome.boundaries, len(space.levels)]
    spans = zip(edges[:-1], edges[1:], genome.widths, strict=True)
    return float(sum(level_errors[a:b, w].sum() for a, b, w in spans))


def spread_budgets(cost: StepCost, count: int) -> list[float]:
    """Return `count` costs of an image, evenly from the cheapest strategy's to the full width's."""
    return np.linspace(cost.cheapest, cost.full, count).tolist()


def candidate_pool(
    space: StrategySpace,
    cost: StepCost,
    level_errors: np.ndarray,
    *,
    budgets: int,
    budget: float | None,
    size: int,
) -> list[Genome]:
    """Return the strategies that a race begins with, at most about `size` of them.

    They are the constant widths; for the budget the best of each number of segments; from the
    proxy's fronts of 2, 3, ... segments as many of each, spread over the front; and the plain
    guess, the narrowest width and then the full one.

    Args:
        space: the strategies.
        cost: their cost.
        level_errors: [L, W] from `StrategySpace.by_level`.
        budgets: costs at which each front is solved.
        budget: cost of an image that the chosen strategy may have; None for none.
        size: most strategies; the constant widths and those of the budget count, and stay in any
            case.
    """
    chosen = space.constants()
    counts = range(2, space.segments + 1)
    if budget is not None:
        limit = min(budget, cost.full)
        chosen += [budget_genome(space, cost, level_errors, limit, k) for k in counts]
        chosen += _guesses(space, cost, [limit])
    chosen = list(dict.fromkeys(chosen))
    others = [_guesses(space, cost, spread_budgets(cost, _GUESSES + 2)[1:-1])]
    for k in counts:
        front = proxy_front(space, cost, level_errors, spread_budgets(cost, budgets), k)
        others.append(front)
    for left, genomes in zip(range(len(others), 0, -1), others, strict=True):
        fresh = [genome for genome in genomes if genome not in chosen]
        points = [(level_total(space, level_errors, g), cost(g)) for g in fresh]
        share = max(0, (size - len(chosen)) // left)
        chosen += [fresh[i] for i in spread_choice(points, share)]
    return chosen


def _guesses(space: StrategySpace, cost: StepCost, limits: Sequence[float]) -> list[Genome]:
    """The narrowest width and then the full one, as many full steps as each limit pays for."""
    narrow, full = int(np.argmin(cost.per_width)), 0
    if space.segments < 2 or narrow == full:
        return []
    found = []
    for limit in limits:
        for boundary in range(1, len(space.levels)):  # the first that is cheap enough
            genome = Genome((boundary,), (narrow, full))
            if cost(genome) <= limit * (1 + BUDGET_TOLERANCE):
                found.append(genome)
                break
    return list(dict.fromkeys(found))
