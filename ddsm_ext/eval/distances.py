"""Moments of feature rows, and the Fréchet and kernel distances of two sets of them, in fp64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from ddsm_ext.settings import Refusal, TypeRefusal

# Relative asymmetry, and eigenvalue below 0, from which a matrix is taken for a mistake rather than
# for rounding: sums in float32 make some 1e-6.
_SYMMETRY_TOLERANCE = 1e-6
_EIGENVALUE_TOLERANCE = 1e-5
_LARGEST_MOMENT = 1e100  # the squares and products of larger ones leave fp64
_KERNEL_ROWS = 1000  # with 10,000 others 80 MB of kernel values


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
        rows = _as_rows(features, "StreamingMoments.update")  # [N, D]
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

    @classmethod
    def from_vector(cls, vector: np.ndarray, dim: int) -> StreamingMoments:
        """Return the moments of `dim` features that `to_vector` gave."""
        moments = cls(dim)
        count, moments.mean, scatter = np.split(vector, [1, 1 + dim])
        moments.count = int(count[0])
        moments._scatter = scatter.reshape(dim, dim)
        return moments


def gather_moments(moments: StreamingMoments) -> StreamingMoments:
    """Return the moments of every rank's rows, equal on every rank (merged in rank order).

    Args:
        moments: this rank's moments; a rank that saw no rows takes part with a count of 0. Without
            an initialised process group they are returned as they are.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return moments
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    mine = torch.from_numpy(moments.to_vector()).to(device)  # [1 + D + D*D]
    parts = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, mine)
    total = StreamingMoments(moments.dim)
    for part in parts:
        total.merge(StreamingMoments.from_vector(part.cpu().numpy(), moments.dim))
    return total


def frechet_distance(mu1: Any, sigma1: Any, mu2: Any, sigma2: Any) -> float:
    """d^2 = |mu1 - mu2|^2 + tr(S1) + tr(S2) - 2 tr((S1^1/2 S2 S1^1/2)^1/2), in fp64.

    (S1 S2)^1/2 has the same trace as the symmetric root above, so two symmetric eigenproblems
    replace a general matrix root: one eigh for S1^1/2 and one eigvalsh for the product. Both
    matrices stay real, singular covariances need no added diagonal, and negative eigenvalues,
    which only rounding makes, count as zero. The result is at least 0.

    Args:
        mu1, mu2: means [D]: tensors (any device), arrays or lists of numbers.
        sigma1, sigma2: covariances [D, D] of these kinds, symmetric and positive semi-definite.

    Returns:
        The squared distance, the figure called FID when the features are Inception's.

    Raises:
        TypeError, ValueError: what `check_moments` refuses, or different numbers of features.

    Source: Dowson and Landau, "The Fréchet distance between multivariate normal distributions",
    1982; Heusel et al., arXiv 1706.08500, eq. 6.
    """
    mean1, cov1 = check_moments("frechet_distance, mu1 and sigma1", mu1, sigma1)
    mean2, cov2 = check_moments("frechet_distance, mu2 and sigma2", mu2, sigma2)
    if mean1.shape != mean2.shape:
        raise Refusal(
            f"frechet_distance: mu1 has {mean1.size} features, mu2 has {mean2.size}; "
            "need the same number"
        )
    values, vectors = np.linalg.eigh(cov1)  # [D], [D, D]
    root1 = (vectors * np.sqrt(np.clip(values, 0.0, None))) @ vectors.T  # [D, D]
    product = root1 @ cov2 @ root1  # [D, D]
    product_values = np.linalg.eigvalsh((product + product.T) / 2)  # [D]
    trace_root = np.sqrt(np.clip(product_values, 0.0, None)).sum()
    shift = mean1 - mean2
    distance = shift @ shift + np.trace(cov1) + np.trace(cov2) - 2 * trace_root
    return max(float(distance), 0.0)


def enough_images(count: int, dim: int) -> bool:
    """Return whether a Fréchet distance of `count` images with `dim` features can be trusted.

    A covariance of fewer than `dim` rows is singular, and the distance is biased upwards by an
    amount that falls with the number of images: of two equal Gaussians with 512 features it is 354
    from 256 samples, 72 from 1024, 20 from 4096. Twice `dim` is asked for here; with fewer the
    kernel distance, which has no bias, is the one to compare.
    """
    return count >= 2 * dim


