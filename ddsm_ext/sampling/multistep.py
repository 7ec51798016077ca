"""DPM-Solver and DPM-Solver++ with the outputs of earlier steps. Imports no torch.

In half the log-SNR, lambda, a step of length h to the level s is
x_s = (sigma_s / sigma_t) x - alpha_s (integral over predictions x0)   ("data"), or
x_s = (alpha_s / alpha_t) x - sigma_s (integral over epsilon)          ("noise"),
with the predictions continued as a polynomial through those of the last steps.

Source: Lu et al. 2022a (DPM-Solver), 2022b (DPM-Solver++).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ddsm_ext.sampling.method import (
    FORMS,
    Denoise,
    Noise,
    check_order,
    check_signal,
    combined,
    epsilon_of,
    exponential_step,
    first_order,
    width_changed,
)
from ddsm_ext.settings import check_choice

if TYPE_CHECKING:
    from torch import Tensor

    from ddsm_ext.diffusion.level import Level

# diffusers' DPMSolverMultistepScheduler: with fewer steps than this the last ones are of lower
# order, for stability. The authors' own code has 10.
FEW_STEPS = 15
VARIANTS = ("midpoint", "heun")


def dpmpp_2m(
    denoise: Denoise,
    x: Tensor,
    levels: Sequence[Level],
    noise: Noise,
    *,
    variant: str = "midpoint",
    restart_on_width_change: bool = False,
) -> Tensor:
    """DPM-Solver++(2M): order 2 on predictions of x0, one evaluation a step.

    Args:
        variant: "midpoint" (k-diffusion's) or "heun", the two formulas of order 2.
        restart_on_width_change: where the width is another than at the evaluation before, the
            outputs of the other width are not used.

    Source: Lu et al. 2022b, algorithm 2.
    """
    return dpm_multistep(
        denoise, x, levels, noise, order=2, form="data", variant=variant,
        restart_on_width_change=restart_on_width_change,
    )  # fmt: skip


def dpm_multistep(
    denoise: Denoise,
    x: Tensor,
    levels: Sequence[Level],
    noise: Noise,
    *,
    order: int = 2,
    form: str = "data",
    variant: str = "midpoint",
    restart_on_width_change: bool = False,
    few_steps: int = FEW_STEPS,
) -> Tensor:
    """DPM-Solver (form "noise") or DPM-Solver++ ("data") of order 1 to 3, one evaluation a step.

    Args:
        order: the first steps are of lower order, as long as there are no more outputs.
        form: what is continued as a polynomial, "data" (x0) or "noise" (epsilon).
        variant: "midpoint" or "heun", the two formulas of order 2.
        restart_on_width_change: as in `dpmpp_2m`.
        few_steps: with fewer steps the last ones are of lower order; in the step to the clean
            image it is 1 always.

    Raises:
        ValueError: order, form or variant is unknown; form "noise" on levels without signal.

    Source: Lu et al. 2022a, appendix B; 2022b, algorithm 2.
    """
    check_order("dpm_multistep", order)
    check_choice("dpm_multistep: form", form, FORMS)
    check_choice("dpm_multistep: variant", variant, VARIANTS)
    steps, clean = len(levels) - 1, levels[-1].variance == 0.0
    if form == "noise":
        check_signal("dpm_multistep with form 'noise'", levels[0])
    history: list[tuple[float, Tensor]] = []  # lambda and output, the newest first
    for i, (here, there) in enumerate(itertools.pairwise(levels)):
        if restart_on_width_change and i and width_changed(denoise, levels[i - 1], here):
            history.clear()
        x0 = denoise(x, here)
        output = x0 if form == "data" else epsilon_of(x, x0, here)
        history = [(0.5 * here.log_snr, output), *history[: order - 1]]
        left = steps - i if steps < few_steps or (clean and i == steps - 1) else order
        used = min(order, left, len(history))
        if used == 1:  # to the clean image, too: no lambda is left there
            p, q = first_order(here, there)
            x = combined(p, x, (q, x0))
            continue
        p, scale, h = exponential_step(here, there, form)
        lambdas, outputs = zip(*history[:used], strict=True)
        factors = _factors(h, lambdas, variant)
        x = combined(p, x, *((-scale * k, m) for k, m in zip(factors, outputs, strict=True)))
    return x


def _factors(h: float, lambdas: Sequence[float], variant: str) -> list[float]:
    """Return what the integral over the polynomial makes of each output, the newest first.

    Args:
        h: signed length of the step.
        lambdas: of the outputs, two or three, falling.
        variant: "midpoint" or "heun", of order 2.
    """
    first = math.expm1(h)
    second = first / h - 1.0
    # 1 / r of each earlier step: 0 after a level without signal, where r is infinite.
    gap = abs(h) / (lambdas[0] - lambdas[1])
    if len(lambdas) == 2:
        slope = gap * (0.5 * first if variant == "midpoint" else second)
        return [first + slope, -slope]
    further = abs(h) / (lambdas[1] - lambdas[2])
    whole = abs(h) / (lambdas[0] - lambdas[2])
    share, third = whole / gap, (first - h) / h**2 - 0.5
    newer = gap * (second * (1.0 + share) + third * whole)
    older = further * (second * share + third * whole)
    return [first + newer, -newer - older, older]
