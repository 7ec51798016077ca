"""What the network predicts and what it is given: one row of a table each.

A row says which mixture of image and noise the network's output p is, p = u x0 + w epsilon. With
x = alpha x0 + sigma epsilon the rest follows, at levels of any scale:
x0 = (sigma p - w x) / (u sigma - w alpha).

Source: Ho et al. 2020, eq. 4, 14 and 15; Salimans & Ho 2022, section 4 and appendix D; Karras et
al. 2022, eq. 7 and table 1 ("edm", "vp", "ve", "iddpm"); Lipman et al. 2023 ("flow").
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ddsm_ext.diffusion.config import DiffusionConfig
from ddsm_ext.diffusion.level import Level
from ddsm_ext.diffusion.schedule import NoiseSchedule, check_batch, per_image
from ddsm_ext.settings import Refusal, check_choice

# A number, or [N] float64: the formulas of a row serve a level as well as a batch of them.
Number = Any
SIGMA_DATA = DiffusionConfig.sigma_data
_TRAINED_STEPS = 1000  # M of table 1, of "vp" and "iddpm"
_VP_BETA_D, _VP_BETA_MIN = 19.9, 0.1
_IDDPM_C1, _IDDPM_C2 = 0.001, 0.008
_FLOW_TIMES = 1000.0  # flow-matching networks take the noise's share times this
_UNIT = 1e-12  # a scale of the input this near to 1 is left out


@dataclass(frozen=True)
class Prediction:
    """One meaning of the network's output p, and the input that such networks are trained with.

    Args:
        name: its name in `PREDICTIONS`.
        mixture: (alpha, sigma) -> (u, w) of p = u x0 + w epsilon; depends on their ratio alone.
        input_norm: (alpha, sigma) -> what x is divided by before the network sees it.
        input_time: (t, alpha, sigma) -> the number that the network is given as its time.
    """

    name: str
    mixture: Callable[[Number, Number], tuple[Number, Number]]
    input_norm: Callable[[Number, Number], Number]
    input_time: Callable[[Number, Number, Number], Number]

    def x0_map(self, level: Level) -> tuple[float, float]:
        """Return (a, b) of x0 = a x + b p.

        Raises:
            ValueError: without a signal (alpha = 0) such an output says nothing of x0.
        """
        alpha, sigma = level.alpha, level.sigma
        u, w = self.mixture(alpha, sigma)
        share = u * sigma - w * alpha
        if share == 0.0:
            raise Refusal(
                f"parameterisation {self.name!r}: alpha is {alpha:g} at t = {level.t:g}; need "
                "alpha > 0, or a network that predicts x0, v or flow"
            )
        return -w / share, sigma / share

    def input_scale(self, level: Level) -> float:
        """Return what x is multiplied by before the network sees it; 1.0 where rounding tells."""
        norm = self.input_norm(level.alpha, level.sigma)
        return 1.0 if abs(norm - 1.0) < _UNIT else 1.0 / norm

    def time(self, level: Level) -> float:
        """Return the number that the network is given as its time."""
        return self.input_time(level.t, level.alpha, level.sigma)

    def error_scale(self, snr: Tensor) -> Tensor:
        """Return the squared error of p that equals a squared error of 1 in x0, of snr's shape."""
        sigma = snr.rsqrt()
        u, w = self.mixture(torch.ones_like(snr), sigma)
        return ((u * sigma - w) / sigma).square()


def _norm(alpha: Number, sigma: Number) -> Number:
    return (alpha**2 + sigma**2) ** 0.5


def _timestep(t: Number, alpha: Number, sigma: Number) -> Number:
    return t


def _log(value: Number) -> Number:
    return value.log() if isinstance(value, Tensor) else math.log(value)


def _vp_time(t: Number, alpha: Number, sigma: Number) -> Number:
    """(M - 1) t of (sigma / alpha)² = exp(beta_d t² / 2 + beta_min t) - 1."""
    log_total = _log(1.0 + (sigma / alpha) ** 2)
    root = (_VP_BETA_MIN**2 + 2.0 * _VP_BETA_D * log_total) ** 0.5
    return (_TRAINED_STEPS - 1) * (root - _VP_BETA_MIN) / _VP_BETA_D


@functools.cache
def _iddpm_sigmas() -> Tensor:
    """u_0 > ... > u_M = 0, [M + 1] float64: u_(j-1)² + 1 = (u_j² + 1) / max(a_(j-1) / a_j, C1)."""

    def alpha_bar(j: int) -> float:
        return math.sin(0.5 * math.pi * j / _TRAINED_STEPS / (_IDDPM_C2 + 1.0)) ** 2

    sigmas = [0.0]
    for j in range(_TRAINED_STEPS, 0, -1):
        ratio = max(alpha_bar(j - 1) / alpha_bar(j), _IDDPM_C1)
        sigmas.append(math.sqrt((sigmas[-1] ** 2 + 1.0) / ratio - 1.0))
    return torch.tensor(sigmas[::-1], dtype=torch.float64, device="cpu")


def _iddpm_time(t: Number, alpha: Number, sigma: Number) -> Number:
    """M - 1 - the index of the nearest u."""
    wanted = torch.as_tensor(sigma / alpha, dtype=torch.float64)  # [] or [N]
    distance = (_iddpm_sigmas().to(wanted.device) - wanted[..., None]).abs()  # [..., M + 1]
    time = _TRAINED_STEPS - 1 - distance.argmin(-1)
    return time if isinstance(sigma, Tensor) else time.item()


