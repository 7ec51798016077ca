"""DPM-Solver and DPM-Solver++ with evaluations inside a step. Imports no torch.

Each output continues the last one as a polynomial in half the log-SNR, as in multistep.py.

Source: Lu et al. 2022a (DPM-Solver), 2022b (DPM-Solver++).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
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
)
from ddsm_ext.settings import check_choice

if TYPE_CHECKING:
    from torch import Tensor

    from ddsm_ext.diffusion.level import Level


def dpm_singlestep(
    denoise: Denoise,
    x: Tensor,
    levels: Sequence[Level],
    noise: Noise,
    *,
    order: int = 2,
    form: str = "data",
) -> Tensor:
    """DPM-Solver (form "noise") or DPM-Solver++ ("data"): a step of order k over k levels at once.

    Each level is evaluated once, those inside a step on the way. The last steps are of lower order
    where the number of levels asks for it, and the one to the clean image is of order 1.

    Args:
        order: 1 to 3.
        form: what is continued as a polynomial, "data" (x0) or "noise" (epsilon).

    Raises:
        ValueError: order or form is unknown, or there is a level without signal.

    Source: Lu et al. 2022a, algorithms 1 and 2; 2022b, algorithm 1; orders as in their code's
    `get_orders_and_timesteps_for_singlestep_solver`.
    """
    check_order("dpm_singlestep", order)
    check_choice("dpm_singlestep: form", form, FORMS)
    check_signal("dpm_singlestep", levels[0])
    output, at = _Outputs(denoise, form), 0
    for taken in _orders(len(levels) - 1, order, clean=levels[-1].variance == 0.0):
        step = (_first, _second, _third)[taken - 1]
        x = step(output, x, levels[at : at + taken + 1])
        at += taken
    return x


def _orders(evaluations: int, order: int, *, clean: bool) -> list[int]:
    """The orders of the steps, of as many evaluations in all; the last is 1 where it ends clean."""
    if clean:
        return [*_orders(evaluations - 1, order, clean=False), 1]
    whole, rest = divmod(evaluations, order)
    if order == 3 and rest == 0 and whole:
        return [3] * (whole - 1) + [2, 1]
    return [order] * whole + ([rest] if rest else [])


@dataclass(frozen=True)
class _Outputs:
    """What a form takes of an evaluation."""

    denoise: Denoise
    form: str

    def __call__(self, x: Tensor, level: Level) -> Tensor:
        x0 = self.denoise(x, level)
        return x0 if self.form == "data" else epsilon_of(x, x0, level)

    def straight(self, x: Tensor, output: Tensor, here: Level, there: Level) -> Tensor:
        """x at `there`, by the output at `here` alone."""
        p, a, h = exponential_step(here, there, self.form)
        return combined(p, x, (-a * math.expm1(h), output))


def _first(output: _Outputs, x: Tensor, levels: Sequence[Level]) -> Tensor:
    here, there = levels
    p, q = first_order(here, there)
    return combined(p, x, (q, output.denoise(x, here)))


def _second(output: _Outputs, x: Tensor, levels: Sequence[Level]) -> Tensor:
    """From the first of three levels to the last, with an evaluation at the one between."""
    here, middle, there = levels
    begin = output(x, here)
    inside = output(output.straight(x, begin, here, middle), middle)
    p, a, h = exponential_step(here, there, output.form)
    whole = math.expm1(h)
    slope = 0.5 * whole / _share(levels, middle)
    return combined(p, x, (-a * (whole - slope), begin), (-a * slope, inside))


def _third(output: _Outputs, x: Tensor, levels: Sequence[Level]) -> Tensor:
    """From the first of four levels to the last; the way to the third one is bent by the second."""
    here, early, late, there = levels
    begin = output(x, here)
    first = output(output.straight(x, begin, here, early), early)

    p, a, h = exponential_step(here, late, output.form)
    whole = math.expm1(h)
    slope = (whole / h - 1.0) * _share(levels, late) / _share(levels, early)
    bent = combined(p, x, (-a * (whole - slope), begin), (-a * slope, first))
    second = output(bent, late)

    p, a, h = exponential_step(here, there, output.form)
    whole = math.expm1(h)
    slope = (whole / h - 1.0) / _share(levels, late)
    return combined(p, x, (-a * (whole - slope), begin), (-a * slope, second))


def _share(levels: Sequence[Level], inside: Level) -> float:
    """Where a level lies between the first and the last one in log-SNR."""
    here, there = levels[0], levels[-1]
    return (inside.log_snr - here.log_snr) / (there.log_snr - here.log_snr)
