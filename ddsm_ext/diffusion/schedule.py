"""Noise levels and schedules in float64, and how noise is added to images.

A noisy image is x = alpha x0 + sigma epsilon. log-SNR, the natural logarithm of alpha² / sigma², is
the noise level shared by all samplers; it falls as t grows. Between integer timesteps it is
interpolated linearly, so every noise level has exactly one timestep.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor

from ddsm_ext.diffusion.config import DiffusionConfig, warn_unless_noise
from ddsm_ext.settings import Refusal

# Offset s and upper bound of beta that Nichol & Dhariwal 2021 (section 3.2) choose.
COSINE_OFFSET = 0.008
COSINE_MAX_BETA = 0.999


@dataclass(frozen=True)
class Level:
    """A noise level, as plain numbers: x = alpha x0 + sigma epsilon.

    log alpha and sigma² are kept, and not alpha and sigma: alpha_t / alpha_s and sigma_t² are then
    exact to the last bits where squares of roots are not.

    Args:
        t: timestep that the network is given; an int, or a float between two timesteps.
        log_snr: log(alpha² / sigma²), by which a strategy chooses the width; inf for `CLEAN`.
        log_alpha: log of the image's scale; 0 throughout where noise is added without scaling.
        variance: sigma² of the noise.
    """

    t: float
    log_snr: float
    log_alpha: float
    variance: float

    @property
    def alpha(self) -> float:
        """Scale of the image."""
        return math.exp(self.log_alpha)

    @property
    def sigma(self) -> float:
        """Standard deviation of the noise; 0 for the clean image."""
        return math.sqrt(self.variance)


# The image itself, where every sampler ends: one step below t = 0, the least noisy timestep.
CLEAN = Level(t=-1, log_snr=math.inf, log_alpha=0.0, variance=0.0)


def linear_betas(timesteps: int, beta_start: float, beta_end: float) -> Tensor:
    """Return betas evenly spaced from `beta_start` to `beta_end`, [T] float64.

    Source: Ho et al. 2020, section 4.
    """
    return torch.linspace(beta_start, beta_end, timesteps, dtype=torch.float64, device="cpu")  # [T]


def cosine_betas(timesteps: int) -> Tensor:
    """Return beta_t = min(1 - f(t+1)/f(t), 0.999) with f(t) = cos²((t/T + s)/(1 + s) · π/2).

    Returns:
        [T] float64.

    Source: Nichol & Dhariwal 2021, eq. 17 and the clipping below it.
    """
    t = torch.arange(timesteps + 1, dtype=torch.float64, device="cpu")  # [T + 1]
    angle = (t / timesteps + COSINE_OFFSET) / (1.0 + COSINE_OFFSET) * (math.pi / 2.0)
    f = torch.cos(angle).square()  # [T + 1]
    return (1.0 - f[1:] / f[:-1]).clamp(max=COSINE_MAX_BETA)  # [T]


class NoiseSchedule:
    """Tables of one diffusion process, [T] float64 on the CPU, and its continuous-time view.

    A schedule that does not end in noise is warned about.

    Args:
        betas: [T] variance added at each step, T >= 2, each in (0, 1).

    Raises:
        ValueError: `betas` has the wrong shape or a value outside (0, 1).

    Source: Ho et al. 2020, eq. 2 and 4; log-SNR as in Kingma et al. 2021, section 3.1.
    """

    def __init__(self, betas: Tensor) -> None:
        betas = torch.as_tensor(betas, dtype=torch.float64, device="cpu").detach()
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
        # log(1 - alpha-bar) by expm1: 1 - alpha-bar is 1e-4 at t = 0 and would lose 4 digits.
        self.log_snrs = log_alphas_bar - torch.log(-torch.expm1(log_alphas_bar))  # [T]
        warn_unless_noise(self.timesteps, self.log_snrs[-1].item())
        self._levels: dict[int, Level] = {}
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
        device = t.device if isinstance(t, Tensor) else "cpu"
        position = torch.as_tensor(t, dtype=torch.float64, device=device).detach()
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
        log_snr = self.log_snr(t if isinstance(t, Tensor) else torch.as_tensor(t, device="cpu"))
        return torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt()

    def level(self, t: float) -> Level:
        """Return the noise level at `t`, integer or between two integers.

        Raises:
            ValueError: `t` is outside [0, T - 1] or not finite.
        """
        if float(t).is_integer() and 0 <= t < self.timesteps:
            index = int(t)
            if index not in self._levels:  # a sampler asks for the same ones in every call
                log_alpha_bar = self.log_alphas_bar[index].item()
                log_snr, variance = self.log_snrs[index].item(), -math.expm1(log_alpha_bar)
                self._levels[index] = Level(index, log_snr, 0.5 * log_alpha_bar, variance)
            return self._levels[index]
        log_snr = self.log_snr(float(t))
        # alpha² = 1 / (1 + exp(-log-SNR)), sigma² = 1 / (1 + exp(log-SNR))
        log_alpha = -0.5 * math.log1p(math.exp(-log_snr))
        return Level(float(t), log_snr, log_alpha, 1.0 / (1.0 + math.exp(log_snr)))

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


def _range_text(values: Tensor) -> str:
    if values.numel() == 1:
        return f"{values.item():.6g}"
    return f"{values.min().item():.6g} to {values.max().item():.6g}"
