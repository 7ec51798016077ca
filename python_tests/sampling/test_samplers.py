"""Steps of the sampler functions on plain numbers, against formulas of papers."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from ddsm_ext.diffusion import CLEAN, DiffusionConfig, Level, make_schedule
from ddsm_ext.sampling import SamplerConfig, ddim, ddpm, euler_ancestral, noise_levels
from ddsm_ext.sampling.method import Method

SCHEDULES = {name: make_schedule(DiffusionConfig(schedule=name)) for name in ("linear", "cosine")}
LINEAR = SCHEDULES["linear"]


def step(
    method: Method, here: Level, there: Level, x: float, x0: float, z: float, **options: object
) -> float:
    """One step of a sampler from a number x, with the denoiser's x0 and the noise z given."""

    def number(value: float) -> torch.Tensor:
        return torch.tensor(value, dtype=torch.float64)

    return method(
        lambda x, level: number(x0), number(x), [here, there], lambda: number(z), **options
    ).item()


def coefficients(method: Method, here: Level, there: Level, **options: object) -> list[float]:
    """Of x, x0 and the noise in a step."""
    units = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
    return [step(method, here, there, *unit, **options) for unit in units]


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("count", [1000, 100, 7])
def test_ancestral_step_equals_bayes(name: str, count: int) -> None:
    """q(x_s | x_t, x0) of two Gaussians for any s < t, with x_t = r x_s + sqrt(beta) noise."""
    schedule = SCHEDULES[name]
    alphas_bar = schedule.log_alphas_bar.exp().tolist()
    levels = noise_levels(schedule, SamplerConfig(steps=count))
    for here, there in itertools.pairwise(levels):
        x, x0, noise = coefficients(ddpm, here, there, variance="fixed_small")
        *same, large = coefficients(ddpm, here, there, variance="fixed_large")
        assert same == [x, x0]
        if there == CLEAN:
            assert (x, x0, noise, large) == (0.0, 1.0, 0.0, 0.0)
            continue
        ab_t, ab_s = alphas_bar[here.t], alphas_bar[there.t]
        r2 = ab_t / ab_s
        beta = 1 - r2
        precision = 1 / (1 - ab_s) + r2 / beta
        assert x == pytest.approx(math.sqrt(r2) / beta / precision, rel=1e-8)
        assert x0 == pytest.approx(math.sqrt(ab_s) / (1 - ab_s) / precision, rel=1e-8)
        assert noise == pytest.approx(math.sqrt(1 / precision), rel=1e-8)
        assert large == pytest.approx(math.sqrt(beta), rel=1e-8)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_ddim_step_equals_the_paper(eta: float) -> None:
    """Song et al. 2021, eq. 12 and 16, evaluated at an (x_t, epsilon) of plain numbers."""
    x_t, epsilon, z = 0.7, -1.3, 0.9
    alphas_bar = LINEAR.log_alphas_bar.exp().tolist()
    levels = noise_levels(LINEAR, SamplerConfig("ddim", 20))
    for here, there in itertools.pairwise(levels):
        ab_t, ab_s = alphas_bar[here.t], 1.0 if there == CLEAN else alphas_bar[there.t]
        sigma = eta * math.sqrt((1 - ab_s) / (1 - ab_t)) * math.sqrt(1 - ab_t / ab_s)
        x0 = (x_t - math.sqrt(1 - ab_t) * epsilon) / math.sqrt(ab_t)
        expected = (
            math.sqrt(ab_s) * x0 + math.sqrt(max(1 - ab_s - sigma**2, 0)) * epsilon + sigma * z
        )
        assert step(ddim, here, there, x_t, x0, z, eta=eta) == pytest.approx(expected, rel=1e-8)


def test_ddim_with_eta_one_is_ddpm_with_small_variance() -> None:
    for count in (1000, 40):
        levels = noise_levels(LINEAR, SamplerConfig("ddim", count))
        for pair in itertools.pairwise(levels):
            a = coefficients(ddim, *pair, eta=1.0)
            b = coefficients(ddpm, *pair, variance="fixed_small")
            assert a == pytest.approx(b, rel=1e-7, abs=1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ancestral_euler_is_ddim_where_levels_preserve_the_variance(eta: float) -> None:
    for pair in itertools.pairwise(noise_levels(LINEAR, SamplerConfig("ddim", 20))):
        a = coefficients(euler_ancestral, *pair, eta=eta)
        assert a == pytest.approx(coefficients(ddim, *pair, eta=eta), rel=1e-7, abs=1e-12)


def test_ddim_runs_on_levels_that_do_not_scale_the_image() -> None:
    """With alpha = 1, DDIM is Euler's method over sigma (Karras et al. 2022, section 3 and C.4)."""
    here, there = (Level(t=s, log_snr=-2 * math.log(s), log_alpha=0.0, variance=s * s)
                   for s in (50.0, 30.0))  # fmt: skip
    x, x0 = 12.0, 0.3
    expected = x + (30.0 - 50.0) * (x - x0) / 50.0
    assert step(ddim, here, there, x, x0, 0.0) == pytest.approx(expected, rel=1e-12)
    for method, options in ((ddpm, {}), (ddim, {"eta": 0.5})):
        with pytest.raises(ValueError, match=r"alpha² \+ sigma² is 2501 at t = 50; need 1"):
            step(method, here, there, x, x0, 0.0, **options)


@pytest.mark.parametrize(("method", "options"), [(ddpm, {}), (ddim, {"eta": 0.5})])
def test_every_level_has_to_preserve_the_variance(method: Method, options: dict) -> None:
    """The straight paths of flow matching do so at sigma 1 and at the image alone."""
    noisy = Level(t=1000, log_snr=-math.inf, log_alpha=-math.inf, variance=1.0)
    middle = Level(t=500, log_snr=0.0, log_alpha=math.log(0.5), variance=0.25)
    with pytest.raises(ValueError, match=r"alpha² \+ sigma² is 0.5 at t = 500; need 1"):
        step(method, noisy, middle, 1.0, 0.0, 0.0, **options)
    assert step(ddim, noisy, middle, 1.0, 0.0, 0.0) == 0.5


def test_a_little_noise_without_a_scale_does_not_preserve_the_variance() -> None:
    little = Level(t=0, log_snr=-2 * math.log(1e-5), log_alpha=0.0, variance=1e-10)
    assert not little.preserves_variance
    assert all(LINEAR.level(t).preserves_variance for t in (0, 0.5, 999))
    assert CLEAN.preserves_variance
