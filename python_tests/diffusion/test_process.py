from __future__ import annotations

import pytest
import torch

from ddsm_ext.diffusion.config import DiffusionConfig
from ddsm_ext.diffusion.process import add_noise
from ddsm_ext.diffusion.schedule import make_schedule

SCHEDULES = {name: make_schedule(DiffusionConfig(schedule=name)) for name in ("linear", "cosine")}


def images(seed: int, n: int = 5, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(
        n, 3, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(dtype)


@pytest.mark.parametrize("name", SCHEDULES)
def test_add_noise_equals_running_the_chain(name: str) -> None:
    """With noise 0 or x0 0, t + 1 single steps (Ho et al. 2020, eq. 2) scale the same way."""
    schedule, t = SCHEDULES[name], 17
    signal, variance = 1.0, 0.0
    for beta in schedule.betas[: t + 1].tolist():
        signal, variance = signal * (1 - beta) ** 0.5, variance * (1 - beta) + beta
    x0, noise = images(0), images(1)
    x_t = add_noise(x0, noise, torch.full((5,), t), schedule)
    torch.testing.assert_close(x_t, signal * x0 + variance**0.5 * noise, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_add_noise_keeps_dtype_and_layout(dtype: torch.dtype) -> None:
    x0 = images(0, dtype=dtype).contiguous(memory_format=torch.channels_last)
    x_t = add_noise(
        x0, images(1, dtype=dtype), torch.tensor([0, 3, 9.5, 40, 999]), SCHEDULES["linear"]
    )
    assert x_t.dtype == dtype
    assert x_t.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(x_t[0], x0[0], rtol=0, atol=0.05)


def test_bad_arguments() -> None:
    x0, schedule = images(0), SCHEDULES["linear"]
    with pytest.raises(ValueError, match=r"add_noise: t has shape \(4,\); need \[5\]"):
        add_noise(x0, x0, torch.zeros(4), schedule)
    with pytest.raises(ValueError, match=r"noise has shape \(1, 3, 4, 4\); need \(5, 3, 4, 4\)"):
        add_noise(x0, x0[:1], torch.zeros(5), schedule)
    with pytest.raises(ValueError, match="t is 0 to 1000; need 0 <= t <= 999"):
        add_noise(x0, x0, torch.tensor([0, 1, 2, 3, 1000]), schedule)
