"""The distance by which a search ranks few samples: Fréchet's, or the kernel's where N < 2 D."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ddsm_ext.eval.distances import (
    StreamingMoments,
    enough_images,
    frechet_distance,
    mean_kernel,
    squared_mmd,
)
from ddsm_ext.eval.statistics import ReferenceStatistics
from ddsm_ext.settings import Refusal

# Reference rows of the kernel distance: each costs as much as a sample. They are in random order.
_MOST_ROWS = 2048


@dataclass(frozen=True)
class RankingDistance:
    """Called with feature rows [N, D]: their distance to the reference, lower is better.

    Args:
        name: of the distance, to print beside a score.
        of_rows: the distance.
        reason: why it is not the Fréchet distance; empty where it is.
    """

    name: str
    of_rows: Callable[[np.ndarray], float]
    reason: str = ""

    def __call__(self, rows: np.ndarray) -> float:
        return self.of_rows(rows)


def ranking_distance(reference: ReferenceStatistics, samples: int) -> RankingDistance:
    """Return the distance for scores of so many samples.

    Where these are not `enough_images` for a Fréchet distance it is the kernel distance, which is
    unbiased at any number.

    Args:
        reference: statistics of the real images.
        samples: fewest samples of a score.

    Raises:
        ValueError: the kernel distance is needed and the reference holds no rows.
    """
    if enough_images(samples, reference.dim):

        def frechet(rows: np.ndarray) -> float:
            moments = StreamingMoments(reference.dim)
            moments.update(rows)
            return frechet_distance(
                moments.mean, moments.covariance(), reference.mu, reference.sigma
            )

        return RankingDistance("Fréchet distance", frechet)
    reason = f"{samples} samples are less than twice the {reference.dim} features"
    if reference.rows is None or len(reference.rows) < 2:
        raise Refusal(
            f"search: {reason} and the reference holds no feature rows for the kernel distance; "
            "need more search.samples, or statistics with rows"
        )
    real = reference.rows[:_MOST_ROWS].astype(np.float64)
    within = mean_kernel(real)  # the same for every strategy
    return RankingDistance(
        "kernel distance", lambda rows: squared_mmd(rows, real, within2=within), reason
    )
