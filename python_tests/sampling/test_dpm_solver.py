"""DPM-Solver and DPM-Solver++ against the authors' code."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from golden import golden
from sampling.mixture import Recorder, close, preserving

from ddsm_ext.diffusion import DiffusionConfig, make_schedule
from ddsm_ext.sampling import SamplerConfig, dpm_multistep, dpm_singlestep, noise_levels

LINEAR = make_schedule(DiffusionConfig())
FORMS = {"dpmsolver++": "data", "dpmsolver": "noise"}
RUNS = (
    "multistep1/time_uniform", "multistep2/time_uniform", "multistep3/logSNR",
    "singlestep2/logSNR", "singlestep3/time_uniform",
)  # fmt: skip


def last_log_snr(schedule: str) -> float:
    """Where the reference ends: at its time 1e-3, our t = 0, of the betas .1 to 20 or of LINEAR."""
    if schedule == "discrete":
        return LINEAR.log_snr(0)
    log_alpha = -(1e-3**2) * (20 - 0.1) / 4 - 1e-3 * 0.1 / 2
    return 2 * log_alpha - math.log(-math.expm1(2 * log_alpha))


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("algorithm", FORMS)
@pytest.mark.parametrize("steps", [10, 20])
@pytest.mark.parametrize("schedule", ["discrete", "linear"])
def test_trajectories(schedule: str, steps: int, algorithm: str, run: str) -> None:
    """At the levels at which the reference called its network.

    It keeps times in float32, and of "linear" their log-SNRs too: the levels between which it
    stepped are those to some 1e-7 only.
    """
    stored, key = golden("dpm_solver"), f"{schedule}/{algorithm}/{run}/{steps}"
    log_snrs = [*stored[f"{key}/call_log_snr"].tolist(), last_log_snr(schedule)]
    levels, denoise = [preserving(v) for v in log_snrs], Recorder()
    options = {"order": int(run.split("/")[0][-1]), "form": FORMS[algorithm]}
    z, expected = torch.from_numpy(stored["z"]), torch.from_numpy(stored[f"{key}/x"])
    if run.startswith("multistep"):
        x = dpm_multistep(denoise, z, levels, None, few_steps=10, **options)
        found = torch.stack([*denoise.seen, x])
    else:
        x = dpm_singlestep(denoise, z, levels, None, **options)
        seen = torch.stack([*denoise.seen, x])
        # The stored ones are those between steps, among what the network saw.
        found = torch.stack([seen[(seen - one).abs().amax(1).argmin()] for one in expected])
    if schedule == "linear":
        close(found, expected, 3e-5)
    else:
        close(found, expected, 5e-8)
        if run != "multistep1/time_uniform" and run != "multistep2/time_uniform":
            close(found[:-1], expected[:-1])  # the last level is known to float32 only
    assert denoise.levels == levels[:-1]


@pytest.mark.parametrize("steps", [10, 20])
def test_its_spacings(steps: int) -> None:
    stored = golden("dpm_solver")
    for spacing, run in (("log_snr", "multistep3/logSNR"), ("uniform", "multistep1/time_uniform")):
        sampler = SamplerConfig("dpm_multistep", steps, spacing=spacing, final="sigma_min")
        levels = noise_levels(LINEAR, sampler)
        assert levels[-1] is LINEAR.level(0)
        key = f"discrete/dpmsolver/{run}/{steps}"
        if spacing == "log_snr":
            found, expected = [v.log_snr for v in levels[:-1]], stored[f"{key}/call_log_snr"]
        else:
            found, expected = [v.t for v in levels[:-1]], stored[f"{key}/call_t"]
        np.testing.assert_allclose(found, expected, rtol=1e-6)
