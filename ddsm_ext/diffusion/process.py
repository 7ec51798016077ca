"""Forward process and its posterior, pure functions of tensors and a `NoiseSchedule`."""

from __future__ import annotations

import torch
from torch import Tensor

from ddsm_ext.diffusion.schedule import NoiseSchedule
from ddsm_ext.settings import check_choice

VARIANCES = ("fixed_large", "fixed_small")


def per_image(coefficient: Tensor, x: Tensor) -> Tensor:
    """Reshape `coefficient` [N] to [N, 1, ...] beside `x` [N, ...], in float32 or wider.

    Half-precision images are combined in float32: a bfloat16 coefficient keeps 3 digits only.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    coefficient = coefficient.to(device=x.device, dtype=dtype)
    return coefficient.reshape(-1, *([1] * (x.ndim - 1)))  # [N, 1, ...]


def check_batch(what: str, x: Tensor, t: Tensor, **others: Tensor) -> None:
    """Check that `t` is [N] and each of `others` has the shape of `x`.

    Raises:
        ValueError: a shape does not fit `x`.
    """
    if t.ndim != 1 or (t.numel() not in (1, x.shape[0])):
        raise ValueError(
            f"{what}: t has shape {tuple(t.shape)}; need [{x.shape[0]}], one per image"
        )
    for name, value in others.items():
        if value.shape != x.shape:
            raise ValueError(
                f"{what}: {name} has shape {tuple(value.shape)}; need {tuple(x.shape)}"
            )


def add_noise(x0: Tensor, noise: Tensor, t: Tensor, schedule: NoiseSchedule) -> Tensor:
    """x_t = sqrt(alpha-bar_t) x_0 + sqrt(1 - alpha-bar_t) noise.

    Args:
        x0: clean images [N, C, H, W], floating point.
        noise: standard normal of the same shape.
        t: timestep of each image [N], integer or continuous, 0 <= t <= T - 1.
        schedule: the noise schedule.

    Returns:
        x_t [N, C, H, W] in the dtype of `x0`.

    Raises:
        ValueError: a shape or a timestep does not fit.

    Source: Ho et al. 2020, eq. 4.
    """
    check_batch("add_noise", x0, t, noise=noise)
    alpha, sigma = schedule.signal_and_noise(t)  # [N], [N]
    return (per_image(alpha, x0) * x0 + per_image(sigma, x0) * noise).to(x0.dtype)


def posterior(x0: Tensor, x_t: Tensor, t: Tensor, schedule: NoiseSchedule) -> tuple[Tensor, Tensor]:
    """Mean [N, C, H, W] and variance [N] (float64) of q(x_{t-1} | x_t, x_0) for integer `t`.

    Args:
        x0: clean images [N, C, H, W].
        x_t: noisy images of the same shape.
        t: integer timestep of each image [N]; at t = 0 the posterior is x_0 with variance 0.
        schedule: the noise schedule.

    Raises:
        ValueError: a shape does not fit.
        TypeError: `t` is not an integer tensor.

    Source: Ho et al. 2020, eq. 6 and 7.
    """
    check_batch("posterior", x0, t, x_t=x_t)
    if t.is_floating_point():
        raise TypeError(f"posterior: t has dtype {t.dtype}; need integer timesteps")
    coef_x0, coef_xt, variance = posterior_tables(schedule)
    index = t.to(device="cpu", dtype=torch.int64)
    mean = per_image(coef_x0[index], x0) * x0 + per_image(coef_xt[index], x0) * x_t
    return mean.to(x0.dtype), variance[index]


def posterior_tables(schedule: NoiseSchedule) -> tuple[Tensor, Tensor, Tensor]:
    """Coefficients of x_0 and x_t in the posterior mean, and its variance: three [T] float64.

    Source: Ho et al. 2020, eq. 7 (alpha-bar_{-1} = 1).
    """
    log_ab = schedule.log_alphas_bar  # [T]
    log_ab_prev = torch.cat([log_ab.new_zeros(1), log_ab[:-1]])  # [T]
    one_minus_ab = -torch.expm1(log_ab)
    one_minus_ab_prev = -torch.expm1(log_ab_prev)
    coef_x0 = torch.exp(0.5 * log_ab_prev) * schedule.betas / one_minus_ab
    coef_xt = torch.sqrt(1.0 - schedule.betas) * one_minus_ab_prev / one_minus_ab
    variance = schedule.betas * one_minus_ab_prev / one_minus_ab
    return coef_x0, coef_xt, variance


def reverse_variances(schedule: NoiseSchedule, variance: str) -> Tensor:
    """Variance of p(x_{t-1} | x_t) at every t, [T] float64.

    "fixed_large" is beta_t, "fixed_small" the posterior variance. At t = 0 the posterior variance
    is 0 and beta_0 no bound for the decoder, so both take the posterior variance of t = 1 there,
    as Ho et al.'s code does; samplers add no noise in that step.

    Raises:
        ValueError: `variance` is neither name.

    Source: Ho et al. 2020, section 3.2 (the two choices of sigma_t squared).
    """
    check_choice("reverse_variances: variance", variance, VARIANCES)
    posterior_variance = posterior_tables(schedule)[2]
    tail = schedule.betas[1:] if variance == "fixed_large" else posterior_variance[1:]
    return torch.cat([posterior_variance[1:2], tail])
