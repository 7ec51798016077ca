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

from ddsm_ext.search.front import rounded_up
from ddsm_ext.settings import Refusal

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
    errors: np.ndarray, costs: Sequence[float] | np.ndarray, budget: float, segments: int
) -> BudgetSolution:
    """argmin over w of sum_s errors[s, w_s] subject to sum_s costs[w_s] <= budget, exactly.

    Args:
        errors: [S, W] error that step s makes with width index w; finite.
        costs: [W] or [S, W] cost of a step with each width; positive.
        budget: most that all steps together may cost, in the unit of `costs`.
        segments: most runs of equal width along the steps.

    Raises:
        ValueError: the budget is below the cheapest strategy, or an argument is malformed.
    """
    e = np.asarray(errors, dtype=np.float64)  # [S, W]
    c = np.asarray(costs, dtype=np.float64)  # [W] or [S, W]
    if e.ndim != 2 or e.size == 0 or c.shape not in (e.shape, e.shape[1:]):
        raise Refusal(
            f"solve_budget: errors has shape {list(e.shape)}, costs {list(c.shape)}; "
            "need [S, W] and [W] or [S, W]"
        )
    if not np.isfinite(e).all() or not np.isfinite(c).all() or not (c > 0).all():
        raise Refusal(
            "solve_budget: errors or costs hold a value that is not finite, or a cost that is not "
            "positive; need finite errors and positive costs"
        )
    if segments < 1:
        raise Refusal(f"solve_budget: segments is {segments}; need 1 or more")
    if math.isnan(budget):
        raise Refusal("solve_budget: budget is nan; need a number")
    problem = _Problem(e, np.broadcast_to(c, e.shape), min(segments, len(e)))
    budget += _RELATIVE_TOLERANCE * max(abs(budget), 1.0)
    best, multiplier = _dual(problem, budget)
    return _search(problem, budget, best, multiplier)


@dataclass(frozen=True)
class _Problem:
    errors: np.ndarray  # [S, W]
    costs: np.ndarray  # [S, W]
    segments: int

    def solution(self, choice: Sequence[int]) -> BudgetSolution:
        index = np.asarray(choice)
        rows = np.arange(len(index))
        error, cost = self.errors[rows, index].sum(), self.costs[rows, index].sum()
        return BudgetSolution(tuple(int(i) for i in index), float(error), float(cost))

    def completions(self, step_cost: np.ndarray) -> np.ndarray:
        """V[s, w, k]: least sum of `step_cost` over steps s.. when step s-1 has width w and k more
        changes of width are allowed."""
        steps, widths = step_cost.shape
        v = np.zeros((steps + 1, widths, self.segments))
        for s in range(steps - 1, -1, -1):
            stay = step_cost[s][:, None] + v[s + 1]  # [W, segments]
            v[s] = stay
            v[s, :, 1:] = np.minimum(stay[:, 1:], stay.min(axis=0)[:-1])
        return v

    def path(self, step_cost: np.ndarray) -> list[int]:
        """Widths of the cheapest path under `step_cost` within the limit of segments."""
        v = self.completions(step_cost)
        changes = self.segments - 1
        width = int(np.argmin(step_cost[0] + v[1, :, changes]))
        choice = [width]
        for s in range(1, len(step_cost)):
            if changes > 0:
                change = step_cost[s] + v[s + 1, :, changes - 1]
                if change.min() < step_cost[s, width] + v[s + 1, width, changes]:
                    width, changes = int(np.argmin(change)), changes - 1
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
        raise Refusal(
            f"solve_budget: budget is {budget:g}, the cheapest strategy costs "
            f"{rounded_up(cheapest.cost)}; need at least that"
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


# The partial strategies of one state are the columns of an array [4, N]: the cost and the error of
# each, and which state and column of the step before it extends.
_NONE = np.empty((4, 0))


def _extend(
    states: Sequence[np.ndarray], origins: Sequence[int], cost: float, error: float
) -> np.ndarray:
    """Labels of all origins with one more step."""
    origins = [origin for origin in origins if states[origin].size]
    if not origins:
        return _NONE
    counts = [states[origin].shape[1] for origin in origins]
    labels = np.concatenate([states[origin] for origin in origins], axis=1)
    labels[0] += cost
    labels[1] += error
    labels[2] = np.repeat(origins, counts)
    labels[3] = np.concatenate([np.arange(count) for count in counts])
    return labels


def _pareto(labels: np.ndarray) -> np.ndarray:
    """The labels that no other one dominates, by rising cost."""
    cost, error = labels[:2]
    labels = labels[:, np.lexsort((error, cost))]
    least = np.minimum.accumulate(labels[1])
    return labels[:, labels[1] < np.concatenate(([np.inf], least[:-1]))]


def _search(
    problem: _Problem, budget: float, best: BudgetSolution, multiplier: float
) -> BudgetSolution:
    """Label-setting dynamic program; returns `best` when nothing is better."""
    e, c, segments = problem.errors, problem.costs, problem.segments
    steps, widths = e.shape
    bound = problem.completions(e + multiplier * c)  # [S + 1, W, segments]
    cheap = problem.completions(c)  # [S + 1, W, segments]
    margin = _RELATIVE_TOLERANCE * max(abs(best.error) + multiplier * budget, 1e-300)
    limit = best.error + multiplier * budget - margin
    # a state is a width and the changes of width still allowed
    states = [divmod(state, segments) for state in range(widths * segments)]
    origins = [_origins(problem, w, changes) for w, changes in states]
    history: list[list[np.ndarray]] = []
    for s in range(steps):
        row = []
        for state, (w, changes) in enumerate(states):
            labels = _NONE
            if s > 0:
                labels = _extend(history[-1], origins[state], c[s, w], e[s, w])
            elif changes == segments - 1:
                labels = np.array([[c[0, w]], [e[0, w]], [0.0], [0.0]])
            if labels.size:
                cost, error = labels[:2]
                keep = cost + cheap[s + 1, w, changes] <= budget
                keep &= error + multiplier * cost + bound[s + 1, w, changes] < limit
                labels = _pareto(labels[:, keep]) if keep.any() else _NONE
            row.append(labels)
        history.append(row)
    return _backtrack(problem, history, best)


def _origins(problem: _Problem, width: int, changes: int) -> list[int]:
    """States of the step before from which (width, changes) can be reached."""
    segments, widths = problem.segments, problem.costs.shape[1]
    stay = [width * segments + changes]
    if changes + 1 >= segments:
        return stay
    return stay + [v * segments + changes + 1 for v in range(widths) if v != width]


def _backtrack(
    problem: _Problem, history: Sequence[Sequence[np.ndarray]], best: BudgetSolution
) -> BudgetSolution:
    ends = [
        (error, cost, state, i)
        for state, labels in enumerate(history[-1])
        for i, (cost, error) in enumerate(labels[:2].T.tolist())
    ]
    if not ends or min(ends)[0] >= best.error:
        return best
    _, _, state, label = min(ends)
    choice = []
    for states in reversed(history):
        choice.append(state // problem.segments)
        state, label = states[state][2:, label].astype(int)
    return problem.solution(choice[::-1])
