"""Noise schedules in float64, and how noise is added to images.

A noisy image is x = alpha x0 + sigma epsilon. log-SNR, the natural logarithm of alpha² / sigma², is
the noise level shared by all samplers; it falls as t grows. Between integer timesteps it is
interpolated linearly, so every noise level has exactly one timestep.
"""

from __future__ import annotations

import bisect
import math
from abc import ABC, abstractmethod
from typing import Any, overload

import torch
from torch import Tensor

from ddsm_ext.diffusion.config import DiffusionConfig, warn_unless_noise
from ddsm_ext.diffusion.level import Level
from ddsm_ext.settings import Refusal

# Offset s and upper bound of beta that Nichol & Dhariwal 2021 (section 3.2) choose.
COSINE_OFFSET = 0.008
COSINE_MAX_BETA = 0.999
# Least and greatest log-SNR are found again, by other formulas, with an error of a few ulp.
_ROUNDING = 1e-9


def linear_betas(timesteps: int, beta_start: float, beta_end: float) -> Tensor:
    """Return betas evenly spaced from `beta_start` to `beta_end`, [T] float64.

    Source: Ho et al. 2020, section 4.
    """
    return torch.linspace(beta_start, beta_end, timesteps, dtype=torch.float64, device="cpu")  # [T]


def scaled_linear_betas(timesteps: int, beta_start: float, beta_end: float) -> Tensor:
    """Return betas whose square roots are evenly spaced, [T] float64.

    Source: latent-diffusion, `make_beta_schedule("linear", ...)`; diffusers' "scaled_linear".
    """
    return linear_betas(timesteps, math.sqrt(beta_start), math.sqrt(beta_end)).square()  # [T]


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


