"""Samplers and spacings that k-diffusion has, against it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from golden import golden
from sampling.mixture import Recorder, close, draws, exploding

from ddsm_ext.diffusion import CLEAN, DiffusionConfig, NoiseSchedule, make_schedule
from ddsm_ext.sampling import SAMPLERS, SamplerConfig, noise_levels
from ddsm_ext.sampling.levels import configured

KINDS = ("euler", "heun", "dpm_2", "dpmpp_2m", "euler_ancestral", "dpmpp_2s_ancestral")
EDM = make_schedule(DiffusionConfig(schedule="edm"))
LINEAR = make_schedule(DiffusionConfig())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [10, 20])
def test_trajectories(kind: str, steps: int) -> None:
    stored, run = golden("k_diffusion"), f"sample_{kind}/{steps}"
    sampler, denoise = SamplerConfig(kind, steps, spacing="karras"), Recorder()
    levels = noise_levels(EDM, sampler)
    x = levels[0].sigma * torch.from_numpy(stored["z"])
    x = configured(sampler, EDM)(denoise, x, levels, draws(stored["step_noise"]))
    np.testing.assert_allclose(
        [v.sigma for v in denoise.levels], stored[f"{run}/call_sigma"], rtol=1e-10
    )
    close(x, stored[f"{run}/final"])
    if f"{run}/x_at_steps" in stored:
        seen = torch.stack(denoise.seen)[:: 1 if len(denoise.seen) == steps else 2]
        close(seen, stored[f"{run}/x_at_steps"])


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_images_come_of_levels_that_scale_the_image(kind: str) -> None:
    """x at alpha and sigma is alpha times x at 1 and sigma / alpha."""
    stored, row = golden("k_diffusion"), SAMPLERS[kind]
    sigmas = stored["sigmas/vp/20"][:-1]
    levels = [*(LINEAR.level_at(-2 * math.log(s), clamp=True) for s in sigmas), CLEAN]
    unscaled = [*(exploding(level.log_snr) for level in levels[:-1]), CLEAN]
    z = torch.from_numpy(stored["z"])
    ends = []
    for visited, at in ((levels, LINEAR.level_at), (unscaled, exploding)):
        x = visited[0].sigma * z
        options = {"level_at": at} if row.between else {}
        ends.append(row.method(Recorder(), x, visited, draws(stored["step_noise"]), **options))
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("steps", [10, 20])
@pytest.mark.parametrize(
    ("spacing", "schedule"), [("karras", EDM), ("exponential", EDM), ("log_snr", EDM)]
)
def test_spacings(spacing: str, schedule: NoiseSchedule, steps: int) -> None:
    levels = noise_levels(schedule, SamplerConfig("euler", steps, spacing=spacing))
    key = "exponential" if spacing == "log_snr" else spacing
    found = [level.sigma for level in levels]
    np.testing.assert_allclose(found, golden("k_diffusion")[f"sigmas/{key}/{steps}"], rtol=1e-10)
