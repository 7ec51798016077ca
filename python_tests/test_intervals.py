"""Intervals against scipy, the jackknife against a plain loop and known distances."""

from __future__ import annotations

import math
import statistics
import subprocess
import sys

import numpy as np
import pytest
import scipy.stats

from ddsm_ext.intervals import Interval, jackknife, mean_interval, paired_interval, standard_error


@pytest.mark.parametrize("count", [2, 3, 8, 16, 200])
def test_paired_interval_is_that_of_scipys_t_test(count):
    random = np.random.default_rng(count)
    a, b = random.normal(2.0, 1.0, count), random.normal(1.5, 2.0, count)
    found = paired_interval(a.tolist(), b.tolist())
    low, high = scipy.stats.ttest_rel(a, b).confidence_interval(0.95)
    assert found.mean == pytest.approx((a - b).mean(), rel=1e-12)
    assert found.mean - found.half_width == pytest.approx(low, rel=1e-9)
    assert found.mean + found.half_width == pytest.approx(high, rel=1e-9)
    assert standard_error(a) == pytest.approx(scipy.stats.sem(a), rel=1e-12)
    single = mean_interval(a)
    expected = scipy.stats.t.interval(0.95, count - 1, a.mean(), scipy.stats.sem(a))
    assert (single.mean - single.half_width, single.mean + single.half_width) == pytest.approx(
        expected
    )


def test_an_interval_holds_the_mean_as_often_as_it_says():
    random = np.random.default_rng(0)
    samples = random.normal(0.3, 1.0, (4000, 8)) - random.normal(0.0, 0.5, (4000, 8))
    found = [mean_interval(row) for row in samples.tolist()]
    share = statistics.fmean(abs(i.mean - 0.3) <= i.half_width for i in found)
    assert share == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / 4000))


def test_where_the_error_is_not_known_there_is_no_width():
    assert mean_interval([3.0]) == Interval(3.0, 0.0)
    assert paired_interval([3.0], [1.0]) == Interval(2.0, 0.0)
    assert mean_interval([2.0, 2.0, 2.0]) == Interval(2.0, 0.0)
    assert standard_error([3.0]) is None
    assert standard_error([]) is None
    assert not Interval(0.0, 0.0).holds_zero


@pytest.mark.parametrize(
    ("mean", "half_width", "says"),
    [
        (2.0, 1.0, "above_zero"),
        (-2.0, 1.0, "below_zero"),
        (0.5, 1.0, "holds_zero"),
        (1.0, 1.0, "holds_zero"),
        (2.0, 0.0, "above_zero"),
        (-2.0, 0.0, "below_zero"),
        (math.inf, 0.0, "above_zero"),
        (0.0, 0.0, None),
    ],
)
def test_what_an_interval_says_of_zero(mean, half_width, says):
    interval = Interval(mean, half_width)
    names = ("above_zero", "below_zero", "holds_zero")
    assert [name for name in names if getattr(interval, name)] == ([says] if says else [])


def test_refusals():
    with pytest.raises(ValueError, match="there are no values; need at least one"):
        mean_interval([])
    with pytest.raises(ValueError, match="2 and 1 values; need as many of each"):
        paired_interval([1.0, 2.0], [1.0])
    for blocks in (1, 6):
        with pytest.raises(ValueError, match=f"{blocks} blocks of 11 rows; need 2 to 5"):
            jackknife(np.mean, np.zeros((11, 2)), blocks)


def spread(rows: np.ndarray) -> float:
    return float(np.log(rows.std(axis=0)).sum() + np.median(rows))


@pytest.mark.parametrize(("count", "blocks"), [(24, 4), (24, 12), (25, 4), (11, 2)])
def test_jackknife_is_a_plain_loop(count, blocks):
    rows = np.random.default_rng(0).normal(size=(count, 3))
    expected = []
    for left_out in range(blocks):
        kept = np.array([row for i, row in enumerate(rows) if i % blocks != left_out])
        expected.append(blocks * spread(rows) - (blocks - 1) * spread(kept))
    assert jackknife(spread, rows, blocks) == pytest.approx(expected, rel=1e-12)


def test_jackknife_of_a_mean_is_the_mean():
    rows = np.random.default_rng(1).normal(size=(32, 1))
    values = jackknife(lambda x: float(x.mean()), rows, 8)
    blocks = [float(rows[i::8].mean()) for i in range(8)]
    # the pseudo-values of a mean are the means of the blocks
    assert values == pytest.approx(blocks)
    assert statistics.fmean(values) == pytest.approx(rows.mean())
    assert standard_error(values) == pytest.approx(scipy.stats.sem(blocks))


def frechet(rows: np.ndarray) -> float:
    """|m|^2 + tr(C + I - 2 C^1/2) to N(0, I), by the eigenvalues of C."""
    eigenvalues = np.linalg.eigvalsh(np.cov(rows, rowvar=False))
    mean = rows.mean(axis=0)
    return float(mean @ mean + np.square(np.sqrt(np.maximum(eigenvalues, 0)) - 1).sum())


@pytest.mark.parametrize("true", [0.0, 1.0])
def test_jackknifed_frechet_distance_of_gaussians_has_less_bias(true):
    # rows of N(m, I) with |m|^2 = true
    random = np.random.default_rng(2)
    mean = np.zeros(6)
    mean[0] = math.sqrt(true)
    plain, jackknifed = [], []
    for _ in range(60):
        rows = mean + random.normal(size=(96, 6))
        plain.append(frechet(rows) - true)
        jackknifed.append(statistics.fmean(jackknife(frechet, rows, 8)) - true)
    error = standard_error(jackknifed)
    assert statistics.fmean(plain) > 0.1
    assert abs(statistics.fmean(jackknifed)) < 0.25 * statistics.fmean(plain)
    assert abs(statistics.fmean(jackknifed)) < 4 * error + 0.1 * statistics.fmean(plain)


def test_the_error_of_the_pseudo_values_is_that_of_the_distance():
    random = np.random.default_rng(3)
    estimates, errors = [], []
    for _ in range(120):
        rows = 0.4 + random.normal(size=(96, 4))
        values = jackknife(frechet, rows, 12)
        estimates.append(statistics.fmean(values))
        errors.append(standard_error(values))
    # the standard deviation of 120 estimates is itself known to 6 %, the mean error to 2 %
    assert statistics.fmean(errors) == pytest.approx(statistics.stdev(estimates), rel=0.25)


def test_importing_it_imports_no_torch_and_no_scipy():
    code = "import sys, ddsm_ext.intervals; assert not {'torch', 'scipy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("mean", "half", "text"),
    [
        (0.2433, 0.0143, "+0.243 ± 0.014"),
        (-12.3, 4.56, "-12.3 ± 4.6"),
        (1234.4, 321.0, "+1234 ± 321"),
        (6.8, 6.7, "+6.8 ± 6.7"),
        (6.78, 6.76, "+6.78 ± 6.76"),  # above 0, and said so
        (-0.0081, 0.00808, "-0.00810 ± 0.00808"),  # below 0
        (-0.0081, 0.00812, "-0.0081 ± 0.0081"),  # not below 0: it holds 0
        (0.25, 0.0, "+0.25"),
    ],
)
def test_an_interval_as_text_tells_its_side(mean: float, half: float, text: str) -> None:
    assert Interval(mean, half).text() == text
    assert Interval(abs(mean), half).text("") == text[1:]
