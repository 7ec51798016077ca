"""Heun and Euler with churn against EDM's own samplers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from golden import golden
from sampling.mixture import Recorder, close, exploding, gauss, mixture

from ddsm_ext.diffusion import CLEAN, DiffusionConfig, make_schedule
from ddsm_ext.sampling import SamplerConfig, euler, heun, noise_levels
from ddsm_ext.sampling.levels import configured

EDM = make_schedule(DiffusionConfig(schedule="edm"))
DATA = {"gauss": gauss, "mixture": mixture}
CHURN = {"s_churn": 20.0, "s_min": 0.05, "s_max": 50.0, "s_noise": 1.003}


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize(
    ("key", "settings"),
    [
        ("6", {}),
        ("10", {}),
        ("18", {}),
        ("10_rho3_range", {"sigma_min": 0.01, "sigma_max": 50.0, "rho": 3}),
        ("10_churn", CHURN),
    ],
)
def test_heun(data: str, key: str, settings: dict) -> None:
    stored = golden("edm_samplers")
    sampler = SamplerConfig("heun", int(key.split("_")[0]), spacing="karras", **settings)
    levels, denoise = noise_levels(EDM, sampler), Recorder(DATA[data])
    # The reference draws at every step, whether or not there is noise to add.
    churned = [CHURN["s_min"] <= v.sigma <= CHURN["s_max"] for v in levels[:-1]]
    draws = iter(torch.from_numpy(stored["step_noise"])[: len(churned)][churned])
    x = levels[0].sigma * torch.from_numpy(stored["z"])
    x = configured(sampler, EDM)(denoise, x, levels, draws.__next__)
    run = f"edm/{data}/{key}"
    np.testing.assert_allclose(
        [v.sigma for v in denoise.levels], stored[f"{run}/call_sigma"], rtol=1e-10
    )
    close(torch.stack(denoise.seen), stored[f"{run}/call_x"], 1e-6)  # stored from float32
    close(x, stored[f"{run}/final"])


@pytest.mark.parametrize(
    ("key", "method"),
    [("10_iddpm_linear_heun", heun), ("10_edm_linear_euler", euler)],
)
def test_levels_of_the_ablation(key: str, method) -> None:
    """Those over sigma itself; its runs over other times are not samplers of ours."""
    stored, run = golden("edm_samplers"), f"ablation/mixture/{key}"
    sigmas = list(dict.fromkeys(stored[f"{run}/call_sigma"].tolist()))
    levels = [*(exploding(-2 * math.log(sigma)) for sigma in sigmas), CLEAN]
    x = levels[0].sigma * torch.from_numpy(stored["z"])
    x = method(Recorder(), x, levels, None, level_at=exploding)
    close(x, stored[f"{run}/final"])


def test_churn_beyond_the_noise_of_the_schedule_tells_the_last_timestep() -> None:
    sampler = SamplerConfig("euler", 4, spacing="karras", s_churn=4.0)
    levels, denoise = noise_levels(EDM, sampler), Recorder()
    z = torch.zeros(3, dtype=torch.float64)
    configured(sampler, EDM)(denoise, z, levels, lambda: z)
    assert denoise.levels[0].t == 999
    grown = [here.sigma / there.sigma for here, there in zip(denoise.levels, levels, strict=False)]
    np.testing.assert_allclose(grown, [math.sqrt(2)] * 4)  # min(4 / 4, sqrt(2) - 1)
