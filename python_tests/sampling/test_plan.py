from __future__ import annotations

import math

import pytest

from ddsm_ext.diffusion.config import DiffusionConfig
from ddsm_ext.diffusion.schedule import make_schedule
from ddsm_ext.sampling.config import SPACINGS, SamplerConfig
from ddsm_ext.sampling.plan import (
    plan_coefficients,
    plan_log_snrs,
    plan_steps,
    plan_timesteps,
)
from ddsm_ext.sampling.strategy import Strategy

SCHEDULES = {name: make_schedule(DiffusionConfig(schedule=name)) for name in ("linear", "cosine")}
LINEAR = SCHEDULES["linear"]


@pytest.mark.parametrize(
    ("spacing", "expected"),
    [
        ("linspace", [999, 749, 500, 250, 0]),  # round(249.75 i)
        ("leading", [800, 600, 400, 200, 0]),
        ("trailing", [999, 799, 599, 399, 199]),
        ("quadratic", [999, 562, 250, 62, 0]),  # round(999 (i / 4)²)
    ],
)
def test_five_of_a_thousand(spacing: str, expected: list[int]) -> None:
    assert plan_timesteps(1000, SamplerConfig("ddim", 5, spacing=spacing)) == expected


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("timesteps", [2, 3, 7, 50, 1000])
def test_every_count_visits_that_many_different_timesteps(spacing: str, timesteps: int) -> None:
    for steps in {1, 2, 3, timesteps // 3 + 1, timesteps - 1, timesteps}:
        if steps > timesteps:
            continue
        plan = plan_timesteps(timesteps, SamplerConfig("ddim", steps, spacing=spacing))
        assert len(plan) == steps
        assert plan == sorted(set(plan), reverse=True)
        assert plan[-1] >= 0
        assert plan[0] <= timesteps - 1
        if spacing != "leading":
            assert plan[0] == timesteps - 1
        if steps == timesteps:
            assert plan == list(range(timesteps - 1, -1, -1))


def test_steps_chain_and_carry_the_strategy() -> None:
    strategy = Strategy((0.5, 1.0), (LINEAR.log_snr(300.5),))
    steps = plan_steps(LINEAR, strategy, SamplerConfig("ddim", 50))
    assert [s.t_prev for s in steps] == [*[s.t for s in steps[1:]], None]
    assert [s.width for s in steps] == [0.5 if s.t > 300 else 1.0 for s in steps]
    assert [s.log_snr for s in steps] == plan_log_snrs(LINEAR, SamplerConfig("ddim", 50))
    assert [s.log_snr for s in steps] == [LINEAR.log_snr(s.t) for s in steps]
    assert {s.width for s in plan_steps(LINEAR, 0.75, SamplerConfig())} == {0.75}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("count", [1000, 100, 7])
def test_ancestral_step_equals_bayes(name: str, count: int) -> None:
    """q(x_s | x_t, x0) of two Gaussians for any s < t, with x_t = r x_s + sqrt(beta) noise."""
    schedule = SCHEDULES[name]
    small, large = (
        SamplerConfig("ddpm", count, variance=v) for v in ("fixed_small", "fixed_large")
    )
    steps = plan_steps(schedule, 1.0, small)
    ab = schedule.alphas_bar.tolist()
    pairs = zip(
        steps,
        plan_coefficients(schedule, steps, small, "epsilon"),
        plan_coefficients(schedule, steps, large, "epsilon"),
        strict=True,
    )
    for step, c, c_large in pairs:
        if step.t_prev is None:
            assert (c.x, c.x0, c.noise, c_large.noise) == (0.0, 1.0, 0.0, 0.0)
            continue
        ab_t, ab_s = ab[step.t], ab[step.t_prev]
        r2 = ab_t / ab_s
        beta = 1 - r2
        precision = 1 / (1 - ab_s) + r2 / beta
        assert c.x == pytest.approx(math.sqrt(r2) / beta / precision, rel=1e-8)
        assert c.x0 == pytest.approx(math.sqrt(ab_s) / (1 - ab_s) / precision, rel=1e-8)
        assert c.noise == pytest.approx(math.sqrt(1 / precision), rel=1e-8)
        assert c_large.noise == pytest.approx(math.sqrt(beta), rel=1e-8)
        assert (c.x, c.x0) == (c_large.x, c_large.x0)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_ddim_step_equals_the_paper(eta: float) -> None:
    """Song et al. 2021, eq. 12 and 16, evaluated at an (x_t, epsilon) of plain numbers."""
    sampler = SamplerConfig("ddim", 20, eta=eta)
    steps = plan_steps(LINEAR, 1.0, sampler)
    x_t, epsilon, z = 0.7, -1.3, 0.9
    ab = LINEAR.alphas_bar.tolist()
    for step, c in zip(steps, plan_coefficients(LINEAR, steps, sampler, "epsilon"), strict=True):
        ab_t, ab_s = ab[step.t], 1.0 if step.t_prev is None else ab[step.t_prev]
        sigma = eta * math.sqrt((1 - ab_s) / (1 - ab_t)) * math.sqrt(1 - ab_t / ab_s)
        x0 = (x_t - math.sqrt(1 - ab_t) * epsilon) / math.sqrt(ab_t)
        expected = (
            math.sqrt(ab_s) * x0 + math.sqrt(max(1 - ab_s - sigma**2, 0)) * epsilon + sigma * z
        )
        got_x0 = c.x0_from_x * x_t + c.x0_from_prediction * epsilon
        assert got_x0 == pytest.approx(x0, rel=1e-9)
        assert c.x * x_t + c.x0 * got_x0 + c.noise * z == pytest.approx(expected, rel=1e-8)


def test_ddim_with_eta_one_is_ddpm_with_small_variance() -> None:
    for count in (1000, 40):
        ddim, ddpm = (
            SamplerConfig("ddim", count, eta=1.0),
            SamplerConfig("ddpm", count, variance="fixed_small"),
        )
        steps = plan_steps(LINEAR, 1.0, ddim)
        for a, b in zip(
            plan_coefficients(LINEAR, steps, ddim, "v"),
            plan_coefficients(LINEAR, steps, ddpm, "v"),
            strict=True,
        ):
            for name in ("x0_from_x", "x0_from_prediction", "x", "x0", "noise"):
                assert getattr(a, name) == pytest.approx(getattr(b, name), rel=1e-7, abs=1e-12)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"steps is 1001, the schedule has 1000 timesteps"):
        plan_steps(LINEAR, 1.0, SamplerConfig(steps=1001))
    with pytest.raises(ValueError, match="need 0 < width <= 1"):
        plan_steps(LINEAR, 2.0, SamplerConfig())
    with pytest.raises(ValueError, match="parameterisation is 'eps'"):
        plan_coefficients(LINEAR, [], SamplerConfig(), "eps")
