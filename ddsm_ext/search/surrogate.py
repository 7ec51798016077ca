"""Which strategies are worth a score: a Gaussian process on the scores so far, in place of scores.

A score takes hundreds of images, a child of NSGA-II nothing: so many are bred, and those are scored
that the process promises most of. It learns from all scores of a search; as these are of the same
seeds, what differs between them is mostly what the widths do, which is smooth in them. scikit-learn
takes a second to import, so that this module is imported where a search has been accepted.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, DotProduct, WhiteKernel

from ddsm_ext.search.front import Point, nondominated
from ddsm_ext.search.genome import Genome, StrategySpace
from ddsm_ext.search.pool import group_starts
from ddsm_ext.search.race import Race

# Neighbouring noise levels share a group beyond these; the strategies of a search have few segments
_MOST_GROUPS = 32


def width_features(space: StrategySpace, genomes: Sequence[Genome]) -> np.ndarray:
    """Return what the process knows of strategies: the share of each group of noise levels that is
    narrower than each width.

    Args:
        space: the strategies.
        genomes: N of them.

    Returns:
        [N, G * (W - 1)] numbers from 0 to 1: neighbouring widths are alike, cuts move smoothly.
    """
    starts = group_starts(len(space.levels), _MOST_GROUPS)
    sizes = np.diff([*starts, len(space.levels)])[:, None]
    # the order of the widths is widest first
    narrower = np.arange(len(space.widths) - 1)
    rows = []
    for genome in genomes:
        lengths = np.diff([0, *genome.boundaries, len(space.levels)])
        widths = np.repeat(genome.widths, lengths)  # [L]
        below = (widths[:, None] > narrower).astype(np.float64)  # [L, W - 1]
        rows.append(np.add.reduceat(below, starts) / sizes)
    return np.stack(rows).reshape(len(rows), -1)


def predicted_qualities(
    space: StrategySpace,
    scored: Sequence[Genome],
    qualities: Sequence[float],
    genomes: Sequence[Genome],
) -> np.ndarray:
    """Return the qualities that strategies are expected to have, by the scores of others.

    What each step's width adds is the linear part of the process, what they do together the other.

    Args:
        space: the strategies.
        scored: strategies with a score, at least one.
        qualities: their scores, finite.
        genomes: N strategies.

    Returns:
        [N] qualities.
    """
    kernel = (
        ConstantKernel() * DotProduct()
        + ConstantKernel() * RBF(5.0, (1.0, 30.0))
        + WhiteKernel(0.01, (1e-4, 1.0))
    )
    process = GaussianProcessRegressor(kernel, normalize_y=True)
    with warnings.catch_warnings():  # a part that the scores do not need goes to its bound
        warnings.simplefilter("ignore", ConvergenceWarning)
        process.fit(width_features(space, scored), np.asarray(qualities))
        return np.asarray(process.predict(width_features(space, genomes)))


def promising(
    race: Race, candidates: Sequence[Genome], reference: Sequence[float], count: int
) -> list[int]:
    """Return which strategies are expected to add most hypervolume to a race's front together.

    Args:
        race: what is scored, the full width among it.
        candidates: strategies without a score.
        reference: the hypervolume's greatest loss against the full width and cost.
        count: how many to return, all in their order if there are no more; after those that add
            anything come the others in their order.

    Returns:
        Indices, what adds most first.
    """
    if len(candidates) <= count:
        return list(range(len(candidates)))
    cost, known = race.cost, race.scored()
    expected = predicted_qualities(
        cost.space, known, [race.point(genome)[0] for genome in known], candidates
    )
    points = [(float(q), cost.relative(g)) for q, g in zip(expected, candidates, strict=True)]
    front = [race.point(genome) for genome in race.front()]
    full = race.point(cost.space.constants()[0])[0]
    chosen: list[int] = []
    while len(chosen) < count:
        gains = hypervolume_gains(points, front, (full + reference[0], reference[1]))
        gains[chosen] = -1.0
        chosen.append(int(np.argmax(gains)))
        front.append(points[chosen[-1]])
    return chosen


def hypervolume_gains(
    candidates: Sequence[Point], front: Sequence[Point], reference: Point
) -> np.ndarray:
    """Return [N] the hypervolume that each candidate alone would add to a front.

    Args:
        candidates: N points (quality, cost).
        front: points (quality, cost).
        reference: the hypervolume's greatest quality and cost.
    """
    known = np.asarray([front[i] for i in nondominated(front)]).reshape(-1, 2)
    quality, cost = np.asarray(candidates, dtype=np.float64)[:, :, None].transpose(1, 0, 2)
    # the front as stairs: up to the first cost the reference's quality, then that of each point
    stairs = np.minimum([reference[0], *known[:, 0]], reference[0])
    edges = np.minimum([*known[:, 1], reference[1]], reference[1])
    starts = np.concatenate([[-np.inf], edges[:-1]])
    spans = np.clip(edges - np.maximum(starts, cost), 0.0, None)  # [N, stairs]
    return np.asarray((np.clip(stairs - quality, 0.0, None) * spans).sum(axis=1))
