"""What samplers visit and evaluate, and what they make of the network's output there."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from golden import golden
from sampling.toys import heun
from torch import Tensor

from ddsm_ext.diffusion import CLEAN, DiffusionConfig, NoiseSchedule, make_schedule
from ddsm_ext.diffusion.level import Level
from ddsm_ext.sampling import SAMPLERS, SamplerConfig, Strategy, ddim, evaluations, noise_levels
from ddsm_ext.sampling.config import FINALS
from ddsm_ext.sampling.levels import check_levels, prediction_gains

LINEAR = make_schedule(DiffusionConfig())
EDM = make_schedule(DiffusionConfig(schedule="edm"))


def visited(timesteps: int, sampler: SamplerConfig) -> list[float]:
    schedule = make_schedule(DiffusionConfig(timesteps=timesteps))
    levels = noise_levels(schedule, sampler)
    assert levels[-1] == CLEAN
    return [level.t for level in levels[:-1]]


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
    assert visited(1000, SamplerConfig("ddim", 5, spacing=spacing)) == expected


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing", "quadratic"])
@pytest.mark.parametrize("timesteps", [2, 3, 7, 50, 1000])
def test_every_count_visits_that_many_different_timesteps(spacing: str, timesteps: int) -> None:
    for steps in {1, 2, 3, timesteps // 3 + 1, timesteps - 1, timesteps}:
        if steps > timesteps:
            continue
        plan = visited(timesteps, SamplerConfig("ddim", steps, spacing=spacing))
        assert len(plan) == steps
        assert plan == sorted(set(plan), reverse=True)
        assert plan[-1] >= 0
        assert plan[0] <= timesteps - 1
        if spacing != "leading":
            assert plan[0] == timesteps - 1
        if steps == timesteps:
            assert plan == list(range(timesteps - 1, -1, -1))


@pytest.mark.parametrize("spacing", ["uniform", "karras", "exponential", "log_snr"])
@pytest.mark.parametrize("schedule", [LINEAR, EDM], ids=["linear", "edm"])
def test_spacings_between_timesteps_have_both_ends(spacing: str, schedule: NoiseSchedule) -> None:
    for steps in (1, 2, 3, 10, 1000):
        for final in FINALS:
            sampler = SamplerConfig("ddim", steps, spacing=spacing, final=final)
            levels = noise_levels(schedule, sampler)
            assert len(levels) == steps + 1
            assert check_levels([*levels, CLEAN] if final == "sigma_min" else levels)
            assert levels[0] is schedule.level(999)
            if final == "sigma_min":
                assert levels[-1] is schedule.level(0)
            elif steps > 1:
                assert levels[-2] is schedule.level(0)


def test_spacings_are_even_in_what_they_say() -> None:
    """In t, in sigma^(1 / rho) and in log sigma, sigma in units of alpha."""
    settings = {"sigma_min": 0.05, "sigma_max": 90.0}
    evenly = {
        ("uniform",): lambda level: level.t,
        ("karras", 7.0): lambda level: (level.sigma / level.alpha) ** (1 / 7),
        ("karras", 2.0): lambda level: (level.sigma / level.alpha) ** (1 / 2),
        ("log_snr",): lambda level: level.log_snr,
        ("exponential",): lambda level: math.log(level.sigma / level.alpha),
    }
    for (spacing, *rho), measure in evenly.items():
        more = {} if spacing == "uniform" else {**settings, **dict(zip(["rho"], rho, strict=False))}
        levels = noise_levels(LINEAR, SamplerConfig("ddim", 9, spacing=spacing, **more))
        found = [measure(level) for level in levels[:-1]]
        assert found == pytest.approx(np.linspace(found[0], found[-1], 9), rel=1e-9)
        if more:
            ends = [levels[i].sigma / levels[i].alpha for i in (0, -2)]
            assert ends == pytest.approx([90.0, 0.05], rel=1e-9)


def test_latent_diffusion_visits_from_timestep_one() -> None:
    stored, one = golden("ldm_schedule"), torch.ones((), dtype=torch.float64)
    schedule = make_schedule(
        DiffusionConfig(schedule="scaled_linear", beta_start=0.0015, beta_end=0.0195)
    )
    for steps in (10, 50, 200):
        sampler = SamplerConfig(
            "ddim", steps, eta=1.0, spacing="leading", steps_offset=1, final="sigma_min"
        )
        levels, key = noise_levels(schedule, sampler), f"ddim{steps}"
        assert [v.t for v in levels[-2::-1]] == stored[f"{key}/timesteps"].tolist()
        variances = [v.alpha**2 for v in levels[::-1]]
        assert variances[1:] == pytest.approx(stored[f"{key}/alphas"].tolist(), rel=1e-10)
        assert variances[:-1] == pytest.approx(stored[f"{key}/alphas_prev"].tolist(), rel=1e-10)
        added = [
            float(ddim(lambda x, level: 0 * x, 0 * one, list(pair), lambda: one, eta=1.0))
            for pair in itertools.pairwise(levels)
        ]
        assert added[::-1] == pytest.approx(stored[f"{key}/sigmas_eta1"].tolist(), rel=1e-9)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"spacing": "leading", "final": "sigma_min"}, "10 steps visits t = 0, where final"),
        ({"spacing": "leading", "steps_offset": 100}, "first at t = 1000; need t <= 999"),
        ({"spacing": "karras", "sigma_max": 200.0}, r"sigma_max is 200; need 0.01 <= .* <= 157.4"),
        ({"spacing": "log_snr", "sigma_min": 0.001}, r"sigma_min is 0.001; need 0.01 <= sigma_min"),
        ({"steps": None, "final": "sigma_min"}, "1000 steps and one level more to end at"),
    ],
)
def test_levels_that_do_not_fit_the_schedule(settings: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        noise_levels(LINEAR, SamplerConfig("ddim", **{"steps": 10, **settings}))


@pytest.mark.parametrize("kind", SAMPLERS)
def test_every_level_is_evaluated_at_the_strategys_width(kind: str) -> None:
    strategy = Strategy((0.5, 1.0), (LINEAR.log_snr(300.5),))
    found = evaluations(LINEAR, SamplerConfig(kind, 50), strategy)
    twice = kind in ("heun", "dpm_2", "dpmpp_2s_ancestral")
    assert [e.index for e in found] == list(range(99 if twice else 50))
    visited = noise_levels(LINEAR, SamplerConfig(kind, 50))[:-1]
    if not twice:
        assert [e.level for e in found] == visited
    else:
        assert [e.level for e in found[::2]] == visited
    assert [e.width for e in found] == [0.5 if e.t > 300.5 else 1.0 for e in found]
    for e in found:
        assert e.log_snr == pytest.approx(LINEAR.log_snr(e.t), abs=1e-9)
    assert {e.width for e in evaluations(LINEAR, SamplerConfig(kind), 0.75)} == {0.75}


def test_a_sampler_of_two_evaluations_is_counted_by_what_it_calls() -> None:
    strategy = Strategy((0.5, 1.0), (LINEAR.log_snr(400),))
    found = evaluations(LINEAR, SamplerConfig(steps=4), strategy, method=heun)
    assert [e.t for e in found] == [999, 666, 666, 333, 333, 0, 0]
    assert [e.width for e in found] == [0.5, 0.5, 0.5, 1.0, 1.0, 1.0, 1.0]


def test_levels_between_timesteps() -> None:
    levels = [*map(LINEAR.level, (998.5, 300, 0.25)), CLEAN]
    found = evaluations(LINEAR, SamplerConfig(), 1.0, method=ddim, levels=levels)
    assert [e.t for e in found] == [998.5, 300, 0.25]
    assert [e.log_snr for e in found] == [LINEAR.log_snr(t) for t in (998.5, 300, 0.25)]


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"steps is 1001, the schedule has 1000 timesteps"):
        evaluations(LINEAR, SamplerConfig(steps=1001))
    with pytest.raises(ValueError, match="need 0 < width <= 1"):
        evaluations(LINEAR, SamplerConfig(), 2.0)
    here, there = LINEAR.level(3), LINEAR.level(9)
    with pytest.raises(ValueError, match="need it rising, noisy to clean"):
        evaluations(LINEAR, SamplerConfig(), levels=[here, there, CLEAN])
    for levels in ([], [CLEAN], [there, here]):
        with pytest.raises(ValueError, match="need one or more noisy ones, then CLEAN"):
            evaluations(LINEAR, SamplerConfig(), levels=levels)

    def after_the_end(denoise: Callable, x: Tensor, levels: list, noise: Callable) -> Tensor:
        return denoise(denoise(x, levels[0]), levels[-1])

    with pytest.raises(ValueError, match=r"evaluation 2 of the sampler is at the clean image"):
        evaluations(LINEAR, SamplerConfig(), method=after_the_end)


def test_evaluations_leave_the_random_state_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    evaluations(LINEAR, SamplerConfig(steps=3))
    assert torch.equal(torch.get_rng_state(), before)


# alpha-bar of the linear schedule by Ho et al. 2020, section 4, and of the clean image after it
ALPHAS_BAR = np.cumprod(1.0 - np.linspace(1e-4, 0.02, 1000))


def steps_of(timesteps: list[int]) -> list[tuple[float, float]]:
    """(alpha-bar here, alpha-bar next) of every step."""
    return list(itertools.pairwise([*ALPHAS_BAR[timesteps], 1.0]))


def by_output(here: float, of_x0: float, of_epsilon: float) -> dict[str, float]:
    """d x_next / d output where x_next is of_x0 x0 + of_epsilon epsilon, at a fixed x.

    x0 = (x - sqrt(1 - a) epsilon) / sqrt(a) (Song et al. 2021, eq. 9); x0 = sqrt(a) x - sqrt(1 - a)
    v and epsilon = sqrt(1 - a) x + sqrt(a) v (Salimans & Ho 2022, appendix D).
    """
    alpha, sigma = math.sqrt(here), math.sqrt(1 - here)
    return {
        "epsilon": of_epsilon - of_x0 * sigma / alpha,
        "x0": of_x0 - of_epsilon * alpha / sigma,
        "v": of_epsilon * alpha - of_x0 * sigma,
    }


@pytest.mark.parametrize("parameterisation", ["epsilon", "x0", "v"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_gains_of_ddim_are_its_coefficients(eta: float, parameterisation: str) -> None:
    # Song et al. 2021, eq. 12 and 16
    expected = []
    for here, there in steps_of([999, 749, 500, 250, 0]):
        spread = eta * math.sqrt((1 - there) / (1 - here)) * math.sqrt(1 - here / there)
        direction = math.sqrt(max(0.0, 1 - there - spread**2))
        expected.append(by_output(here, math.sqrt(there), direction)[parameterisation])
    found = prediction_gains(LINEAR, SamplerConfig("ddim", 5, eta=eta), parameterisation)
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("variance", ["fixed_large", "fixed_small"])
def test_gains_of_ddpm_are_its_coefficients(variance: str) -> None:
    sampler = SamplerConfig("ddpm", variance=variance)
    here, there = np.transpose(steps_of(list(range(999, -1, -1))))
    beta = 1 - here / there
    # Ho et al. 2020, eq. 11: (x - beta / sqrt(1 - a) epsilon) / sqrt(1 - beta)
    expected = -beta / np.sqrt(1 - here) / np.sqrt(1 - beta)
    assert prediction_gains(LINEAR, sampler, "epsilon") == pytest.approx(expected, rel=1e-9)
    # eq. 7: sqrt(a_next) beta / (1 - a) x0
    expected = np.sqrt(there) * beta / (1 - here)
    assert prediction_gains(LINEAR, sampler, "x0") == pytest.approx(expected, rel=1e-9)
    expected = -expected * np.sqrt(1 - here)
    assert prediction_gains(LINEAR, sampler, "v") == pytest.approx(expected, rel=1e-9)


def x0_of(x: float, level: Level, output: float, parameterisation: str) -> float:
    """The image of an output, from the definitions of epsilon and v."""
    if parameterisation == "epsilon":
        return (x - level.sigma * output) / level.alpha
    return level.alpha * x - level.sigma * output if parameterisation == "v" else output


@pytest.mark.parametrize("parameterisation", ["epsilon", "x0", "v"])
def test_gains_of_a_sampler_of_two_evaluations_are_differences(parameterisation: str) -> None:
    levels = [*map(LINEAR.level, (950, 600.5, 300, 20)), CLEAN]

    def images(outputs: list[float]) -> list[float]:
        """What each evaluation sees, and the end."""
        seen: list[float] = []

        def denoise(x: Tensor, level: Level) -> Tensor:
            seen.append(float(x))
            return torch.as_tensor(
                x0_of(float(x), level, outputs[len(seen) - 1], parameterisation),
                dtype=torch.float64,
            )

        end = heun(denoise, torch.tensor(0.7, dtype=torch.float64), levels, lambda: None)
        return [*seen, float(end)]

    count = len(evaluations(LINEAR, SamplerConfig(), method=heun, levels=levels))
    assert count == 7  # two a step, one in the last
    outputs = np.random.default_rng(0).normal(size=count).tolist()
    expected = []
    for i in range(count):
        above, below = list(outputs), list(outputs)
        above[i] += 1e-3
        below[i] -= 1e-3  # the image is linear in each output, so that no step is too long
        expected.append((images(above)[i + 1] - images(below)[i + 1]) / 2e-3)
    found = prediction_gains(LINEAR, SamplerConfig(), parameterisation, method=heun, levels=levels)
    assert found == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("parameterisation", ["epsilon", "x0"])
def test_gains_on_levels_that_do_not_preserve_the_variance(parameterisation: str) -> None:
    # noise is added without scaling: x = x0 + sigma epsilon, x_next = x0 + sigma_next epsilon
    sigmas = [80.0, 10.0, 2.0, 0.1]
    levels = [*(Level(i, -2 * math.log(s), 0.0, s * s) for i, s in enumerate(sigmas)), CLEAN]
    steps = itertools.pairwise([*sigmas, 0.0])
    if parameterisation == "epsilon":
        expected = [(there - here) / math.hypot(1.0, there) for here, there in steps]
    else:
        expected = [(1 - there / here) / math.hypot(1.0, there) for here, there in steps]
    found = prediction_gains(LINEAR, SamplerConfig(), parameterisation, method=ddim, levels=levels)
    assert found == pytest.approx(expected, rel=1e-9)
    # the same sampler in variance-preserving units: x / hypot(1, sigma) at every level
    scaled = [Level(v.t, v.log_snr, -0.5 * math.log1p(v.variance),
                    v.variance / (1 + v.variance)) for v in levels[:-1]]  # fmt: skip
    again = prediction_gains(
        LINEAR, SamplerConfig(), parameterisation, method=ddim, levels=[*scaled, CLEAN]
    )
    assert again == pytest.approx(expected, rel=1e-9)


def test_gains_of_samplers_without_gradients_or_in_place() -> None:
    sampler = SamplerConfig("ddim", 6)
    expected = prediction_gains(LINEAR, sampler, "v")

    @torch.no_grad()
    def without(denoise: Callable, x: Tensor, levels: list, noise: Callable) -> Tensor:
        return ddim(denoise, x, levels, noise)

    def in_place(denoise: Callable, x: Tensor, levels: list, noise: Callable) -> Tensor:
        for here, there in itertools.pairwise(levels):
            x0 = denoise(x, here)
            share = there.sigma / here.sigma
            x.mul_(share).add_((there.alpha - share * here.alpha) * x0)
        return x

    def clipped(denoise: Callable, x: Tensor, levels: list, noise: Callable) -> Tensor:
        return ddim(lambda x, level: denoise(x, level).clamp(-1, 1), x, levels, noise)

    for method in (without, in_place, clipped):
        found = prediction_gains(LINEAR, sampler, "v", method=method)
        assert found == pytest.approx(expected, rel=1e-9)


def test_an_evaluation_whose_output_is_not_used_has_no_gain() -> None:
    def wasteful(denoise: Callable, x: Tensor, levels: list, noise: Callable) -> Tensor:
        denoise(x, levels[0])
        return ddim(denoise, x, levels, noise)

    expected = prediction_gains(LINEAR, SamplerConfig("ddim", 3), "epsilon")
    found = prediction_gains(LINEAR, SamplerConfig("ddim", 3), "epsilon", method=wasteful)
    assert found == [0.0, *expected]


def test_gains_are_refused_for_what_is_unknown() -> None:
    with pytest.raises(ValueError, match=r"prediction_gains: parameterisation is 'noise'; need"):
        prediction_gains(LINEAR, SamplerConfig(), "noise")
    with pytest.raises(ValueError, match="steps is 1001"):
        prediction_gains(LINEAR, SamplerConfig(steps=1001), "v")
    torch.manual_seed(3)
    before = torch.get_rng_state()
    prediction_gains(LINEAR, SamplerConfig(steps=3), "v")
    assert torch.equal(torch.get_rng_state(), before)
