from __future__ import annotations

import math

import pytest
import torch

from ddsm_ext.diffusion.config import PARAMETERISATIONS, DiffusionConfig
from ddsm_ext.diffusion.parameterisation import (
    predict_epsilon,
    predict_v,
    predict_x0,
    training_target,
)
from ddsm_ext.diffusion.process import add_noise
from ddsm_ext.diffusion.schedule import make_schedule

SCHEDULE = make_schedule(DiffusionConfig(schedule="cosine"))
T = torch.tensor([0.0, 1.0, 333.3, 700.0, 998.0], dtype=torch.float64)


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randn(5, 2, 3, 3, generator=generator, dtype=torch.float64)
    noise = torch.randn(5, 2, 3, 3, generator=generator, dtype=torch.float64)
    return x0, noise, add_noise(x0, noise, T, SCHEDULE)


@pytest.mark.parametrize("parameterisation", PARAMETERISATIONS)
def test_every_prediction_gives_back_image_noise_and_v(parameterisation: str) -> None:
    x0, noise, x_t = batch()
    target = training_target(x0, noise, T, SCHEDULE, parameterisation)
    arguments = (target, x_t, T, SCHEDULE, parameterisation)
    v = training_target(x0, noise, T, SCHEDULE, "v")
    torch.testing.assert_close(predict_x0(*arguments), x0, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(predict_epsilon(*arguments), noise, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(predict_v(*arguments), v, rtol=1e-6, atol=1e-8)


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
    x0, noise, x_t = batch()
    with pytest.raises(ValueError, match="did you mean epsilon"):
        training_target(x0, noise, T, SCHEDULE, "epsilom")
    with pytest.raises(ValueError, match=r"prediction has shape \(4, 2, 3, 3\)"):
        predict_x0(noise[:4], x_t, T, SCHEDULE, "v")
    with pytest.raises(ValueError, match="t has shape"):
        predict_epsilon(noise, x_t, T[:2], SCHEDULE, "v")
