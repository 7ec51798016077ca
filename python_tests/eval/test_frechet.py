"""Fréchet distance against closed forms, scipy's general matrix root and torch-fidelity."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ddsm_ext.eval.distances import frechet_distance


def gaussian(dim: int, seed: int, rank: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    factor = rng.standard_normal((dim, rank or 2 * dim)) / np.sqrt(dim)
    return rng.standard_normal(dim), factor @ factor.T


@pytest.mark.parametrize("dim", [1, 7, 64])
def test_diagonal_gaussians_have_a_closed_form(dim: int) -> None:
    rng = np.random.default_rng(dim)
    mu1, mu2 = rng.standard_normal((2, dim))
    sd1, sd2 = rng.uniform(0.1, 3.0, (2, dim))
    expected = np.sum((mu1 - mu2) ** 2) + np.sum((sd1 - sd2) ** 2)
    got = frechet_distance(mu1, np.diag(sd1**2), mu2, np.diag(sd2**2))
    assert got == pytest.approx(expected, rel=1e-12)


def test_covariances_that_share_eigenvectors_have_a_closed_form() -> None:
    rng = np.random.default_rng(3)
    basis, _ = np.linalg.qr(rng.standard_normal((20, 20)))
    sd1, sd2 = rng.uniform(0.1, 3.0, (2, 20))
    got = frechet_distance(
        np.zeros(20),
        basis @ np.diag(sd1**2) @ basis.T,
        np.ones(20),
        basis @ np.diag(sd2**2) @ basis.T,
    )
    assert got == pytest.approx(20 + np.sum((sd1 - sd2) ** 2), rel=1e-10)


@pytest.mark.parametrize("dim", [2, 48])
def test_agrees_with_scipy_sqrtm(dim: int) -> None:
    linalg = pytest.importorskip("scipy.linalg")
    (mu1, s1), (mu2, s2) = gaussian(dim, 1), gaussian(dim, 2)
    root = linalg.sqrtm(s1 @ s2).real
    expected = np.sum((mu1 - mu2) ** 2) + np.trace(s1 + s2 - 2 * root)
    assert frechet_distance(mu1, s1, mu2, s2) == pytest.approx(expected, rel=1e-9)


def test_is_zero_for_equal_symmetric_in_its_arguments_and_never_negative() -> None:
    (mu1, s1), (mu2, s2) = gaussian(32, 1), gaussian(32, 2)
    assert frechet_distance(mu1, s1, mu1, s1) == pytest.approx(0.0, abs=1e-9)
    forward, backward = frechet_distance(mu1, s1, mu2, s2), frechet_distance(mu2, s2, mu1, s1)
    assert forward == pytest.approx(backward, rel=1e-10)
    assert frechet_distance(mu1, s1, mu1, s1) >= 0


def test_singular_covariances_need_no_added_diagonal() -> None:
    mu, s = gaussian(40, 5, rank=10)
    assert frechet_distance(mu, s, mu, 4 * s) == pytest.approx(np.trace(s), rel=1e-6)
    assert frechet_distance(mu, s, mu, np.zeros_like(s)) == pytest.approx(np.trace(s), rel=1e-12)


@pytest.mark.parametrize(
    ("mu", "sigma", "message"),
    [
        (np.zeros(3), np.eye(4), r"\(4, 4\)"),
        (np.zeros((3, 1)), np.eye(3), r"\(3, 1\)"),
        (np.zeros(4), np.eye(4), "4 features"),
        (np.array([0, 0, np.nan]), np.eye(3), "finite"),
        (np.zeros(3), np.full((3, 3), np.inf), "finite"),
        (np.zeros(3), np.array([[1.0, 0.5, 0], [0, 1, 0], [0, 0, 1]]), "symmetric"),
    ],
)
def test_wrong_moments_are_refused(mu, sigma, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        frechet_distance(mu, sigma, np.zeros(3), np.eye(3))


@pytest.mark.parametrize(
    ("mu", "sigma", "message"),
    [
        (np.zeros(3), -np.eye(3), "an eigenvalue of -1; need none below 0"),
        (np.zeros(3), np.diag([1.0, 1.0, -1e-3]), r"an eigenvalue of -0\.001"),
        (np.zeros(3), np.ones((3, 3)) - 0.1 * np.eye(3), r"an eigenvalue of -0\.1"),
        (np.zeros(3), -1e-200 * np.eye(3), "an eigenvalue of -1e-200"),
        (np.full(3, 1e200), np.eye(3), r"mean has a value of 1e\+200; need at most"),
        (np.zeros(3), 1e300 * np.eye(3), r"covariance has a value of 1e\+300"),
    ],
)
def test_moments_of_no_rows_are_refused(mu, sigma, message: str) -> None:
    for other in (np.eye(3), np.zeros((3, 3))):
        with pytest.raises(ValueError, match=message):
            frechet_distance(mu, sigma, np.zeros(3), other)
        with pytest.raises(ValueError, match=message):
            frechet_distance(np.zeros(3), other, mu, sigma)


def test_rounding_of_a_singular_covariance_is_no_negative_variance() -> None:
    """Rank 10 of 40: numpy finds eigenvalues below 0, in float32 of some 1e-7."""
    mu, exact = gaussian(40, 5, rank=10)
    rounded = exact.astype(np.float32).astype(np.float64)
    assert np.linalg.eigvalsh(rounded)[0] < -1e-9
    for scale in (1e-90, 1.0, 1e90):
        got = frechet_distance(mu, scale * rounded, mu, np.zeros_like(rounded))
        assert got == pytest.approx(scale * np.trace(exact), rel=1e-6)


@pytest.mark.parametrize(
    "kind",
    [
        lambda a: torch.tensor(a, requires_grad=True),
        lambda a: torch.tensor(a, dtype=torch.bfloat16),
        lambda a: torch.tensor(a, dtype=torch.float16),
        lambda a: np.asarray(a, dtype=np.float32),
        lambda a: np.asarray(a, dtype=int),
        list,
    ],
)
def test_moments_of_any_kind_of_numbers(kind: Any) -> None:
    mu, sigma = kind([1.0, 2.0]), kind([[4.0, 0.0], [0.0, 9.0]])
    # |mu|^2 + (2 - 1)^2 + (3 - 1)^2
    assert frechet_distance(mu, sigma, np.zeros(2), np.eye(2)) == pytest.approx(10.0, rel=1e-12)


@pytest.mark.parametrize(
    ("mu", "sigma", "error", "message"),
    [
        ([0, [1]], np.eye(2), ValueError, "the mean is a list that is no array"),
        ([0, 1], [[1, 0], [0]], ValueError, "the covariance is a list that is no array"),
        ([0, 1], np.eye(2) + 1e-3j, TypeError, "the covariance is complex128; need real numbers"),
        ([0, 1], torch.eye(2) + 1e-3j, TypeError, "the covariance is complex64; need real"),
        (None, None, TypeError, "the mean is object; need real numbers"),
        ("x", np.eye(2), TypeError, "the mean is <U1; need real numbers"),
        (torch.zeros(2).to_sparse(), np.eye(2), ValueError, "the mean is a Tensor that is no"),
        (torch.zeros(2, device="meta"), np.eye(2), ValueError, "the mean is a Tensor that is no"),
    ],
)
def test_moments_that_are_no_numbers_are_refused(
    mu: Any, sigma: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"frechet_distance, mu1 and sigma1: {message}"):
        frechet_distance(mu, sigma, np.zeros(2), np.eye(2))
