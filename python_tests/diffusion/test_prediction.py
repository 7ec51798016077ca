from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ddsm_ext.diffusion import (
    PREDICTIONS,
    DiffusionConfig,
    add_noise,
    make_schedule,
    mse_per_image,
    training_target,
)
from ddsm_ext.diffusion.config import PARAMETERISATIONS

SCHEDULE = make_schedule(DiffusionConfig(schedule="cosine"))
T = torch.tensor([0.0, 1.0, 333.3, 700.0, 998.0], dtype=torch.float64)


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randn(5, 2, 3, 3, generator=generator, dtype=torch.float64)
    noise = torch.randn(5, 2, 3, 3, generator=generator, dtype=torch.float64)
    return x0, noise, add_noise(x0, noise, T, SCHEDULE)


def test_the_names_that_a_configuration_takes() -> None:
    assert tuple(PREDICTIONS) == PARAMETERISATIONS


@pytest.mark.parametrize("name", PREDICTIONS)
def test_the_map_to_x0_undoes_noise_and_target(name: str) -> None:
    x0, noise, x_t = batch()
    target = training_target(x0, noise, T, SCHEDULE, name)
    for i, t in enumerate(T.tolist()):
        a, b = PREDICTIONS[name].x0_map(SCHEDULE.level(t))
        torch.testing.assert_close(a * x_t[i] + b * target[i], x0[i], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", PREDICTIONS)
def test_error_scale_is_the_error_that_an_error_of_one_in_x0_makes(name: str) -> None:
    for t in T.tolist():
        level = SCHEDULE.level(t)
        _, b = PREDICTIONS[name].x0_map(level)
        scale = PREDICTIONS[name].error_scale(
            torch.tensor(level.log_snr, dtype=torch.float64).exp()
        )
        assert scale.item() == pytest.approx(1 / b**2, rel=1e-9)


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


def test_loss_equals_numpy_per_image() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 4, 3, 5, 5)).astype(np.float32)
    expected = ((a.astype(np.float64) - b) ** 2).mean(axis=(1, 2, 3))
    loss = mse_per_image(torch.from_numpy(a), torch.from_numpy(b))
    assert loss.shape == (4,)
    np.testing.assert_allclose(loss.numpy(), expected, rtol=1e-5)


def test_half_precision_accumulates_in_float32() -> None:
    ones = torch.ones(2, 1, 64, 64, dtype=torch.bfloat16)
    loss = mse_per_image(ones * 3, ones)
    assert loss.dtype == torch.float32
    assert loss.tolist() == [4.0, 4.0]


def test_shapes_of_a_loss_must_agree() -> None:
    with pytest.raises(ValueError, match=r"\(2, 1, 4, 4\), target has \(1, 1, 4, 4\)"):
        mse_per_image(torch.zeros(2, 1, 4, 4), torch.zeros(1, 1, 4, 4))
