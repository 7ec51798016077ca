"""Fréchet distance between two Gaussians."""

from __future__ import annotations

from typing import Any

import numpy as np

from ddsm_ext.settings import Refusal

# Relative asymmetry above which a matrix is taken for a mistake rather than for rounding.
_SYMMETRY_TOLERANCE = 1e-6


def frechet_distance(mu1: Any, sigma1: Any, mu2: Any, sigma2: Any) -> float:
    """d^2 = |mu1 - mu2|^2 + tr(S1) + tr(S2) - 2 tr((S1^1/2 S2 S1^1/2)^1/2), in fp64.

    (S1 S2)^1/2 has the same trace as the symmetric root above, so two symmetric eigenproblems
    replace a general matrix root: one eigh for S1^1/2 and one eigvalsh for the product. Both
    matrices stay real, singular covariances need no added diagonal, and negative eigenvalues,
    which only rounding makes, count as zero. The result is at least 0.

    Args:
        mu1, mu2: means [D].
        sigma1, sigma2: covariances [D, D], symmetric and positive semi-definite.

    Returns:
        The squared distance, the figure called FID when the features are Inception's.

    Raises:
        ValueError: shapes that do not fit, a value that is not finite, or a matrix that is not
            symmetric.

    Source: Dowson and Landau, "The Fréchet distance between multivariate normal distributions",
    1982; Heusel et al., arXiv 1706.08500, eq. 6.
    """
    mean1, cov1 = _gaussian(mu1, sigma1, "1")
    mean2, cov2 = _gaussian(mu2, sigma2, "2")
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


def _gaussian(mu: Any, sigma: Any, which: str) -> tuple[np.ndarray, np.ndarray]:
    mean = np.asarray(mu, dtype=np.float64)
    cov = np.asarray(sigma, dtype=np.float64)
    if mean.ndim != 1 or mean.size == 0 or cov.shape != (mean.size, mean.size):
        raise Refusal(
            f"frechet_distance: mu{which} has shape {mean.shape} and sigma{which} {cov.shape}; "
            "need [D] and [D, D]"
        )
    if not (np.isfinite(mean).all() and np.isfinite(cov).all()):
        raise Refusal(
            f"frechet_distance: mu{which} or sigma{which} has a value that is not finite; "
            "need finite moments"
        )
    asymmetry = float(np.abs(cov - cov.T).max())
    if asymmetry > _SYMMETRY_TOLERANCE * max(float(np.abs(cov).max()), 1e-300):
        raise Refusal(
            f"frechet_distance: sigma{which} differs from its transpose by {asymmetry:.3g}; "
            "need a symmetric covariance"
        )
    return mean, (cov + cov.T) / 2
