from __future__ import annotations

import math

import pytest
import torch

from ddsm_ext.diffusion.config import PARAMETERISATIONS, DiffusionConfig
from ddsm_ext.diffusion.parameterisation import training_target
from ddsm_ext.diffusion.process import add_noise
from ddsm_ext.diffusion.schedule import make_schedule
from ddsm_ext.sampling.config import SamplerConfig
from ddsm_ext.sampling.plan import plan_coefficients, plan_steps

SCHEDULE = make_schedule(DiffusionConfig(schedule="cosine"))
T = torch.tensor([0.0, 1.0, 333.3, 700.0, 998.0], dtype=torch.float64)


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randn(5, 2, 3, 3, generator=generator, dtype=torch.float64)
    noise = torch.randn(5, 2, 3, 3, generator=generator, dtype=torch.float64)
    return x0, noise, add_noise(x0, noise, T, SCHEDULE)


@pytest.mark.parametrize("parameterisation", PARAMETERISATIONS)
def test_the_sampler_has_the_image_from_every_target(parameterisation: str) -> None:
    """Its map from (x_t, prediction) to x0 undoes add_noise and training_target."""
    x0, noise, _ = batch()
    steps = plan_steps(SCHEDULE, 1.0, SamplerConfig(steps=5))
    coefficients = plan_coefficients(SCHEDULE, steps, SamplerConfig(steps=5), parameterisation)
    t = torch.tensor([step.t for step in steps])
    x_t = add_noise(x0, noise, t, SCHEDULE)
    target = training_target(x0, noise, t, SCHEDULE, parameterisation)
    for i, map_ in enumerate(coefficients):
        found = map_.x0_from_x * x_t[i] + map_.x0_from_prediction * target[i]
        torch.testing.assert_close(found, x0[i], rtol=1e-6, atol=1e-8)


def test_v_is_the_derivative_by_angle() -> None:
    """v = d x / d phi where alpha = cos(phi), sigma = sin(phi) (Salimans & Ho 2022, app. D)."""
    x0, noise, _ = batch()
    v = training_target(x0, noise, T, SCHEDULE, "v")
    step = 1e-6
    for i, t in enumerate(T.tolist()):
        phi = math.atan(math.exp(-0.5 * SCHEDULE.log_snr(t)))  # tan(phi) = sigma / alpha
        ahead = math.cos(phi + step) * x0[i] + math.sin(phi + step) * noise[i]
        behind = math.cos(phi - step) * x0[i] + math.sin(phi - step) * noise[i]
        torch.testing.assert_close(v[i], (ahead - behind) / (2 * step), rtol=1e-6, atol=1e-8)


def test_bad_arguments() -> None:
    x0, noise, _ = batch()
    with pytest.raises(ValueError, match="did you mean epsilon"):
        training_target(x0, noise, T, SCHEDULE, "epsilom")
    with pytest.raises(ValueError, match=r"noise has shape \(4, 2, 3, 3\)"):
        training_target(x0, noise[:4], T, SCHEDULE, "v")
    with pytest.raises(ValueError, match="t has shape"):
        training_target(x0, noise, T[:2], SCHEDULE, "v")
