"""The variational bound's terms, which train a network that predicts variances.

Source: Nichol & Dhariwal 2021 (arXiv 2102.09672), section 3.1, and the code that it was made with
(`gaussian_diffusion.py`), whose approximation of the normal distribution is kept.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ddsm_ext.diffusion.schedule import NoiseSchedule, PreservingSchedule, check_batch, per_image
from ddsm_ext.settings import Refusal

# Pixels of 8 bits lie 2/255 apart in [-1, 1].
_HALF_BIN = 1.0 / 255.0
_EDGE = 0.999
_LEAST = 1e-12


def variational_terms(
    x0: Tensor,
    x_t: Tensor,
    t: Tensor,
    predicted: Tensor,
    fraction: Tensor,
    schedule: NoiseSchedule,
) -> Tensor:
    """Return each image's term of the variational bound, [N], bits a dimension.

    That is KL(q(x_s | x_t, x0) || p(x_s | x_t)) for s = t - 1, and at t = 0 the negative log
    likelihood of 8-bit pixels.

    Args:
        x0: clean images [N, C, H, W] in [-1, 1].
        x_t: x0 with the noise of `t`.
        t: timestep of each [N] int64.
        predicted: x0 as the network predicts it; the mean of p is the posterior's with it.
        fraction: v of p's variance, exp(v log beta + (1 - v) log of the posterior variance);
            [N, C, H, W].
        schedule: one of betas.

    Raises:
        ValueError: the schedule has no betas, or a timestep is not whole.
    """
    check_batch("variational_terms", x0, x_t, t)
    if not isinstance(schedule, PreservingSchedule) or t.is_floating_point():
        raise Refusal(
            f"variational_terms: t is {t.dtype} of a {type(schedule).__name__}; need whole "
            "timesteps of a schedule with betas"
        )
    mean_x0, mean_x, log_small, log_beta = (
        per_image(column[t.cpu()], x0) for column in _posterior(schedule).unbind(1)
    )
    log_variance = fraction * log_beta + (1.0 - fraction) * log_small  # [N, C, H, W]
    difference = mean_x0 * (x0 - predicted)
    kl = 0.5 * (
        log_variance - log_small - 1.0
        + (log_small - log_variance).exp() + difference.square() * (-log_variance).exp()
    )  # fmt: skip
    mean = mean_x0 * predicted + mean_x * x_t
    likelihood = _log_likelihood(x0, mean, 0.5 * log_variance)
    terms = torch.where((t == 0).to(x0.device)[:, None, None, None], -likelihood, kl)
    return terms.flatten(1).mean(1) / math.log(2.0)


def _posterior(schedule: PreservingSchedule) -> Tensor:
    """Factors of x0 and of x_t in the posterior's mean, log of its variance, log beta: [T, 4].

    At t = 0 the posterior has no variance; that of t = 1 stands in its place.

    Source: Ho et al. 2020, eq. 7.
    """
    log_bar, betas = schedule.log_alphas_bar, schedule.betas
    before = torch.cat([log_bar.new_zeros(1), log_bar[:-1]])  # [T]
    variance, variance_before = -torch.expm1(log_bar), -torch.expm1(before)
    log_small = (betas * variance_before / variance).log()
    log_small[0] = log_small[1]
    mean_x0 = betas * (0.5 * before).exp() / variance
    mean_x = variance_before * (1.0 - betas).sqrt() / variance
    return torch.stack([mean_x0, mean_x, log_small, betas.log()], dim=1)


def _log_likelihood(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Log of a normal distribution's mass in the bin of each 8-bit pixel."""
    centred, inverse = x - mean, (-log_scale).exp()
    above = _normal_cdf(inverse * (centred + _HALF_BIN))
    below = _normal_cdf(inverse * (centred - _HALF_BIN))
    mass = torch.where(x < -_EDGE, above, torch.where(x > _EDGE, 1.0 - below, above - below))
    return mass.clamp(min=_LEAST).log()


def _normal_cdf(x: Tensor) -> Tensor:
    """Distribution function of the normal distribution by tanh, off by at most 2e-4."""
    return 0.5 * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))
