from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from golden import golden

from ddsm_ext.diffusion.config import DiffusionConfig
from ddsm_ext.diffusion.level import CLEAN
from ddsm_ext.diffusion.schedule import NoiseSchedule, PreservingSchedule, add_noise, make_schedule

LINEAR = make_schedule(DiffusionConfig())
COSINE = make_schedule(DiffusionConfig(schedule="cosine"))
EDM = make_schedule(DiffusionConfig(schedule="edm"))
BOTH = pytest.mark.parametrize("schedule", [LINEAR, COSINE], ids=["linear", "cosine"])


def test_linear_schedule_equals_extended_precision_product() -> None:
    betas = np.linspace(1e-4, 0.02, 1000).astype(np.longdouble)
    alphas_bar = np.cumprod(1 - betas)
    log_snr = np.log(alphas_bar / (1 - alphas_bar))
    np.testing.assert_allclose(LINEAR.betas.numpy(), betas.astype(float), rtol=1e-13)
    np.testing.assert_allclose(
        LINEAR.log_alphas_bar.exp().numpy(), alphas_bar.astype(float), rtol=1e-12
    )
    np.testing.assert_allclose(LINEAR.log_snrs.numpy(), log_snr.astype(float), rtol=0, atol=1e-11)


def test_linear_schedule_end_points() -> None:
    # alpha-bar_0 = 1 - 1e-4; alpha-bar_T = 4.036e-5 (Ho et al. 2020: L_T is about 1e-5 bits/dim).
    assert LINEAR.log_snr(0) == pytest.approx(math.log(0.9999 / 0.0001), abs=1e-11)
    assert LINEAR.log_alphas_bar[-1].exp().item() == pytest.approx(4.0358e-5, rel=1e-4)
    assert LINEAR.timesteps == 1000
    assert LINEAR.log_alphas_bar.dtype == torch.float64