def check_moments(what: str, mu: Any, sigma: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return a mean and a covariance in fp64, the latter symmetric to the last bit.

    Args:
        what: opens the errors, e.g. a file's name.
        mu: mean [D].
        sigma: covariance [D, D].

    Raises:
        TypeError: one of them holds no real numbers.
        ValueError: shapes that do not fit, values that are not finite or beyond 1e100, or a matrix
            that no rows have as their covariance: not symmetric, or with a negative eigenvalue.
    """
    mean = _as_numbers(mu, f"{what}: the mean")  # [D]
    cov = _as_numbers(sigma, f"{what}: the covariance")  # [D, D]
    if mean.ndim != 1 or mean.size == 0 or cov.shape != (mean.size, mean.size):
        raise Refusal(
            f"{what}: the mean has shape {mean.shape}, the covariance {cov.shape}; need [D] and "
            "[D, D]"
        )
    if not (np.isfinite(mean).all() and np.isfinite(cov).all()):
        raise Refusal(
            f"{what}: mean or covariance has a value that is not finite; need finite moments"
        )
    largest = float(np.abs(cov).max())
    for name, value in (("mean", float(np.abs(mean).max())), ("covariance", largest)):
        if value > _LARGEST_MOMENT:
            raise Refusal(
                f"{what}: the {name} has a value of {value:.3g}; need at most "
                f"{_LARGEST_MOMENT:g}, whose squares are finite"
            )
    asymmetry = float(np.abs(cov - cov.T).max())
    if asymmetry > _SYMMETRY_TOLERANCE * largest:
        raise Refusal(
            f"{what}: the covariance differs from its transpose by {asymmetry:.3g}; need a "
            "symmetric one"
        )
    cov = (cov + cov.T) / 2
    # Cholesky's factors, which are there unless an eigenvalue is negative, take a small part of the
    # eigenvalues' time. The elements' norm bounds what their rounding takes from an eigenvalue.
    raised, norm = cov.copy(), max(float(np.linalg.norm(cov)), largest)  # squares may underflow
    raised.flat[:: mean.size + 1] += _EIGENVALUE_TOLERANCE * norm or 1.0
    try:
        np.linalg.cholesky(raised)
    except np.linalg.LinAlgError:
        raise Refusal(
            f"{what}: the covariance has an eigenvalue of {np.linalg.eigvalsh(cov)[0]:.3g}; need "
            "none below 0, as they are variances"
        ) from None
    return mean, cov


def _as_numbers(values: Any, what: str) -> np.ndarray:
    """Return a tensor, an array or nested lists of real numbers in fp64."""
    try:
        array = np.asarray(_as_array(values))
    except (RuntimeError, TypeError, ValueError):  # of other layouts, or lists of several lengths
        raise Refusal(
            f"{what} is a {type(values).__name__} that is no array; need rows of one length"
        ) from None
    if array.dtype.kind not in "fiu":
        raise TypeRefusal(f"{what} is {array.dtype}; need real numbers")
    return array.astype(np.float64, copy=False)


def _as_array(values: Any) -> Any:
    """Return a tensor of floats as an fp64 array, anything else as it is."""
    if isinstance(values, torch.Tensor) and values.is_floating_point():
        # bf16 has no numpy dtype, hence the cast before .numpy()
        return values.detach().cpu().double().numpy()
    return values


@dataclass(frozen=True)
class KernelDistance:
    """Mean and standard deviation (divisor = subsets) of the squared MMD over the subsets.

    Subsets of the same rows overlap, so the deviation is their spread and no error of the mean:
    more subsets do not lower it, and dividing it by their root says too little.
    """

    mean: float
    std: float


def kernel_distance(
    features1: Any,
    features2: Any,
    *,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 2020,
) -> KernelDistance:
    """Squared MMD, k(x, y) = (x.y / D + 1)^3, unbiased, over random subsets, in fp64.

    The subsets are drawn as torch-fidelity draws them (one RandomState; first set, then second), so
    equal fp64 features and an equal seed give its figure. It computes in the features' own dtype,
    which for fp32 rows costs it 1e-4 relative (measured at 1500 x 200); here all sums are fp64.

    Args:
        features1, features2: [N1, D] and [N2, D] tensors or arrays of floats.
        subsets: number of subsets.
        subset_size: rows of a subset, drawn without replacement; at most min(N1, N2).
        seed: seed of the subsets.

    Returns:
        KernelDistance; slightly negative means are right for equal distributions.

    Raises:
        TypeError: the features are no float arrays.
        ValueError: shapes that do not fit, values that are not finite, too few rows.

    Source: Binkowski et al., arXiv 1801.01401, section 4.1 and eq. 4.
    """
    rows1, rows2 = _pair(features1, features2, "kernel_distance")  # [N1, D], [N2, D]
    if subsets < 1:
        raise Refusal(f"kernel_distance: subsets is {subsets}; need subsets >= 1")
    smallest = min(len(rows1), len(rows2))
    if not 2 <= subset_size <= smallest:
        raise Refusal(
            f"kernel_distance: subset_size is {subset_size}, the sets have {len(rows1)} and "
            f"{len(rows2)} rows; need 2 <= subset_size <= {smallest}"
        )
    rng = np.random.RandomState(seed)
    values = np.empty(subsets)
    for i in range(subsets):
        x = rows1[rng.choice(len(rows1), subset_size, replace=False)]  # [M, D]
        y = rows2[rng.choice(len(rows2), subset_size, replace=False)]  # [M, D]
        values[i] = _mmd(x, y, _mean_kernel(y))
    return KernelDistance(float(values.mean()), float(values.std()))


def squared_mmd(features1: Any, features2: Any, *, within2: float | None = None) -> float:
    """Squared MMD of two sets, k(x, y) = (x.y / D + 1)^3, unbiased, over all rows, in fp64.

    Args:
        features1, features2: [N1, D] and [N2, D] tensors or arrays of floats, N1, N2 >= 2.
        within2: `mean_kernel(features2)` if known, so that one set is compared with many at the
            cost of the products with it.

    Raises:
        TypeError: the features are no float arrays.
        ValueError: shapes that do not fit, values that are not finite, too few rows.

    Source: Gretton et al., "A kernel two-sample test", 2012, eq. 3.
    """
    rows1, rows2 = _pair(features1, features2, "squared_mmd")  # [N1, D], [N2, D]
    if min(len(rows1), len(rows2)) < 2:
        raise Refusal(
            f"squared_mmd: the sets have {len(rows1)} and {len(rows2)} rows; need 2 of each"
        )
    return _mmd(rows1, rows2, _mean_kernel(rows2) if within2 is None else within2)


def mean_kernel(features: Any) -> float:
    """Mean of k(x, y) over all pairs of different rows of features [N, D], N >= 2, in fp64."""
    rows = _as_rows(features, "mean_kernel")  # [N, D]
    if len(rows) < 2:
        raise Refusal(f"mean_kernel: {len(rows)} rows; need at least 2")
    return _mean_kernel(rows)


def _mmd(x: np.ndarray, y: np.ndarray, within_y: float) -> float:
    """Return the unbiased estimate: both self terms leave out the diagonal (Gretton, eq. 3)."""
    cross = _kernel_sum(x, y) / (len(x) * len(y))
    return _mean_kernel(x) + within_y - 2 * cross


def _mean_kernel(rows: np.ndarray) -> float:
    count, dim = rows.shape
    diagonal = float((((rows * rows).sum(axis=1) * (1.0 / dim) + 1.0) ** 3).sum())
    return (_kernel_sum(rows, rows) - diagonal) / (count * (count - 1))


def _kernel_sum(x: np.ndarray, y: np.ndarray) -> float:
    """Return the sum of k over all pairs; products of few rows at a time bound the memory."""
    scale = 1.0 / x.shape[1]
    parts = (x[i : i + _KERNEL_ROWS] for i in range(0, len(x), _KERNEL_ROWS))
    return sum(float(((part @ y.T * scale + 1.0) ** 3).sum()) for part in parts)


def _pair(features1: Any, features2: Any, caller: str) -> tuple[np.ndarray, np.ndarray]:
    """Return both sets as `_as_rows` does, or raise where their features differ in number."""
    rows1, rows2 = _as_rows(features1, caller), _as_rows(features2, caller)
    if rows1.shape[1] != rows2.shape[1]:
        raise Refusal(
            f"{caller}: the sets have {rows1.shape[1]} and {rows2.shape[1]} features; need the "
            "same number"
        )
    return rows1, rows2


def _as_rows(features: Any, caller: str) -> np.ndarray:
    """Return features as a finite fp64 array [N, D].

    Args:
        features: tensor (any device) or array [N, D], float dtype.
        caller: name that opens the error sentence.

    Raises:
        TypeError: not a tensor or array of floats.
        ValueError: not two axes, or a value that is not finite.
    """
    features = _as_array(features)
    if not isinstance(features, np.ndarray) or features.dtype.kind != "f":
        kind = getattr(features, "dtype", type(features).__name__)
        raise TypeRefusal(f"{caller}: features are {kind}; need a float tensor or array [N, D]")
    if features.ndim != 2:
        raise Refusal(f"{caller}: features have shape {features.shape}; need [N, D]")
    rows = np.asarray(features, dtype=np.float64)
    if not np.isfinite(rows).all():
        bad = int((~np.isfinite(rows).all(axis=1)).argmax())
        raise Refusal(f"{caller}: row {bad} has a value that is not finite; need finite features")
    return rows
