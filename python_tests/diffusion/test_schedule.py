from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ddsm_ext.diffusion.config import DiffusionConfig
from ddsm_ext.diffusion.schedule import NoiseSchedule, make_schedule

LINEAR = make_schedule(DiffusionConfig())
COSINE = make_schedule(DiffusionConfig(schedule="cosine"))


def test_linear_schedule_equals_extended_precision_product() -> None:
    betas = np.linspace(1e-4, 0.02, 1000).astype(np.longdouble)
    alphas_bar = np.cumprod(1 - betas)
    log_snr = np.log(alphas_bar / (1 - alphas_bar))
    np.testing.assert_allclose(LINEAR.betas.numpy(), betas.astype(float), rtol=1e-13)
    np.testing.assert_allclose(LINEAR.alphas_bar.numpy(), alphas_bar.astype(float), rtol=1e-12)
    np.testing.assert_allclose(LINEAR.log_snrs.numpy(), log_snr.astype(float), rtol=0, atol=1e-11)


def test_linear_schedule_end_points() -> None:
    # alpha-bar_0 = 1 - 1e-4; alpha-bar_T = 4.036e-5 (Ho et al. 2020: L_T is about 1e-5 bits/dim).
    assert LINEAR.log_snr(0) == pytest.approx(math.log(0.9999 / 0.0001), abs=1e-11)
    assert LINEAR.alphas_bar[-1].item() == pytest.approx(4.0358e-5, rel=1e-4)
    assert LINEAR.timesteps == 1000
    assert LINEAR.alphas_bar.dtype == torch.float64


def test_cosine_schedule_is_the_closed_form_until_it_is_clipped() -> None:
    def f(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    expected = np.array([f((t + 1) / 1000) / f(0) for t in range(998)])
    np.testing.assert_allclose(COSINE.alphas_bar[:998].numpy(), expected, rtol=1e-9)
    assert COSINE.betas.max().item() == 0.999
    assert COSINE.betas[-1].item() == 0.999


@pytest.mark.parametrize("schedule", [LINEAR, COSINE], ids=["linear", "cosine"])
def test_log_snr_falls_strictly_and_is_exact_at_integers(schedule: NoiseSchedule) -> None:
    t = torch.arange(1000)
    assert torch.equal(schedule.log_snr(t), schedule.log_snrs)
    fine = torch.linspace(0, 999, 20_001, dtype=torch.float64)
    assert bool((schedule.log_snr(fine).diff() < 0).all())


def test_between_timesteps_log_snr_is_linear() -> None:
    expected = 0.75 * LINEAR.log_snr(429) + 0.25 * LINEAR.log_snr(430)
    assert LINEAR.log_snr(429.25) == pytest.approx(expected, rel=1e-12)
    values = LINEAR.log_snr(torch.tensor([[429.25], [0.5]]))
    assert values.shape == (2, 1)
    assert values.dtype == torch.float64


def test_signal_and_noise_are_alpha_bar_roots() -> None:
    alpha, sigma = LINEAR.signal_and_noise(torch.tensor([0, 500, 999]))
    alphas_bar = LINEAR.alphas_bar[[0, 500, 999]]
    torch.testing.assert_close(alpha, alphas_bar.sqrt(), rtol=1e-12, atol=0)
    torch.testing.assert_close(sigma, (1 - alphas_bar).sqrt(), rtol=1e-9, atol=0)


@pytest.mark.parametrize("t", [-0.1, 999.5, math.nan, math.inf])
def test_t_out_of_range(t: float) -> None:
    with pytest.raises(ValueError, match="need 0 <= t <= 999"):
        LINEAR.log_snr(t)
    with pytest.raises(ValueError, match="need 0 <= t <= 999"):
        LINEAR.log_snr(torch.tensor([1.0, t]))


@pytest.mark.parametrize(
    "betas", [[0.1], [[0.1, 0.2]], [0.1, 0.0], [0.1, 1.0], [0.1, math.nan]], ids=str
)
def test_bad_betas(betas: list) -> None:
    with pytest.raises(ValueError, match="NoiseSchedule: betas"):
        NoiseSchedule(torch.tensor(betas))
