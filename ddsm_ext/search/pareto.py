"""Non-domination, selection and hypervolume of points (quality, cost), both minimised."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Point = tuple[float, float]


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
