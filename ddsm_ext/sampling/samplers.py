"""Samplers as functions `(denoise, x, levels, noise, **options) -> x`. Imports no torch.

denoise(x, level) is the predicted image x0; levels run from noisy to clean and end with `CLEAN`;
noise() draws the next standard normal of x's shape; x starts as noise of the first level. A sampler
also runs on a single number with a denoiser that notes its calls: so is known what it evaluates.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from ddsm_ext.settings import Refusal

if TYPE_CHECKING:
    from torch import Tensor

    from ddsm_ext.diffusion.level import Level


class Denoise(Protocol):
    """The denoiser of one batch, as samplers see it."""

    def __call__(self, x: Tensor, level: Level) -> Tensor:
        """Return the predicted image x0 in x."""

    def width_at(self, level: Level) -> float:
        """Return the width at which the network runs there."""

    def variance_fraction(self) -> Tensor:
        """Return v of the last evaluation's learned variance: 1 is beta, 0 the posterior's."""


Noise = Callable[[], "Tensor"]
Method = Callable[..., "Tensor"]  # (denoise, x, levels, noise, **options) -> x


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
    ("learned").

    Source: Ho et al. 2020, eq. 7 and section 3.2; learned: Nichol & Dhariwal 2021, eq. 15; strided:
    eq. 19.
    """
    _check_preserves_variance("ddpm", levels[0])
    for here, there in itertools.pairwise(levels):
        beta = _added_variance(here, there)
        coef_x = math.exp(here.log_alpha - there.log_alpha) * there.variance / here.variance
        x0 = denoise(x, here)
        x = (coef_x * x).add_(x0, alpha=there.alpha * beta / here.variance)
        if there.variance > 0.0:
            z, small = noise(), beta * there.variance / here.variance
            if variance == "learned":
                # sigma = small^(1/2) (beta / small)^(v / 2)
                z = (denoise.variance_fraction() * (0.5 * math.log(beta / small))).exp_().mul_(z)
            x.add_(z, alpha=math.sqrt(beta if variance == "fixed_large" else small))
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
        _check_preserves_variance("ddim with eta > 0", levels[0])
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


def _check_preserves_variance(name: str, level: Level) -> None:
    """Refuse levels that beta does not describe, by the first of them."""
    total = level.alpha**2 + level.variance
    if not math.isclose(total, 1.0, rel_tol=1e-6):
        raise Refusal(
            f"{name}: alpha² + sigma² is {total:.6g} at t = {level.t:g}; need 1, levels that "
            "preserve the variance"
        )


@dataclass(frozen=True)
class Row:
    """A sampler that `SamplerConfig.kind` names, and which of its settings the function takes."""

    method: Method
    options: tuple[str, ...]


SAMPLERS: dict[str, Row] = {
    "ddpm": Row(ddpm, ("variance",)),
    "ddim": Row(ddim, ("eta",)),
}
