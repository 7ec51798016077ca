"""Samplers and spacings that k-diffusion has, against it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from golden import golden
from sampling.mixture import Recorder, close, draws

from ddsm_ext.diffusion import DiffusionConfig, make_schedule
from ddsm_ext.sampling import SamplerConfig, noise_levels
from ddsm_ext.sampling.levels import configured

KINDS = ("euler", "heun", "dpm_2", "dpmpp_2m", "euler_ancestral", "dpmpp_2s_ancestral")
EDM = make_schedule(DiffusionConfig(schedule="edm"))


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


@pytest.mark.parametrize("steps", [10, 20])
@pytest.mark.parametrize("spacing", ["karras", "exponential", "log_snr"])
def test_spacings(spacing: str, steps: int) -> None:
    levels = noise_levels(EDM, SamplerConfig("euler", steps, spacing=spacing))
    key = "exponential" if spacing == "log_snr" else spacing
    found = [level.sigma for level in levels]
    np.testing.assert_allclose(found, golden("k_diffusion")[f"sigmas/{key}/{steps}"], rtol=1e-10)
