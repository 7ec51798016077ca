"""What a sampler function is, and the step that all of them are made of. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from ddsm_ext.settings import Refusal, is_int, shown

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

    def gradient(self) -> Tensor | None:
        """Return a classifier's gradient at the last x by which the mean is moved; None: none."""


Noise = Callable[[], "Tensor"]
Method = Callable[..., "Tensor"]  # (denoise, x, levels, noise, **options) -> x
LevelAt = Callable[[float], "Level"]  # log-SNR -> level, for what lies between the levels visited
FORMS = ("data", "noise")  # what exponential integrators continue as a polynomial: x0 or epsilon
GREATEST_ORDER = 3


def combined(factor: float, x: Tensor, *terms: tuple[float, Tensor]) -> Tensor:
    """Return factor x + the sum of (coefficient, tensor) terms, a new tensor."""
    result = factor * x
    for coefficient, tensor in terms:
        if coefficient != 0.0:
            result.add_(tensor, alpha=coefficient)
    return result


def first_order(here: Level, there: Level) -> tuple[float, float]:
    """Return (p, q) of x_s = p x_t + q x0: alpha_s x0 + sigma_s epsilon at the epsilon of x_t, x0.

    DDIM with eta 0, Euler's method over sigma / alpha, and every method's step of first order.

    Source: Song et al. 2021, eq. 12; Karras et al. 2022, section 4.
    """
    p = math.sqrt(there.variance / here.variance)
    return p, there.alpha - p * here.alpha


def exponential_step(here: Level, there: Level, form: str) -> tuple[float, float, float]:
    """Return (p, a, h) of x_s = p x_t - a (integral of exp over h): what exponential integrators
    share, by what they continue as a polynomial.

    In half the log-SNR the step has the length |h|; h is negative for "data" (x0), where
    p = sigma_s / sigma_t and a = alpha_s, and positive for "noise" (epsilon), where
    p = alpha_s / alpha_t and a = sigma_s.

    Source: Lu et al. 2022a, eq. 3.4; 2022b, eq. 8.
    """
    length = 0.5 * (there.log_snr - here.log_snr)
    if form == "data":
        return math.sqrt(there.variance / here.variance), there.alpha, -length
    return math.exp(there.log_alpha - here.log_alpha), there.sigma, length


def epsilon_of(x: Tensor, x0: Tensor, level: Level) -> Tensor:
    """Return the noise that x0 leaves of x."""
    return combined(1.0 / level.sigma, x, (-level.alpha / level.sigma, x0))


def width_changed(denoise: Denoise, before: Level, now: Level) -> bool:
    """True where the network runs at another width than at the level before."""
    return denoise.width_at(before) != denoise.width_at(now)


def noise_ratio(here: Level, there: Level) -> float:
    """Return (sigma_s / alpha_s) / (sigma_t / alpha_t); 0 from a level without signal."""
    return there.sigma * here.alpha / (here.sigma * there.alpha)


def is_flow(levels: Sequence[Level]) -> bool:
    """True where alpha + sigma = 1 throughout: the straight paths of flow matching."""
    return all(math.isclose(level.alpha + level.sigma, 1.0, rel_tol=1e-9) for level in levels)


def check_order(name: str, order: int) -> None:
    """Refuse an order that no formula is here for.

    Raises:
        ValueError: it is not 1, 2 or 3.
    """
    if not is_int(order, 1) or order > GREATEST_ORDER:
        raise Refusal(f"{name}: order is {shown(order)}; need 1 <= order <= {GREATEST_ORDER}")


def check_preserves_variance(name: str, levels: Sequence[Level]) -> None:
    """Refuse levels that beta does not describe.

    Raises:
        ValueError: alpha² + sigma² of one is not 1.
    """
    for level in levels:
        if not level.preserves_variance:
            raise Refusal(
                f"{name}: alpha² + sigma² is {level.total_variance:.9g} at t = {level.t:g}; need "
                "1, levels that preserve the variance, or a sampler such as euler"
            )


def check_signal(name: str, level: Level) -> None:
    """Refuse levels that begin without any signal.

    Raises:
        ValueError: alpha is 0.
    """
    if level.alpha == 0.0:
        raise Refusal(
            f"{name}: alpha is 0 at t = {level.t:g}; need alpha > 0, or a sampler such as ddim"
        )
