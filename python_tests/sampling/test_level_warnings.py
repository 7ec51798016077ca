"""Which steps a sampler does not bear, by the exact denoiser of a mixture."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from sampling.mixture import Recorder

from ddsm_ext.diffusion import DiffusionConfig, NoiseSchedule, make_schedule
from ddsm_ext.sampling import SamplerConfig, noise_levels
from ddsm_ext.sampling.levels import configured

LINEAR = make_schedule(DiffusionConfig())
COSINE = make_schedule(DiffusionConfig(schedule="cosine"))
EDM = make_schedule(DiffusionConfig(schedule="edm"))
KARRAS: dict[str, Any] = {"spacing": "karras", "sigma_max": 80.0}
NOISE: dict[str, Any] = {"kind": "dpm_singlestep", "form": "noise"}


@pytest.mark.parametrize(
    ("schedule", "settings"),
    [
        (COSINE, {"kind": "heun", "steps": 10}),
        (COSINE, {"kind": "dpm_2", "steps": 10}),
        (COSINE, {"kind": "heun", "steps": 10, "spacing": "karras"}),
        (COSINE, {"kind": "heun", "steps": 1, "spacing": "trailing", "final": "sigma_min"}),
        (EDM, {"kind": "heun", "steps": 3}),
        (EDM, {"kind": "heun", "steps": 4}),
        (COSINE, {**NOISE, "steps": 20}),
        (COSINE, {**NOISE, "steps": 20, "order": 3}),
        (COSINE, {**NOISE, "steps": 20, "order": 3, "spacing": "trailing"}),
    ],
)
def test_a_step_that_a_sampler_does_not_bear_is_warned_about(
    schedule: NoiseSchedule, settings: dict[str, Any]
) -> None:
    with pytest.warns(UserWarning, match=r": a step leads from sigma .* to .*, which takes more"):
        noise_levels(schedule, SamplerConfig(**settings))


@pytest.mark.parametrize(
    ("schedule", "settings"),
    [
        (COSINE, {"kind": "ddim", "steps": 10}),
        (COSINE, {"kind": "unipc", "steps": 10}),
        (COSINE, {"kind": "heun", "steps": 50}),
        (COSINE, {"kind": "heun", "steps": 10, **KARRAS}),
        (EDM, {"kind": "heun", "steps": 18, "spacing": "karras"}),
        (COSINE, {**NOISE, "steps": 20, "order": 3, **KARRAS}),
        (COSINE, {**NOISE, "steps": 20, "order": 1}),
        (COSINE, {"kind": "dpm_singlestep", "steps": 20}),
        (COSINE, {"kind": "dpm_multistep", "form": "noise", "steps": 20}),
        (LINEAR, {"kind": "heun", "steps": 10}),
    ],
)
def test_steps_without_a_warning_keep_the_images_spread(
    schedule: NoiseSchedule, settings: dict[str, Any]
) -> None:
    sampler = SamplerConfig(**settings)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        levels = noise_levels(schedule, sampler)
    x = torch.randn(2000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = x if levels[0].preserves_variance else levels[0].sigma * x
    y = configured(sampler, schedule)(Recorder(), x, levels, lambda: None)
    assert float(y.std()) == pytest.approx(0.686, rel=0.25)
