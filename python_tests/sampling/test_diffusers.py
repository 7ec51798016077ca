"""Samplers against the schedulers of diffusers, and the settings that give their levels."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from golden import golden
from sampling.mixture import Recorder, close, draws, exploding, preserving

from ddsm_ext.diffusion import CLEAN, DiffusionConfig, Level, NoiseSchedule, make_schedule
from ddsm_ext.sampling import SAMPLERS, SamplerConfig, noise_levels

LINEAR = make_schedule(DiffusionConfig())
COSINE = make_schedule(DiffusionConfig(schedule="cosine"))
EDM = make_schedule(DiffusionConfig(schedule="edm"))


def flow(log_snr: float) -> Level:
    """x = (1 - s) x0 + s epsilon."""
    s = 1 / (1 + math.exp(0.5 * log_snr))
    log_alpha = math.log1p(-s) if s < 1 else -math.inf
    return Level(1000 * s, log_snr, log_alpha, s**2)


@dataclass(frozen=True)
class Case:
    """How a scheduler is said here.

    Args:
        kind: of the sampler.
        options: its settings.
        scale: the scale of its images: log-SNR -> level.
        last: where it ends.
        spacing: settings that give its levels, None where none do.
        schedule: they are of.
    """

    kind: str
    options: dict[str, Any] = field(default_factory=dict)
    scale: Callable[[float], Level] = preserving
    last: Level = CLEAN
    spacing: dict[str, Any] | None = None
    schedule: NoiseSchedule = LINEAR


DPM_END = LINEAR.level(0)
LEADING = {"spacing": "leading"}
CASES = {
    "ddpm": Case("ddpm", {"variance": "fixed_small"}, spacing=LEADING),
    "ddpm_large": Case("ddpm", {"variance": "fixed_large"}, spacing=LEADING),
    "ddim": Case("ddim", spacing=LEADING),
    "ddim_eta0.5": Case("ddim", {"eta": 0.5}, spacing=LEADING),
    "ddim_not_alpha_one": Case(
        "ddim", last=DPM_END, spacing={**LEADING, "steps_offset": 1, "final": "sigma_min"}
    ),
    "ddim_v_trailing_zero_snr": Case("ddim"),
    "ddim_cosine": Case("ddim", spacing=LEADING, schedule=COSINE),
    # K + 1 timesteps of which it leaves out t = 0
    "dpmpp_2m": Case("dpmpp_2m"),
    "dpmpp_2m_heun": Case("dpmpp_2m", {"variant": "heun"}),
    "dpmpp_3m": Case("dpm_multistep", {"order": 3}),
    "dpm_2m": Case(
        "dpm_multistep",
        {"form": "noise"},
        last=DPM_END,
        spacing={"spacing": "linspace", "final": "sigma_min"},
    ),
    "dpmpp_2m_karras": Case("dpmpp_2m", spacing={"spacing": "karras"}),
    "dpmpp_2m_lu": Case("dpmpp_2m", spacing={"spacing": "log_snr"}),
    "dpmpp_2m_flow": Case("dpmpp_2m", scale=flow),
    "unipc_bh2": Case("unipc"),
    "unipc_bh2_3": Case("unipc", {"order": 3}),
    "unipc_bh1_2": Case(
        "unipc",
        {"variant": "bh1"},
        last=DPM_END,
        spacing={"spacing": "linspace", "final": "sigma_min"},
    ),
    "euler": Case("euler", scale=exploding, spacing={"spacing": "uniform"}),
    "euler_karras": Case("euler", scale=exploding, spacing={"spacing": "karras"}),
    "euler_trailing": Case("euler", scale=exploding, spacing={"spacing": "trailing"}),
    "heun": Case("heun", scale=exploding, spacing={"spacing": "uniform"}),
    "heun_karras": Case("heun", scale=exploding, spacing={"spacing": "karras"}),
    "edm_euler": Case("euler", scale=exploding, spacing={"spacing": "karras"}, schedule=EDM),
    "edm_dpmpp_2m": Case("dpmpp_2m", scale=exploding, spacing={"spacing": "karras"}, schedule=EDM),
    "flow_euler": Case("euler", scale=flow),
    "flow_euler_shift3": Case("euler", scale=flow),
    "flow_heun": Case("heun", scale=flow),
}


def called(key: str) -> list[float]:
    """Log-SNR of each evaluation."""
    return golden("diffusers_schedulers")[f"{key}/call_log_snr"].tolist()


def test_every_scheduler_is_there() -> None:
    settings = {key.split("/")[0] for key in golden("diffusers_schedulers") if "/10/" in key}
    assert settings == set(CASES)


@pytest.mark.parametrize("steps", [10, 20])
@pytest.mark.parametrize("name", CASES)
def test_trajectories(name: str, steps: int) -> None:
    case, key, stored = CASES[name], f"{name}/{steps}", golden("diffusers_schedulers")
    levels = [case.scale(log_snr) for log_snr in dict.fromkeys(called(key))]
    last = case.last if case.last is CLEAN else case.scale(case.last.log_snr)
    denoise, row = Recorder(), SAMPLERS[case.kind]
    x = torch.from_numpy(stored["z"])
    if case.scale is exploding:  # EDM's schedulers start as wide as noisy images are
        x = x * (math.hypot(80.0, 1.0) if case.schedule is EDM else levels[0].sigma)
    options = {**case.options, **({"level_at": case.scale} if row.between else {})}
    x = row.method(denoise, x, [*levels, last], draws(stored["step_noise"]), **options)
    found = torch.stack([*denoise.seen[1:], x])
    close(found, stored[f"{key}/samples"])
    np.testing.assert_allclose([level.log_snr for level in denoise.levels], called(key))


@pytest.mark.parametrize("steps", [10, 20])
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.spacing])
def test_settings_that_give_its_levels(name: str, steps: int) -> None:
    case = CASES[name]
    sampler = SamplerConfig(case.kind, steps, **case.options, **(case.spacing or {}))
    levels = noise_levels(case.schedule, sampler)
    expected = list(dict.fromkeys(called(f"{name}/{steps}")))
    # Between timesteps it interpolates sigma where we take log sigma; EDM's are of float32.
    np.testing.assert_allclose([level.log_snr for level in levels[:-1]], expected, rtol=1e-4)
    assert levels[-1] == case.last
