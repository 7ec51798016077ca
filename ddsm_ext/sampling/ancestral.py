"""DDPM, DDIM and ancestral samplers: what noise they add comes from outside. Imports no torch."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ddsm_ext.sampling.method import (
    Denoise,
    LevelAt,
    Noise,
    check_preserves_variance,
    check_signal,
    combined,
    first_order,
    noise_ratio,
)
from ddsm_ext.settings import check_choice

if TYPE_CHECKING:
    from torch import Tensor

    from ddsm_ext.diffusion.level import Level

VARIANCES = ("fixed_large", "fixed_small", "learned")


def ddpm(
    denoise: Denoise,
    x: Tensor,
    levels: Sequence[Level],
    noise: Noise,
    *,
    variance: str = "fixed_large",
) -> Tensor:
    """Ancestral sampling: draws from q(x_s | x_t, x0) at every step t -> s, strided or not.

    x_s = sqrt(a_t / a_s) (1 - a_s) / (1 - a_t) x_t + sqrt(a_s) beta / (1 - a_t) x0 + noise, where
    a = alpha² and beta = 1 - a_t / a_s; the noise has variance beta ("fixed_large") or
    beta (1 - a_s) / (1 - a_t) ("fixed_small"), or one between the two by log, as the network says
    ("learned"). A classifier's gradient times that variance is added to the mean.

    Source: Ho et al. 2020, eq. 7 and section 3.2; learned: Nichol & Dhariwal 2021, eq. 15; strided:
    eq. 19; classifier: Dhariwal & Nichol 2021, algorithm 1.
    """
    check_choice("ddpm: variance", variance, VARIANCES)
    check_preserves_variance("ddpm", levels)
    gradient = getattr(denoise, "gradient", lambda: None)  # which a plain function lacks
    for here, there in itertools.pairwise(levels):
        beta = _added_variance(here, there)
        coef_x = math.exp(here.log_alpha - there.log_alpha) * there.variance / here.variance
        x0 = denoise(x, here)
        x = (coef_x * x).add_(x0, alpha=there.alpha * beta / here.variance)
        if there.variance > 0.0:
            z, slope = noise(), gradient()
            small = beta * there.variance / here.variance
            least = beta if variance == "fixed_large" else small
            if variance == "learned":
                # sigma = small^(1/2) (beta / small)^(v / 2)
                factor = (denoise.variance_fraction() * (0.5 * math.log(beta / small))).exp_()
                z = factor * z
                slope = None if slope is None else factor.square_().mul_(slope)
            if slope is not None:
                x.add_(slope, alpha=least)
            x.add_(z, alpha=math.sqrt(least))
    return x


def ddim(
    denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: Noise, *, eta: float = 0.0
) -> Tensor:
    """x_s = alpha_s x0 + sqrt(sigma_s² - v) epsilon + sqrt(v) z, with
    v = eta² sigma_s² / sigma_t² (1 - alpha_t² / alpha_s²).

    epsilon is (x_t - alpha_t x0) / sigma_t with the x0 that is used, so that a clipped x0 and its
    epsilon still add up to x_t.

    Source: Song et al. 2021, eq. 12 and 16.
    """
    if eta > 0.0:
        check_preserves_variance("ddim with eta > 0", levels)
    for here, there in itertools.pairwise(levels):
        added = eta**2 * there.variance / here.variance * _added_variance(here, there)
        coef_x = math.sqrt(max(there.variance - added, 0.0) / here.variance)
        x0 = denoise(x, here)
        x = (coef_x * x).add_(x0, alpha=there.alpha - coef_x * here.alpha)
        if added > 0.0:
            x.add_(noise(), alpha=math.sqrt(added))
    return x


def _added_variance(here: Level, there: Level) -> float:
    """beta = 1 - alpha_t² / alpha_s² of a step from `here` to the cleaner level `there`."""
    return -math.expm1(2.0 * (here.log_alpha - there.log_alpha))


def euler_ancestral(
    denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: Noise, *, eta: float = 1.0
) -> Tensor:
    """Euler's step down to sigma_down, then noise of sigma_up: sigma_down² + sigma_up² = sigma_s².

    sigma_up² = min(1, eta² (1 - sigma_s² / sigma_t²)) sigma_s², where sigma counts in units of
    alpha. Where levels preserve the variance this is DDIM.

    Source: k-diffusion, `get_ancestral_step` and `sample_euler_ancestral`.
    """
    for here, there in itertools.pairwise(levels):
        down, up = _ancestral(here, there, eta)
        x0 = denoise(x, here)
        p, q = first_order(here, down)
        x = combined(p, x, (q, x0))
        if up > 0.0:
            x.add_(noise(), alpha=up)
    return x


def dpmpp_2s_ancestral(
    denoise: Denoise,
    x: Tensor,
    levels: Sequence[Level],
    noise: Noise,
    *,
    level_at: LevelAt,
    eta: float = 1.0,
) -> Tensor:
    """DPM-Solver++(2S) down to sigma_down, then noise of sigma_up, as in `euler_ancestral`.

    Two evaluations a step, the second halfway in log-SNR; one in the step to the clean image.

    Source: k-diffusion, `sample_dpmpp_2s_ancestral`; Lu et al. 2022b, algorithm 1.
    """
    check_signal("dpmpp_2s_ancestral", levels[0])
    for here, there in itertools.pairwise(levels):
        down, up = _ancestral(here, there, eta)
        x0 = denoise(x, here)
        if down.variance > 0.0:
            middle = level_at(0.5 * (here.log_snr + down.log_snr))
            p, q = first_order(here, middle)
            x0 = denoise(combined(p, x, (q, x0)), middle)
        p, q = first_order(here, down)
        x = combined(p, x, (q, x0))
        if up > 0.0:
            x.add_(noise(), alpha=up)
    return x


def _ancestral(here: Level, there: Level, eta: float) -> tuple[Level, float]:
    """The level to step down to, of the alpha of `there`, and the noise to add there."""
    share = min(1.0, eta**2 * (1.0 - noise_ratio(here, there) ** 2))  # of the variance
    variance = there.variance * (1.0 - share)
    log_snr = 2.0 * there.log_alpha - math.log(variance) if variance > 0.0 else math.inf
    down = dataclasses.replace(there, log_snr=log_snr, variance=variance)
    return down, math.sqrt(there.variance * share)
