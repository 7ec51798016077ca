"""UniPC: a predictor, and a corrector that costs no evaluation. Imports no torch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ddsm_ext.sampling.method import (
    Denoise,
    Noise,
    check_order,
    check_signal,
    combined,
    exponential_step,
    first_order,
    width_changed,
)
from ddsm_ext.settings import Refusal, check_choice

if TYPE_CHECKING:
    from torch import Tensor

    from ddsm_ext.diffusion.level import Level

VARIANTS = ("bh2", "bh1")


def unipc(
    denoise: Denoise,
    x: Tensor,
    levels: Sequence[Level],
    noise: Noise,
    *,
    order: int = 2,
    variant: str = "bh2",
    restart_on_width_change: bool = False,
) -> Tensor:
    """UniPC on predictions of x0: each output first corrects the step before, then makes the next.

    Args:
        order: 1 to 3; lower in the first steps, and in the last ones as in diffusers.
        variant: B(h) = expm1(h) ("bh2") or h ("bh1"), which is infinite for a final sigma of 0.
        restart_on_width_change: where the width is another than at the evaluation before, the
            outputs of the other width are not used, and the step before is not corrected.

    Raises:
        ValueError: an unknown order or variant, "bh1" with levels that end at sigma 0, or levels
            without signal.

    Source: Zhao et al. 2023, algorithms 1 and 2; diffusers' `UniPCMultistepScheduler`.
    """
    check_order("unipc", order)
    check_choice("unipc: variant", variant, VARIANTS)
    check_signal("unipc", levels[0])
    if variant == "bh1" and levels[-1].variance == 0.0:
        raise Refusal(
            "unipc: variant is 'bh1' and sigma ends at 0; need final 'sigma_min', or variant 'bh2'"
        )
    steps, used = len(levels) - 1, 1
    history: list[tuple[float, Tensor]] = []  # lambda and output, the newest first
    begin = x  # of the step before
    for i, (here, there) in enumerate(itertools.pairwise(levels)):
        if restart_on_width_change and i and width_changed(denoise, levels[i - 1], here):
            history.clear()
        now = (0.5 * here.log_snr, denoise(x, here))
        if history:
            x = _step(begin, levels[i - 1], here, [*history[:used], now], variant)
        history = [now, *history[: order - 1]]
        used, begin = min(order, steps - i, len(history)), x
        x = _step(begin, here, there, history[:used], variant)
    return x


def _step(
    x: Tensor, here: Level, there: Level, outputs: Sequence[tuple[float, Tensor]], variant: str
) -> Tensor:
    """A step from `here`, of which the first output is; one of `there`, for a corrector, is last.

    Args:
        x: at `here`.
        outputs: (lambda, x0) of `here`, of levels before it, the newest first, and of `there`.
    """
    p, a, h = exponential_step(here, there, "data")
    (start, first), *others = outputs
    if not others:
        return combined(p, x, (first_order(here, there)[1], first))
    whole = math.expm1(h)
    b = h if variant == "bh1" else whole
    ratios = [(at - start) / -h for at, _ in others]
    shares = _shares(h, b, ratios)
    factors = [-a * b * share / r for share, r in zip(shares, ratios, strict=True)]
    terms = zip(factors, (output for _, output in others), strict=True)
    return combined(p, x, (-a * whole - math.fsum(factors), first), *terms)


def _shares(h: float, b: float, ratios: Sequence[float]) -> list[float]:
    """Solve sum_j r_j^(i - 1) rho_j = i! h phi_(i + 1)(h) / B for i = 1, 2 ..., one an r.

    For one r the solution is 1/2, which is what the reference takes whatever h is.
    """
    if len(ratios) == 1:
        return [0.5]
    right, phi = [], math.expm1(h) / h - 1.0
    for i in range(1, len(ratios) + 1):
        right.append(phi * math.factorial(i) / b)
        phi = phi / h - 1.0 / math.factorial(i + 1)
    # Newton's form of the Vandermonde system: eliminate powers, then differences.
    for k in range(len(ratios) - 1):
        for i in range(len(ratios) - 1, k, -1):
            right[i] -= ratios[k] * right[i - 1]
    for k in range(len(ratios) - 2, -1, -1):
        for i in range(k + 1, len(ratios)):
            right[i] /= ratios[i] - ratios[i - k - 1]
        for i in range(k, len(ratios) - 1):
            right[i] -= right[i + 1]
    return right
