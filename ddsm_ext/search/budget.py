"""Exact solver: the widths of all steps with the least total error under a cost budget.

The problem is a multiple-choice knapsack, min sum_s e[s, w_s] with sum_s c[w_s] <= B. A Lagrange
multiplier l turns it into a shortest path with step cost e + l c; the best multiplier gives a lower
bound on every completion of a partial strategy. A forward dynamic program over (cost, error) labels
then keeps a label only if no other label of its state dominates it and its bound is below the best
strategy known, so what remains is exact for any costs, without rounding them to a grid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Comparisons of sums of thousands of float64 terms
_RELATIVE_TOLERANCE = 1e-12
_MOST_MULTIPLIERS = 100


@dataclass(frozen=True)
class BudgetSolution:
    """Widths chosen by the solver.

    Args:
        choice: width index of every step, [S].
        error: total error of the choice.
        cost: total cost of the choice.
    """

    choice: tuple[int, ...]
    error: float
    cost: float


def solve_budget(
    errors: np.ndarray,
    costs: Sequence[float] | np.ndarray,
    budget: float,
    segments: int | None = None,
) -> BudgetSolution:
    """argmin over w of sum_s errors[s, w_s] subject to sum_s costs[w_s] <= budget, exactly.

    Args:
        errors: [S, W] error that step s makes with width index w; finite.
        costs: [W] or [S, W] cost of a step with each width; positive.
        budget: most that all steps together may cost, in the unit of `costs`.
        segments: most runs of equal width along the steps; None means no limit.

    Raises:
        ValueError: the budget is below the cheapest strategy, or an argument is malformed.
    """
    e, c = _check(errors, costs, budget, segments)
    problem = _Problem(
        e, c, len(e) if segments is None else min(segments, len(e)), segments is None
    )
    slack = _RELATIVE_TOLERANCE * max(abs(budget), 1.0)
    best, multiplier = _dual(problem, budget + slack)
    labels = _search(problem, budget + slack, best, multiplier)
    return labels if labels is not None else best


def _check(
    errors: np.ndarray, costs: Sequence[float] | np.ndarray, budget: float, segments: int | None
) -> tuple[np.ndarray, np.ndarray]:
    e = np.asarray(errors, dtype=np.float64)  # [S, W]
    c = np.asarray(costs, dtype=np.float64)  # [W] or [S, W]
    if e.ndim != 2 or e.size == 0 or c.shape not in (e.shape, e.shape[1:]):
        raise ValueError(
            f"solve_budget: errors has shape {list(e.shape)}, costs {list(c.shape)}; "
            "needs [S, W] and [W] or [S, W]"
        )
    if not np.isfinite(e).all() or not np.isfinite(c).all() or not (c > 0).all():
        raise ValueError(
            "solve_budget: errors or costs hold a value that is not finite, or a cost that is not "
            "positive; needs finite errors and positive costs"
        )
    if segments is not None and segments < 1:
        raise ValueError(f"solve_budget: segments is {segments}; needs 1 or more, or None")
    if math.isnan(budget):
        raise ValueError("solve_budget: budget is nan; needs a number")
    return e, np.broadcast_to(c, e.shape)


@dataclass(frozen=True)
class _Problem:
    errors: np.ndarray  # [S, W]
    costs: np.ndarray  # [S, W]
    segments: int
    unlimited: bool

    @property
    def layers(self) -> int:
        """Copies of every width: runs that may still begin, or 1 when their number is free."""
        return 1 if self.unlimited else self.segments

    def solution(self, choice: Sequence[int]) -> BudgetSolution:
        index = np.asarray(choice)
        rows = np.arange(len(index))
        error, cost = self.errors[rows, index].sum(), self.costs[rows, index].sum()
        return BudgetSolution(tuple(int(i) for i in index), float(error), float(cost))

    def completions(self, step_cost: np.ndarray) -> np.ndarray:
        """V[s, w, k]: least sum of `step_cost` over steps s.. when step s-1 has width w and k more
        changes of width are allowed (k is 0 and changes are free when unlimited)."""
        steps, widths = step_cost.shape
        v = np.zeros((steps + 1, widths, self.layers))
        for s in range(steps - 1, -1, -1):
            stay = step_cost[s][:, None] + v[s + 1]  # [W, layers]
            least = stay.min(axis=0)  # [layers]
            v[s] = stay
            if self.unlimited:
                v[s] = least[None, :]
            else:
                v[s, :, 1:] = np.minimum(stay[:, 1:], least[None, :-1])
        return v

    def path(self, step_cost: np.ndarray) -> list[int]:
        """Widths of the cheapest path under `step_cost` within the limit of segments."""
        v = self.completions(step_cost)
        layer = self.layers - 1
        width = int(np.argmin(step_cost[0] + v[1, :, layer]))
        choice = [width]
        for s in range(1, len(step_cost)):
            stay = step_cost[s] + v[s + 1, :, layer]
            if self.unlimited:
                width = int(np.argmin(stay))
            elif layer > 0:
                change = step_cost[s] + v[s + 1, :, layer - 1]
                if change.min() < stay[width]:
                    width, layer = int(np.argmin(change)), layer - 1
            choice.append(width)
        return choice


def _dual(problem: _Problem, budget: float) -> tuple[BudgetSolution, float]:
    """Return the best feasible path met while maximising the Lagrangian bound, and its multiplier.

    The bound is concave and piecewise linear in the multiplier: intersecting the lines of the last
    path over and the last path under the budget ends at its maximum after finitely many steps.
    """
    over = problem.solution(problem.path(problem.errors))
    cheapest = problem.solution(problem.path(problem.costs))
    if cheapest.cost > budget:
        raise ValueError(
            f"solve_budget: budget is {budget:g}, the cheapest strategy costs {cheapest.cost:g}; "
            "needs at least that"
        )
    if over.cost <= budget:
        return over, 0.0
    under = best = cheapest
    multiplier = 0.0
    for _ in range(_MOST_MULTIPLIERS):
        multiplier = (under.error - over.error) / (over.cost - under.cost)
        step_cost = problem.errors + multiplier * problem.costs
        found = problem.solution(problem.path(step_cost))
        value = found.error + multiplier * found.cost
        line = over.error + multiplier * over.cost
        if value >= line - _RELATIVE_TOLERANCE * max(abs(line), 1.0):
            break
        if found.cost <= budget:
            under = found
            best = min(best, found, key=lambda s: (s.error, s.cost))
        else:
            over = found
    return best, multiplier


@dataclass
class _Labels:
    """Partial strategies of one state: cost, error and where each came from."""

    cost: np.ndarray
    error: np.ndarray
    parent_state: np.ndarray
    parent_label: np.ndarray

    def select(self, index: np.ndarray) -> _Labels:
        """Return the labels at an index or under a mask."""
        columns = (self.cost, self.error, self.parent_state, self.parent_label)
        return _Labels(*(column[index] for column in columns))


def _extend(
    states: Sequence[_Labels | None], origins: Sequence[int], cost: float, error: float
) -> _Labels | None:
    """Labels of all origins with one more step; None when no origin has any."""
    alive = [(origin, states[origin]) for origin in origins]
    parts = [(origin, labels) for origin, labels in alive if labels is not None]
    if not parts:
        return None
    return _Labels(
        np.concatenate([labels.cost for _, labels in parts]) + cost,
        np.concatenate([labels.error for _, labels in parts]) + error,
        np.concatenate([np.full(len(labels.cost), origin) for origin, labels in parts]),
        np.concatenate([np.arange(len(labels.cost)) for _, labels in parts]),
    )


def _pareto(labels: _Labels) -> _Labels:
    """The labels that no other one dominates, by rising cost."""
    labels = labels.select(np.lexsort((labels.error, labels.cost)))
    before = np.concatenate(([np.inf], np.minimum.accumulate(labels.error)[:-1]))
    return labels.select(labels.error < before)


def _search(
    problem: _Problem, budget: float, best: BudgetSolution, multiplier: float
) -> BudgetSolution | None:
    """Label-setting dynamic program; None when nothing is better than `best`."""
    e, c = problem.errors, problem.costs
    steps, widths = e.shape
    bound = problem.completions(e + multiplier * c)  # [S + 1, W, layers]
    cheap = problem.completions(c)  # [S + 1, W, layers]
    margin = _RELATIVE_TOLERANCE * max(abs(best.error) + multiplier * budget, 1e-300)
    limit = best.error + multiplier * budget - margin
    pairs = [divmod(state, problem.layers) for state in range(widths * problem.layers)]
    origins = [_origins(problem, w, layer) for w, layer in pairs]
    zero = np.zeros(1, dtype=np.int64)
    history: list[list[_Labels | None]] = []
    for s in range(steps):
        states: list[_Labels | None] = []
        for state, (w, layer) in enumerate(pairs):
            if s > 0:
                labels = _extend(history[-1], origins[state], c[s, w], e[s, w])
            elif layer == problem.layers - 1:
                labels = _Labels(c[0, w : w + 1], e[0, w : w + 1], zero, zero)
            else:
                labels = None
            if labels is not None:
                keep = labels.cost + cheap[s + 1, w, layer] <= budget
                reduced = labels.error + multiplier * labels.cost
                keep &= reduced + bound[s + 1, w, layer] < limit
                labels = _pareto(labels.select(keep)) if keep.any() else None
            states.append(labels)
        history.append(states)
    return _backtrack(problem, history, best)


def _origins(problem: _Problem, width: int, layer: int) -> list[int]:
    """States of the step before from which (width, layer) can be reached."""
    layers, widths = problem.layers, problem.costs.shape[1]
    if problem.unlimited:
        return list(range(widths))
    stay = [width * layers + layer]
    if layer + 1 >= layers:
        return stay
    return stay + [v * layers + layer + 1 for v in range(widths) if v != width]


def _backtrack(
    problem: _Problem, history: Sequence[Sequence[_Labels | None]], best: BudgetSolution
) -> BudgetSolution | None:
    ends = [
        (float(labels.error[i]), float(labels.cost[i]), state, i)
        for state, labels in enumerate(history[-1])
        if labels is not None
        for i in range(len(labels.cost))
    ]
    if not ends or min(ends)[0] >= best.error:
        return None
    _, _, state, label = min(ends)
    choice = []
    for states in reversed(history):
        choice.append(state // problem.layers)
        labels = states[state]
        assert labels is not None
        state, label = int(labels.parent_state[label]), int(labels.parent_label[label])
    return problem.solution(choice[::-1])
