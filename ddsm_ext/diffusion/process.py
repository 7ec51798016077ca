"""Forward process, pure functions of tensors and a `NoiseSchedule`."""

from __future__ import annotations

import torch
from torch import Tensor

from ddsm_ext.diffusion.schedule import NoiseSchedule
from ddsm_ext.settings import Refusal


def per_image(coefficient: Tensor, x: Tensor) -> Tensor:
    """Reshape `coefficient` [N] to [N, 1, ...] beside `x` [N, ...], in float32 or wider.

    Half-precision images are combined in float32: a bfloat16 coefficient keeps 3 digits only.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    coefficient = coefficient.to(device=x.device, dtype=dtype)
    return coefficient.reshape(-1, *([1] * (x.ndim - 1)))  # [N, 1, ...]


def check_batch(what: str, x: Tensor, noise: Tensor, t: Tensor) -> None:
    """Refuse `t` that is not [N], and `noise` of another shape than `x`."""
    if t.ndim != 1 or (t.numel() not in (1, x.shape[0])):
        raise Refusal(f"{what}: t has shape {tuple(t.shape)}; need [{x.shape[0]}], one per image")
    if noise.shape != x.shape:
        raise Refusal(f"{what}: noise has shape {tuple(noise.shape)}; need {tuple(x.shape)}")


def add_noise(x0: Tensor, noise: Tensor, t: Tensor, schedule: NoiseSchedule) -> Tensor:
    """x_t = sqrt(alpha-bar_t) x_0 + sqrt(1 - alpha-bar_t) noise.

    Args:
        x0: clean images [N, C, H, W], floating point.
        noise: standard normal of the same shape.
        t: timestep of each image [N], integer or continuous, 0 <= t <= T - 1.

    Returns:
        x_t [N, C, H, W] in the dtype of `x0`.

    Raises:
        ValueError: a shape or a timestep does not fit.

    Source: Ho et al. 2020, eq. 4.
    """
    check_batch("add_noise", x0, noise, t)
    alpha, sigma = schedule.signal_and_noise(t)  # [N], [N]
    return (per_image(alpha, x0) * x0 + per_image(sigma, x0) * noise).to(x0.dtype)
