"""Ancestral sampling and DDIM against guided-diffusion: learned variances, strided chains."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from golden import golden
from sampling.mixture import Recorder, draws
from torch import Tensor

from ddsm_ext.diffusion import CLEAN, DiffusionConfig, Level, NoiseSchedule, make_schedule
from ddsm_ext.sampling import Denoiser, SamplerConfig, ddim, ddpm, noise_levels
from ddsm_ext.sampling.method import Method

SCHEDULES = {name: make_schedule(DiffusionConfig(schedule=name)) for name in ("linear", "cosine")}
KINDS: dict[str, tuple[Method, dict[str, Any]]] = {
    "ddpm/fixed_large": (ddpm, {"variance": "fixed_large"}),
    "ddpm/fixed_small": (ddpm, {"variance": "fixed_small"}),
    "ddim0": (ddim, {"eta": 0.0}),
    "ddim0.5": (ddim, {"eta": 0.5}),
}


def stored(key: str) -> Tensor:
    return torch.from_numpy(golden("gd_process")[key])


def step(
    schedule: NoiseSchedule, x: Tensor, method: Method, to: int = -1, **options: Any
) -> list[Tensor]:
    """A step of each image from its own timestep, by the stored output of 6 channels."""
    output, t, z = stored("model_out"), stored("t").tolist(), stored("step_noise")
    found = []
    for i, here in enumerate(t):
        denoise = Denoiser(lambda x, t, width, i=i: output[i : i + 1], clip=True)
        there = schedule.level(here + to) if 0 <= here + to < 1000 else CLEAN
        levels = [schedule.level(here), there]
        found.append(method(denoise, x[i : i + 1], levels, lambda i=i: z[i : i + 1], **options))
    return found


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(
    ("key", "method", "options"),
    [
        ("p_sample", ddpm, {"variance": "learned"}),
        ("ddim_sample_eta0.0", ddim, {}),
        ("ddim_sample_eta0.5", ddim, {"eta": 0.5}),
        ("ddim_reverse", ddim, {"to": 1}),
    ],
)
def test_steps_of_a_network_of_six_channels(
    name: str, key: str, method: Method, options: dict
) -> None:
    x_t = stored(f"{name}/x_t")
    expected = stored(f"{name}/{key}")
    found = torch.cat(step(SCHEDULES[name], x_t, method, **options))
    kept = torch.ones(4, dtype=torch.bool)
    if key == "ddim_reverse":  # beyond the last timestep there is no level of ours
        kept = stored("t") < 999
    torch.testing.assert_close(found[kept], expected[kept], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_image_that_an_output_of_six_channels_predicts(name: str) -> None:
    x_t, t, output = stored(f"{name}/x_t"), stored("t").tolist(), stored("model_out")
    for clip in (False, True):
        for i, here in enumerate(t):
            denoise = Denoiser(lambda x, t, width, i=i: output[i : i + 1], clip=clip)
            x0 = denoise(x_t[i : i + 1], SCHEDULES[name].level(here))
            expected = stored(f"{name}/learned_range/clip{clip:d}/pred_xstart")[i : i + 1]
            torch.testing.assert_close(x0, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", SCHEDULES)
def test_learned_variances(name: str) -> None:
    """A step's noise without its mean: of z = 1 and of z = 0, at an x0 of zero."""
    schedule, output = SCHEDULES[name], stored("model_out")
    for i, here in enumerate(stored("t").tolist()):
        if here == 0:  # the last step draws no noise
            continue
        fraction = (output[i, 3:] + 1) / 2
        denoise = Recorder(lambda x, level: torch.zeros_like(x), fraction=fraction)
        levels, x = [schedule.level(here), schedule.level(here - 1)], torch.zeros_like(fraction)
        z = torch.ones_like(x)
        found = ddpm(denoise, x, levels, lambda z=z: z, variance="learned")
        expected = stored(f"{name}/learned_range/clip0/log_variance")[i]
        torch.testing.assert_close(2 * found.log(), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [10, 20])
@pytest.mark.parametrize("name", SCHEDULES)
def test_trajectories_of_strided_chains(name: str, steps: int, kind: str) -> None:
    levels = noise_levels(SCHEDULES[name], SamplerConfig("ddim", steps))
    assert [v.t for v in levels[:-1]] == stored(f"traj/{name}/{steps}/timesteps").tolist()
    method, options = KINDS[kind]
    denoise, noise = Recorder(), stored("traj/step_noise").flatten(1)
    x = method(denoise, stored("traj/z").flatten(), levels, draws(noise), **options)
    expected = stored(f"traj/{name}/{steps}/{kind}")
    found = torch.stack([*denoise.seen[1:], x])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    assert denoise.levels == levels[:-1]


def test_timesteps_of_the_reference() -> None:
    data = golden("gd_process")
    for key, settings in {
        "10": {"steps": 10},  # of 25 it rounds 166.5 down, to an even number
        "ddim10": {"steps": 10, "spacing": "leading"},
        "ddim25": {"steps": 25, "spacing": "leading"},
    }.items():
        levels = noise_levels(SCHEDULES["linear"], SamplerConfig("ddim", **settings))
        assert [v.t for v in levels[-2::-1]] == data[f"respace/{key}/timesteps"].tolist()
    strided = [*reversed(noise_levels(SCHEDULES["linear"], SamplerConfig(steps=10))[:-1])]
    betas = [1 - (here.alpha / there.alpha) ** 2 for here, there in pairs(strided)]
    assert betas == pytest.approx(data["respace/10/betas"].tolist(), rel=1e-10)


def pairs(levels: list[Level]) -> list[tuple[Level, Level]]:
    """Each with the cleaner one beside it, of levels from clean to noisy."""
    return [(here, there) for there, here in itertools.pairwise([CLEAN, *levels])]


def test_a_learned_variance_needs_a_network_that_has_one() -> None:
    net: Callable[..., Tensor] = lambda x, t, width: torch.zeros_like(x)  # noqa: E731
    levels = noise_levels(SCHEDULES["linear"], SamplerConfig(steps=2))
    x = torch.zeros(1, 3, 4, 4)
    with pytest.raises(ValueError, match="variance is 'learned', the network returned as many"):
        ddpm(Denoiser(net), x, levels, lambda: x, variance="learned")