def test_cosine_schedule_is_the_closed_form_until_it_is_clipped() -> None:
    def f(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    expected = np.array([f((t + 1) / 1000) / f(0) for t in range(998)])
    np.testing.assert_allclose(COSINE.log_alphas_bar[:998].exp().numpy(), expected, rtol=1e-9)
    assert COSINE.betas.max().item() == 0.999
    assert COSINE.betas[-1].item() == 0.999


@BOTH
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
    alphas_bar = LINEAR.log_alphas_bar[[0, 500, 999]].exp()
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
        PreservingSchedule(torch.tensor(betas))


def test_betas_that_do_not_reach_noise_are_warned_about() -> None:
    with pytest.warns(UserWarning, match="of 10 timesteps ends at log-SNR -0.54"):
        PreservingSchedule(torch.full((10,), 0.095))  # 0.905^10 = 0.3686; log(0.3686 / 0.6314)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for timesteps in (2, 10, 100):
            make_schedule(DiffusionConfig(schedule="cosine", timesteps=timesteps))


@BOTH
def test_levels_at_timesteps_are_the_tables_bit_for_bit(schedule: NoiseSchedule) -> None:
    for t in (0, 1, 500, 999):
        level = schedule.level(t)
        assert isinstance(level.t, int)
        assert level == schedule.level(float(t))
        assert level.log_snr == schedule.log_snrs[t].item()
        assert 2 * level.log_alpha == schedule.log_alphas_bar[t].item()
        alpha_bar = schedule.log_alphas_bar[t].exp().item()
        assert level.alpha == pytest.approx(math.sqrt(alpha_bar), rel=1e-14)
        assert level.sigma == pytest.approx(math.sqrt(1 - alpha_bar), rel=1e-9)


@BOTH
def test_levels_between_timesteps(schedule: NoiseSchedule) -> None:
    for t in (0.5, 429.25, 998.75):
        level = schedule.level(t)
        assert level.t == t
        assert level.log_snr == schedule.log_snr(t)
        assert level.alpha**2 + level.variance == pytest.approx(1.0, abs=1e-15)
        assert math.log(level.alpha**2 / level.variance) == pytest.approx(level.log_snr, rel=1e-12)
        assert schedule.level(math.ceil(t)).variance > level.variance
        assert schedule.level(math.floor(t)).variance < level.variance
    assert (CLEAN.alpha, CLEAN.sigma, CLEAN.log_snr) == (1.0, 0.0, math.inf)


@pytest.mark.parametrize("t", [-1, 1000, 999.5, math.nan, math.inf])
def test_no_level_outside_the_schedule(t: float) -> None:
    with pytest.raises(ValueError, match="need 0 <= t <= 999"):
        LINEAR.level(t)


def images(seed: int, n: int = 5, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(
        n, 3, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(dtype)


@BOTH
def test_add_noise_equals_running_the_chain(schedule: NoiseSchedule) -> None:
    """With noise 0 or x0 0, t + 1 single steps (Ho et al. 2020, eq. 2) scale the same way."""
    t = 17
    signal, variance = 1.0, 0.0
    for beta in schedule.betas[: t + 1].tolist():
        signal, variance = signal * (1 - beta) ** 0.5, variance * (1 - beta) + beta
    x0, noise = images(0), images(1)
    x_t = add_noise(x0, noise, torch.full((5,), t), schedule)
    torch.testing.assert_close(x_t, signal * x0 + variance**0.5 * noise, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_add_noise_keeps_dtype_and_layout(dtype: torch.dtype) -> None:
    x0 = images(0, dtype=dtype).contiguous(memory_format=torch.channels_last)
    x_t = add_noise(x0, images(1, dtype=dtype), torch.tensor([0, 3, 9.5, 40, 999]), LINEAR)
    assert x_t.dtype == dtype
    assert x_t.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(x_t[0], x0[0], rtol=0, atol=0.05)


def test_bad_arguments_of_add_noise() -> None:
    x0, schedule = images(0), LINEAR
    with pytest.raises(ValueError, match=r"add_noise: t has shape \(4,\); need \[5\]"):
        add_noise(x0, x0, torch.zeros(4), schedule)
    with pytest.raises(ValueError, match=r"noise has shape \(1, 3, 4, 4\); need \(5, 3, 4, 4\)"):
        add_noise(x0, x0[:1], torch.zeros(5), schedule)
    with pytest.raises(ValueError, match="t is 0 to 1000; need 0 <= t <= 999"):
        add_noise(x0, x0, torch.tensor([0, 1, 2, 3, 1000]), schedule)


def test_scaled_linear_betas_equal_the_reference() -> None:
    data = golden("ldm_schedule")
    ends = {"lsun_beds": (0.0015, 0.0195), "churches": (0.0015, 0.0155), "sd": (0.00085, 0.012)}
    for name, (first, last) in ends.items():
        config = DiffusionConfig(schedule="scaled_linear", beta_start=first, beta_end=last)
        schedule = make_schedule(config)
        index = torch.from_numpy(data["index"])
        np.testing.assert_allclose(schedule.betas[index], data[f"{name}/betas"], rtol=1e-12)
        alphas_bar = schedule.log_alphas_bar[index].exp()
        np.testing.assert_allclose(alphas_bar, data[f"{name}/alphas_cumprod"], rtol=1e-11)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_betas_equal_the_reference(name: str) -> None:
    data = golden("gd_process")
    schedule, t = make_schedule(DiffusionConfig(schedule=name)), data["schedule_t"]
    np.testing.assert_allclose(schedule.betas[t], data[f"{name}/betas"], rtol=1e-10)
    alphas_bar = schedule.log_alphas_bar[t].exp()
    np.testing.assert_allclose(alphas_bar, data[f"{name}/alphas_cumprod"], rtol=1e-10)


def test_the_exploding_schedule_is_geometric_in_sigma() -> None:
    sigmas = np.geomspace(0.002, 80.0, 1000)
    for t in (0, 1, 500, 999):
        level = EDM.level(t)
        assert (level.t, level.alpha) == (t, 1.0)
        assert level.sigma == pytest.approx(sigmas[t], rel=1e-12)
        assert level.log_snr == pytest.approx(-2 * math.log(sigmas[t]), rel=1e-12)
    between = EDM.level(499.5)
    assert between.sigma == pytest.approx(math.sqrt(sigmas[499] * sigmas[500]), rel=1e-12)
    assert not between.preserves_variance
    alpha, sigma = EDM.signal_and_noise(torch.tensor([0, 499.5, 999]))
    assert alpha.tolist() == [1.0, 1.0, 1.0]
    assert sigma.tolist() == pytest.approx([0.002, between.sigma, 80.0], rel=1e-12)
    x0, noise = images(0, 1), images(1, 1)
    x_t = add_noise(x0, noise, torch.tensor([999]), EDM)
    torch.testing.assert_close(x_t, x0 + 80 * noise, rtol=1e-12, atol=0)


def test_schedules_say_by_which_numbers_they_differ() -> None:
    assert LINEAR.identity() == {"betas": [1e-4, 0.02, 1000]}
    assert EDM.identity() == {"sigmas": [0.002, 80.0, 1000]}


@pytest.mark.parametrize("schedule", [LINEAR, COSINE, EDM], ids=["linear", "cosine", "edm"])
def test_the_level_of_a_log_snr(schedule: NoiseSchedule) -> None:
    for t in (0, 1, 0.3, 429.25, 998.75, 999):
        level = schedule.level(t)
        found = schedule.level_at(level.log_snr)
        assert found.t == pytest.approx(t, abs=1e-9)
        assert found.log_snr == level.log_snr
        assert found.alpha == pytest.approx(level.alpha, rel=1e-12)
        assert found.variance == pytest.approx(level.variance, rel=1e-12)
    assert schedule.level_at(schedule.log_snr(7)) is schedule.level(7)
    ends = schedule.log_snr(999), schedule.log_snr(0)
    assert schedule.level_at(ends[0] - 1e-12).t == 999  # rounding is no noise of its own
    assert schedule.level_at(ends[1] + 1e-12).t == 0
    for beyond, t in ((ends[0] - 1, 999), (ends[1] + 1, 0)):
        with pytest.raises(ValueError, match=rf"log_snr is {beyond:.6g}; need {ends[0]:.6g} <="):
            schedule.level_at(beyond)
        clamped = schedule.level_at(beyond, clamp=True)
        assert (clamped.t, clamped.log_snr) == (t, beyond)
        assert math.log(clamped.alpha**2 / clamped.variance) == pytest.approx(beyond, rel=1e-9)
    with pytest.raises(ValueError, match="log_snr is nan"):
        schedule.level_at(math.nan, clamp=True)


def test_timesteps_between_two_are_those_of_diffusers() -> None:
    """Its schedulers interpolate t linearly in log sigma, as in log-SNR."""
    data = golden("diffusers_schedulers")
    for key in ("euler_karras/10", "euler_karras/20"):
        found = [LINEAR.level_at(float(v)).t for v in data[f"{key}/call_log_snr"]]
        np.testing.assert_allclose(found, data[f"{key}/timesteps"], rtol=1e-9, atol=1e-9)