class NoiseSchedule(ABC):
    """Noise levels over the timesteps 0 to T - 1, and between them; base of the two kinds.

    A schedule that does not end in noise is warned about.

    Args:
        log_snrs: [T] float64 on the CPU, strictly falling.
    """

    def __init__(self, log_snrs: Tensor) -> None:
        self.log_snrs = log_snrs  # [T]
        warn_unless_noise(self.timesteps, log_snrs[-1].item())
        self._levels: dict[int, Level] = {}
        self._falling = log_snrs.neg().tolist()  # ascending, as bisect wants it
        self._log_snrs_by_device = {torch.device("cpu"): log_snrs}

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Return the numbers that tell this schedule from another, as checkpoints keep them."""

    @abstractmethod
    def _between(self, t: float, log_snr: float) -> Level:
        """The level of a log-SNR that may lie between two timesteps."""

    @abstractmethod
    def _scales(self, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        """Alpha and sigma of log-SNRs, of their shape."""

    def _at_timestep(self, t: int) -> Level:
        """The level of a timestep, to the table's last bits."""
        return self._between(t, self.log_snrs[t].item())

    @property
    def timesteps(self) -> int:
        """T, the number of discrete steps."""
        return self.log_snrs.numel()

    @overload
    def log_snr(self, t: float) -> float: ...
    @overload
    def log_snr(self, t: Tensor) -> Tensor: ...
    def log_snr(self, t: float | Tensor) -> float | Tensor:
        """Return log(alpha² / sigma²) at `t`, linear between integer timesteps.

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
        """Return (alpha, sigma) at `t`, float64 like `t`.

        Source: Ho et al. 2020, eq. 4, written through log-SNR (Kingma et al. 2021, eq. 4).
        """
        t = t if isinstance(t, Tensor) else torch.as_tensor(t, device="cpu")
        return self._scales(self.log_snr(t))

    def level(self, t: float) -> Level:
        """Return the noise level at `t`, integer or between two integers.

        Raises:
            ValueError: `t` is outside [0, T - 1] or not finite.
        """
        if float(t).is_integer() and 0 <= t < self.timesteps:
            index = int(t)
            if index not in self._levels:  # a sampler asks for the same ones in every call
                self._levels[index] = self._at_timestep(index)
            return self._levels[index]
        return self._between(float(t), self.log_snr(float(t)))

    def level_at(self, log_snr: float, *, clamp: bool = False) -> Level:
        """Return the noise level of a log-SNR; its timestep lies where `log_snr` has that value.

        Args:
            log_snr: from that of t = T - 1 to that of t = 0.
            clamp: beyond them the level is the wanted one still, and the network is told the
                nearest timestep, as diffusers' schedulers do; False refuses it.

        Raises:
            ValueError: `log_snr` is beyond the schedule's.
        """
        least, greatest = -self._falling[-1], -self._falling[0]
        slack = _ROUNDING * max(1.0, abs(least), abs(greatest))
        inside = least - slack <= log_snr <= greatest + slack
        if not (inside or (clamp and math.isfinite(log_snr))):
            raise Refusal(
                f"level_at: log_snr is {log_snr:.6g}; need {least:.6g} <= log_snr <= "
                f"{greatest:.6g}, the schedule's"
            )
        index = bisect.bisect_left(self._falling, -log_snr)  # the first t of log_snr or less
        if index in (0, self.timesteps) or self._falling[index] == -log_snr:
            index = min(index, self.timesteps - 1)
            return self.level(index) if inside else self._between(index, log_snr)
        above, below = -self._falling[index - 1], -self._falling[index]
        return self._between(index - 1 + (above - log_snr) / (above - below), log_snr)

    def timesteps_at(self, log_snrs: Tensor) -> Tensor:
        """Return where log-SNRs lie, [N] float64 on the CPU; beyond the schedule's its ends.

        Args:
            log_snrs: [N] float64 on the CPU.
        """
        falling = -self.log_snrs  # [T], ascending
        wanted = (-log_snrs).clamp(falling[0], falling[-1])
        lower = torch.searchsorted(falling, wanted, right=True).clamp(1, self.timesteps - 1) - 1
        fraction = (wanted - falling[lower]) / (falling[lower + 1] - falling[lower])
        return lower + fraction

    def _table_on(self, device: torch.device) -> Tensor:
        table = self._log_snrs_by_device.get(device)
        if table is None:
            table = self._log_snrs_by_device[device] = self.log_snrs.to(device)
        return table


class PreservingSchedule(NoiseSchedule):
    """alpha² + sigma² = 1, from betas: alpha² is alpha-bar, the product of 1 - beta up to t.

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
        self.betas = betas  # [T]
        self.log_alphas_bar = torch.cumsum(torch.log1p(-betas), dim=0)  # [T]
        # log(1 - alpha-bar) by expm1: 1 - alpha-bar is 1e-4 at t = 0 and would lose 4 digits.
        super().__init__(self.log_alphas_bar - torch.log(-torch.expm1(self.log_alphas_bar)))

    def identity(self) -> dict[str, Any]:
        """As `NoiseSchedule.identity`."""
        return {"betas": [float(self.betas[0]), float(self.betas[-1]), self.timesteps]}

    def _between(self, t: float, log_snr: float) -> Level:
        # alpha² = 1 / (1 + exp(-log-SNR)), sigma² = 1 / (1 + exp(log-SNR))
        log_alpha = -0.5 * math.log1p(math.exp(-log_snr))
        return Level(t, log_snr, log_alpha, 1.0 / (1.0 + math.exp(log_snr)))

    def _scales(self, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        return torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt()

    def _at_timestep(self, t: int) -> Level:
        log_alpha_bar = self.log_alphas_bar[t].item()
        variance = -math.expm1(log_alpha_bar)
        return Level(t, self.log_snrs[t].item(), 0.5 * log_alpha_bar, variance)


class ExplodingSchedule(NoiseSchedule):
    """alpha = 1 and sigma from `sigma_min` at t = 0 to `sigma_max` at t = T - 1, even in log sigma.

    Args:
        sigma_min: least noise, above 0.
        sigma_max: most noise, above `sigma_min`.
        timesteps: T >= 2, how many levels training and measurements take of the range.

    Source: Song et al. 2021 (SDE), section 3.4; the range is that of Karras et al. 2022, table 1.
    """

    def __init__(self, sigma_min: float, sigma_max: float, timesteps: int) -> None:
        self.sigma_min, self.sigma_max = sigma_min, sigma_max
        ends = -2.0 * math.log(sigma_min), -2.0 * math.log(sigma_max)
        super().__init__(torch.linspace(*ends, timesteps, dtype=torch.float64, device="cpu"))

    def identity(self) -> dict[str, Any]:
        """As `NoiseSchedule.identity`."""
        return {"sigmas": [self.sigma_min, self.sigma_max, self.timesteps]}

    def _between(self, t: float, log_snr: float) -> Level:
        return Level(t, log_snr, 0.0, math.exp(-log_snr))

    def _scales(self, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(log_snr), torch.exp(-0.5 * log_snr)


def make_schedule(config: DiffusionConfig) -> NoiseSchedule:
    """Return the `NoiseSchedule` that `config` names."""
    if config.schedule == "edm":
        return ExplodingSchedule(config.sigma_min, config.sigma_max, config.timesteps)
    if config.schedule == "cosine":
        return PreservingSchedule(cosine_betas(config.timesteps))
    betas = scaled_linear_betas if config.schedule == "scaled_linear" else linear_betas
    return PreservingSchedule(betas(config.timesteps, config.beta_start, config.beta_end))


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
    """x_t = alpha_t x_0 + sigma_t noise.

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
