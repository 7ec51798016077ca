"""Mean and covariance of feature rows, accumulated batch by batch in fp64."""

from __future__ import annotations

from typing import Any

import numpy as np

from ddsm_ext.eval._arrays import as_rows
from ddsm_ext.settings import Refusal


class StreamingMoments:
    """Count, mean and covariance of rows seen so far, in fp64, in one pass.

    A batch's own mean and centred scatter are merged with the running ones by the pairwise formula
    M = M_a + M_b + (n_a n_b / n) d d^T, d = mean_b - mean_a, so large means lose no digits and
    shards merged in any grouping agree with a single pass to about 1e-12.

    Args:
        dim: number of features D of a row.

    Source: Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample
    variances", 1979, eq. 2.1.
    """

    def __init__(self, dim: int) -> None:
        if dim < 1:
            raise Refusal(f"StreamingMoments: dim is {dim}; need dim >= 1")
        self.dim = int(dim)
        self.count = 0
        self.mean = np.zeros(self.dim)  # [D]
        self._scatter = np.zeros((self.dim, self.dim))  # [D, D], sum of (row - mean)(row - mean)^T

    def update(self, features: Any) -> None:
        """Add rows.

        Args:
            features: tensor or array [N, D] of any float dtype; N may be 0.

        Raises:
            TypeError: the rows are no float array.
            ValueError: another number of features, or a value that is not finite.
        """
        rows = as_rows(features, "StreamingMoments.update")  # [N, D]
        if rows.shape[1] != self.dim:
            raise Refusal(
                f"StreamingMoments.update: rows have {rows.shape[1]} features, "
                f"these moments have {self.dim}; need the same number"
            )
        if rows.shape[0] == 0:
            return
        mean = rows.mean(axis=0)  # [D]
        centred = rows - mean  # [N, D]
        self._merge(rows.shape[0], mean, centred.T @ centred)

    def merge(self, other: StreamingMoments) -> None:
        """Add the rows that another accumulator has seen.

        Raises:
            ValueError: another number of features.
        """
        if other.dim != self.dim:
            raise Refusal(
                f"StreamingMoments.merge: the other has {other.dim} features, "
                f"these moments have {self.dim}; need the same number"
            )
        self._merge(other.count, other.mean, other._scatter)

    def _merge(self, count: int, mean: np.ndarray, scatter: np.ndarray) -> None:
        if count == 0:
            return
        total = self.count + count
        shift = mean - self.mean  # [D]
        self._scatter = (
            self._scatter + scatter + np.outer(shift, shift) * (self.count * count / total)
        )
        self.mean = self.mean + shift * (count / total)
        self.count = total

    def covariance(self) -> np.ndarray:
        """Return the unbiased covariance (divisor N - 1), fp64 [D, D].

        Raises:
            ValueError: fewer than two rows have been seen.
        """
        if self.count < 2:
            raise Refusal(f"StreamingMoments.covariance: {self.count} rows seen; need at least 2")
        return self._scatter / (self.count - 1)

    def to_vector(self) -> np.ndarray:
        """Return count, mean and scatter as one fp64 vector [1 + D + D*D] for a collective."""
        return np.concatenate([[float(self.count)], self.mean, self._scatter.ravel()])


def gather_moments(moments: StreamingMoments) -> StreamingMoments:
    """Return the moments of every rank's rows, equal on every rank (merged in rank order).

    Args:
        moments: this rank's moments; a rank that saw no rows takes part with a count of 0. Without
            an initialised process group they are returned as they are.
    """
    import torch
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return moments
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    mine = torch.from_numpy(moments.to_vector()).to(device)  # [1 + D + D*D]
    parts = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, mine)
    total = StreamingMoments(moments.dim)
    for part in parts:
        count, mean, scatter = np.split(part.cpu().numpy(), [1, 1 + moments.dim])
        total._merge(int(count[0]), mean, scatter.reshape(moments.dim, moments.dim))
    return total
