"""Kernel distance against its definition, written out over pairs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from ddsm_ext.eval.distances import kernel_distance, mean_kernel, squared_mmd


def features(n: int, dim: int = 6, seed: int = 0, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, dim)) + shift


def test_equals_the_sum_over_pairs_when_one_subset_is_the_whole_set() -> None:
    x, y = features(12, seed=1), features(12, seed=2, shift=0.7)

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return (float(a @ b) / 6 + 1) ** 3

    within = sum(kernel(a, b) for a, b in itertools.permutations(x, 2)) / (12 * 11)
    within += sum(kernel(a, b) for a, b in itertools.permutations(y, 2)) / (12 * 11)
    cross = sum(kernel(a, b) for a in x for b in y) / 144
    got = kernel_distance(x, y, subsets=3, subset_size=12)
    assert got.mean == pytest.approx(within - 2 * cross, rel=1e-12)
    assert got.std == pytest.approx(0.0, abs=1e-12)


def test_identical_sets_of_two_rows_have_a_closed_form() -> None:
    # X = Y = {a, b}: within = 2 k(a,b), cross = (k(a,a) + k(b,b) + 2 k(a,b)) / 4.
    a, b = np.array([1.0, 0.0]), np.array([0.0, 2.0])
    x = np.stack([a, b])
    k_aa, k_bb, k_ab = 1.5**3, 3.0**3, 1.0
    expected = 2 * k_ab - (k_aa + k_bb + 2 * k_ab) / 2
    assert kernel_distance(x, x, subsets=2, subset_size=2).mean == pytest.approx(expected)


def test_equal_distributions_score_about_zero_and_shifted_ones_more() -> None:
    x = features(2000, seed=1)
    same = kernel_distance(x, features(2000, seed=2), subsets=20, subset_size=500)
    other = kernel_distance(x, features(2000, seed=2, shift=0.5), subsets=20, subset_size=500)
    assert abs(same.mean) < 3 * same.std
    assert other.mean > 20 * abs(same.mean)


def test_seed_decides_the_subsets() -> None:
    x, y = features(50, seed=1), features(60, seed=2)
    first = kernel_distance(x, y, subsets=5, subset_size=20, seed=1)
    assert first == kernel_distance(torch.from_numpy(x), y, subsets=5, subset_size=20, seed=1)
    assert first.mean != kernel_distance(x, y, subsets=5, subset_size=20, seed=2).mean


@pytest.mark.parametrize(
    ("x", "y", "options", "message"),
    [
        (features(50), features(50, 5), {}, "6 and 5 features"),
        (features(50), features(40), {"subset_size": 41}, "subset_size is 41"),
        (features(50), features(40), {"subset_size": 1}, "subset_size is 1"),
        (features(50), features(40), {"subset_size": 10, "subsets": 0}, "subsets is 0"),
        (np.full((50, 6), np.inf), features(40), {"subset_size": 10}, "finite"),
    ],
)
def test_wrong_arguments_are_refused(x, y, options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kernel_distance(x, y, **options)


def test_the_mmd_of_sets_of_unequal_size_equals_the_sum_over_pairs() -> None:
    x, y = features(7, seed=1), features(11, seed=2, shift=0.4)

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return (float(a @ b) / 6 + 1) ** 3

    within_x = sum(kernel(a, b) for a, b in itertools.permutations(x, 2)) / (7 * 6)
    within_y = sum(kernel(a, b) for a, b in itertools.permutations(y, 2)) / (11 * 10)
    cross = sum(kernel(a, b) for a in x for b in y) / 77
    expected = within_x + within_y - 2 * cross
    assert mean_kernel(y) == pytest.approx(within_y, rel=1e-12)
    assert squared_mmd(x, y) == pytest.approx(expected, rel=1e-12)
    assert squared_mmd(torch.from_numpy(x), y, within2=within_y) == pytest.approx(expected)


def test_the_mmd_of_many_rows_is_that_of_one_subset_of_all_of_them() -> None:
    """More rows than one block of products holds; the other way is checked against the pairs."""
    x, y = features(2300, seed=1), features(2300, seed=2, shift=0.1)
    subset = kernel_distance(x, y, subsets=1, subset_size=2300)
    assert squared_mmd(x, y) == pytest.approx(subset.mean, rel=1e-9)


def test_the_mmd_has_no_bias_and_no_seed() -> None:
    """Sixty null repeats: the mean is zero within its own error; a repeat is the same number."""
    values = [
        squared_mmd(features(40, seed=2 * k), features(90, seed=2 * k + 1)) for k in range(60)
    ]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(60)
    assert values[0] == squared_mmd(features(40, seed=0), features(90, seed=1))


def test_too_few_rows_have_no_mmd() -> None:
    with pytest.raises(ValueError, match=r"squared_mmd: the sets have 1 and 5 rows"):
        squared_mmd(features(1), features(5))
    with pytest.raises(ValueError, match=r"squared_mmd: the sets have 6 and 5 features"):
        squared_mmd(features(4), features(5, 5))
    with pytest.raises(ValueError, match="mean_kernel: 1 rows"):
        mean_kernel(features(1))
