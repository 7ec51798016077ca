from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from sampling.toys import heun
from torch import Tensor

from ddsm_ext.diffusion import CLEAN, DiffusionConfig, make_schedule
from ddsm_ext.sampling import SAMPLERS, SamplerConfig, Strategy, ddim, evaluations, noise_levels
from ddsm_ext.sampling.config import SPACINGS

LINEAR = make_schedule(DiffusionConfig())


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


@pytest.mark.parametrize("spacing", SPACINGS)
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


@pytest.mark.parametrize("kind", SAMPLERS)
def test_every_level_is_evaluated_once_at_the_strategys_width(kind: str) -> None:
    strategy = Strategy((0.5, 1.0), (LINEAR.log_snr(300.5),))
    found = evaluations(LINEAR, SamplerConfig(kind, 50), strategy)
    assert [e.index for e in found] == list(range(50))
    assert [e.level for e in found] == noise_levels(LINEAR, SamplerConfig(kind, 50))[:-1]
    assert [e.width for e in found] == [0.5 if e.t > 300 else 1.0 for e in found]
    assert [e.log_snr for e in found] == [LINEAR.log_snrs[e.t].item() for e in found]
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