def edm_prediction(sigma_data: float = SIGMA_DATA) -> Prediction:
    """Return the row "edm" for images of standard deviation `sigma_data`.

    Source: Karras et al. 2022, appendix B.6, for any alpha: with s = sigma / alpha,
    c_skip = sigma_data² / (s² + sigma_data²), c_out = s sigma_data / sqrt(s² + sigma_data²).
    """

    def norm(alpha: Number, sigma: Number) -> Number:
        return _norm(sigma_data * alpha, sigma)

    return Prediction(
        "edm",
        mixture=lambda alpha, sigma: (
            sigma / (sigma_data * norm(alpha, sigma)),
            -sigma_data * alpha / norm(alpha, sigma),
        ),
        input_norm=norm,
        input_time=lambda t, alpha, sigma: 0.25 * _log(sigma / alpha),
    )


# The names are those of `diffusion.config.PARAMETERISATIONS`.
PREDICTIONS: dict[str, Prediction] = {
    row.name: row
    for row in (
        Prediction("epsilon", lambda alpha, sigma: (0.0, 1.0), _norm, _timestep),
        Prediction("x0", lambda alpha, sigma: (1.0, 0.0), _norm, _timestep),
        Prediction(
            "v",
            lambda alpha, sigma: (-sigma / _norm(alpha, sigma), alpha / _norm(alpha, sigma)),
            _norm,
            _timestep,
        ),
        edm_prediction(),
        Prediction("vp", lambda alpha, sigma: (0.0, 1.0), _norm, _vp_time),
        Prediction(
            "ve",
            lambda alpha, sigma: (0.0, -1.0),
            lambda alpha, sigma: alpha,
            lambda t, alpha, sigma: _log(0.5 * sigma / alpha),
        ),
        Prediction("iddpm", lambda alpha, sigma: (0.0, 1.0), _norm, _iddpm_time),
        Prediction(
            "flow",
            lambda alpha, sigma: (-1.0, 1.0),
            lambda alpha, sigma: alpha + sigma,
            lambda t, alpha, sigma: _FLOW_TIMES * sigma / (alpha + sigma),
        ),
    )
}


def prediction_named(what: str, row: str | Prediction) -> Prediction:
    """Return the row of `PREDICTIONS`, or `row` itself; `what` names the argument in the error."""
    if isinstance(row, Prediction):
        return row
    return PREDICTIONS[check_choice(what, row, PREDICTIONS)]


def prediction_of(config: DiffusionConfig) -> Prediction:
    """Return what networks of this configuration predict."""
    if config.parameterisation == "edm":
        return edm_prediction(config.sigma_data)
    row = PREDICTIONS[config.parameterisation]
    if config.rescale_timesteps:
        scale = _TRAINED_STEPS / config.timesteps
        return dataclasses.replace(row, input_time=lambda t, alpha, sigma: scale * t)
    return row


def training_target(
    x0: Tensor, noise: Tensor, t: Tensor, schedule: NoiseSchedule, row: str | Prediction
) -> Tensor:
    """Return what the network should output for x_t = add_noise(x0, noise, t).

    Args:
        x0: clean images [N, C, H, W].
        noise: the noise that was added, same shape.
        t: timestep of each image [N].
        row: a name in `PREDICTIONS`, such as "epsilon", or a row, such as `prediction_of(config)`.

    Returns:
        [N, C, H, W]: `noise`, `x0`, or v = alpha noise - sigma x0.

    Raises:
        ValueError: a shape or the parameterisation's name does not fit.
    """
    row = prediction_named("training_target: parameterisation", row)
    check_batch("training_target", x0, noise, t)
    total: Tensor | None = None
    for factor, part in zip(row.mixture(*schedule.signal_and_noise(t)), (x0, noise), strict=True):
        if isinstance(factor, Tensor):
            part = per_image(factor, x0) * part
        elif factor == 0.0:
            continue
        elif factor != 1.0:
            part = factor * part
        total = part if total is None else total + part
    assert total is not None
    return total.to(x0.dtype)


def network_input(
    x_t: Tensor, t: Tensor, schedule: NoiseSchedule, row: str | Prediction
) -> tuple[Tensor, Tensor]:
    """Return what the network is given for x_t = add_noise(x0, noise, t): images and times.

    Args:
        x_t: noisy images [N, C, H, W].
        t: timestep of each image [N].
        row: as in `training_target`.

    Returns:
        [N, C, H, W] in the dtype of `x_t`, itself where nothing scales it; [N] times: `t` itself,
        int64, or float32.

    Raises:
        ValueError: a shape or the parameterisation's name does not fit.

    Source: Karras et al. 2022, eq. 7.
    """
    row = prediction_named("network_input: parameterisation", row)
    check_batch("network_input", x_t, x_t, t)
    ends = (schedule.level(0), schedule.level(schedule.timesteps - 1))
    scaled = any(row.input_scale(level) != 1.0 for level in ends)
    if row.input_time is _timestep and not scaled:
        return x_t, t
    alpha, sigma = schedule.signal_and_noise(t)  # [N], [N]
    if scaled:
        x_t = (x_t / per_image(row.input_norm(alpha, sigma), x_t)).to(x_t.dtype)
    time = row.input_time(t, alpha, sigma)  # [N]
    return x_t, time.float() if time.dtype == torch.float64 else time


def mse_per_image(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error over each image, [N] in float32 or wider.

    Args:
        prediction: [N, C, H, W].
        target: the same shape.

    Raises:
        ValueError: the shapes differ (broadcasting would hide it).

    Source: Ho et al. 2020, eq. 14, with the mean over an image's elements.
    """
    if prediction.shape != target.shape:
        raise Refusal(
            f"mse_per_image: prediction has shape {tuple(prediction.shape)}, "
            f"target has {tuple(target.shape)}; need equal shapes"
        )
    dtype = torch.promote_types(prediction.dtype, torch.float32)
    return (prediction.to(dtype) - target.to(dtype)).square().flatten(1).mean(dim=1)  # [N]
