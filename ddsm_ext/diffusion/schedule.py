"""Noise schedules in float64, with log-SNR as the noise level shared by all samplers.

log-SNR is the natural logarithm of alpha-bar / (1 - alpha-bar); it falls as t grows. Between
integer timesteps it is interpolated linearly, so every noise level has exactly one timestep.
"""

from __future__ import annotations

import math
from typing import overload

import torch
from torch import Tensor

from ddsm_ext.diffusion.config import DiffusionConfig
from ddsm_ext.settings import Refusal

# Offset s and upper bound of beta that Nichol & Dhariwal 2021 (section 3.2) choose.
COSINE_OFFSET = 0.008
COSINE_MAX_BETA = 0.999


def linear_betas(timesteps: int, beta_start: float, beta_end: float) -> Tensor:
    """Return betas evenly spaced from `beta_start` to `beta_end`, [T] float64.

    Source: Ho et al. 2020, section 4.
    """
    return torch.linspace(beta_start, beta_end, timesteps, dtype=torch.float64)  # [T]


def cosine_betas(timesteps: int) -> Tensor:
    """Return beta_t = min(1 - f(t+1)/f(t), 0.999) with f(t) = cos²((t/T + s)/(1 + s) · π/2).

    Returns:
        [T] float64.

    Source: Nichol & Dhariwal 2021, eq. 17 and the clipping below it.
    """
    t = torch.arange(timesteps + 1, dtype=torch.float64)  # [T + 1]
    angle = (t / timesteps + COSINE_OFFSET) / (1.0 + COSINE_OFFSET) * (math.pi / 2.0)
    f = torch.cos(angle).square()  # [T + 1]
    return (1.0 - f[1:] / f[:-1]).clamp(max=COSINE_MAX_BETA)  # [T]


class NoiseSchedule:
    """Tables of one diffusion process, [T] float64 on the CPU, and its continuous-time view.

    Args:
        betas: [T] variance added at each step, T >= 2, each in (0, 1).

    Raises:
        ValueError: `betas` has the wrong shape or a value outside (0, 1).

    Source: Ho et al. 2020, eq. 2 and 4; log-SNR as in Kingma et al. 2021, section 3.1.
    """

    def __init__(self, betas: Tensor) -> None:
        betas = torch.as_tensor(betas).detach().to(device="cpu", dtype=torch.float64)
        if betas.ndim != 1 or betas.numel() < 2:
            raise Refusal(f"NoiseSchedule: betas has shape {tuple(betas.shape)}; need [T], T >= 2")
        if not bool(((betas > 0) & (betas < 1)).all()):
            raise Refusal(
                f"NoiseSchedule: betas span {betas.min().item():.3g} to {betas.max().item():.3g}; "
                "need every one inside (0, 1)"
            )
        log_alphas_bar = torch.cumsum(torch.log1p(-betas), dim=0)  # [T]
        self.betas = betas  # [T]
        self.log_alphas_bar = log_alphas_bar  # [T]
        self.alphas_bar = torch.exp(log_alphas_bar)  # [T]
        # log(1 - alpha-bar) by expm1: 1 - alpha-bar is 1e-4 at t = 0 and would lose 4 digits.
        self.log_snrs = log_alphas_bar - torch.log(-torch.expm1(log_alphas_bar))  # [T]
        self._log_snrs_by_device = {torch.device("cpu"): self.log_snrs}

    @property
    def timesteps(self) -> int:
        """T, the number of discrete steps."""
        return self.betas.numel()

    @overload
    def log_snr(self, t: float) -> float: ...
    @overload
    def log_snr(self, t: Tensor) -> Tensor: ...
    def log_snr(self, t: float | Tensor) -> float | Tensor:
        """Return log(alpha-bar / (1 - alpha-bar)) at `t`, linear between integer timesteps.

        Args:
            t: timestep(s), integer or continuous, 0 <= t <= T - 1; a tensor of any shape. The
                range of a CUDA tensor is not checked (that would stall the device); it is clamped.

        Returns:
            A float for a number; for a tensor, float64 of its shape on its device.

        Raises:
            ValueError: `t` is outside [0, T - 1] or not finite.
        """
        last = self.timesteps - 1
        position = torch.as_tensor(t, dtype=torch.float64).detach()
        if position.device.type == "cpu" and not bool(((position >= 0) & (position <= last)).all()):
            raise Refusal(f"log_snr: t is {_range_text(position)}; need 0 <= t <= {last}")
        table = self._table_on(position.device)
        position = position.clamp(0, last)
        lower = position.floor().clamp(max=last - 1).long()
        fraction = position - lower
        value = table[lower] * (1.0 - fraction) + table[lower + 1] * fraction
        return value if isinstance(t, Tensor) else value.item()

    def signal_and_noise(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return (alpha, sigma) = (sqrt(alpha-bar), sqrt(1 - alpha-bar)) at `t`, float64 like `t`.

        Source: Ho et al. 2020, eq. 4, written through log-SNR (Kingma et al. 2021, eq. 4).
        """
        log_snr = self.log_snr(torch.as_tensor(t))
        return torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt()

    def _table_on(self, device: torch.device) -> Tensor:
        table = self._log_snrs_by_device.get(device)
        if table is None:
            table = self._log_snrs_by_device[device] = self.log_snrs.to(device)
        return table


def make_schedule(config: DiffusionConfig) -> NoiseSchedule:
    """Return the `NoiseSchedule` that `config` names."""
    if config.schedule == "cosine":
        return NoiseSchedule(cosine_betas(config.timesteps))
    return NoiseSchedule(linear_betas(config.timesteps, config.beta_start, config.beta_end))


def _range_text(values: Tensor) -> str:
    if values.numel() == 1:
        return f"{values.item():.6g}"
    return f"{values.min().item():.6g} to {values.max().item():.6g}"
