"""Methods of one and two evaluations a step over sigma, with churn. Imports no torch.

The flow d y / d s = (y - x0) / s with y = x / alpha and s = sigma / alpha; on the straight paths of
flow matching y is x itself, and s is sigma.

Source: Karras et al. 2022, section 3.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ddsm_ext.sampling.method import (
    Denoise,
    LevelAt,
    Noise,
    check_signal,
    combined,
    first_order,
    is_flow,
    noise_ratio,
)

if TYPE_CHECKING:
    from torch import Tensor

    from ddsm_ext.diffusion.level import Level


@dataclass(frozen=True)
class Churn:
    """Noise added before a step: from s to (1 + gamma) s, gamma = min(s_churn / N, sqrt(2) - 1).

    Args:
        s_churn: how much, over all N steps; 0 for none.
        s_min: least s = sigma / alpha at which noise is added.
        s_max: greatest one.
        s_noise: standard deviation of what is added, a little above 1 against lost detail.

    Source: Karras et al. 2022, algorithm 2.
    """

    s_churn: float = 0.0
    s_min: float = 0.0
    s_max: float = math.inf
    s_noise: float = 1.0

    def more(
        self, x: Tensor, here: Level, steps: int, noise: Noise, level_at: LevelAt
    ) -> tuple[Tensor, Level]:
        """Return x and its level with the noise of a step added."""
        if self.s_churn == 0.0 or not self.s_min <= here.sigma / here.alpha <= self.s_max:
            return x, here
        gamma = min(self.s_churn / steps, math.sqrt(2.0) - 1.0)
        noisier = level_at(here.log_snr - 2.0 * math.log1p(gamma))
        added = here.sigma / here.alpha * math.sqrt((1.0 + gamma) ** 2 - 1.0) * self.s_noise
        scale = noisier.alpha
        return combined(scale / here.alpha, x, (scale * added, noise())), noisier


def euler(
    denoise: Denoise,
    x: Tensor,
    levels: Sequence[Level],
    noise: Noise,
    *,
    level_at: LevelAt,
    **churn: float,
) -> Tensor:
    """y_s = y + (s' - s) (y - x0) / s, one evaluation a step; `churn`: fields of `Churn`.

    Source: Karras et al. 2022, algorithm 2 without its correction.
    """
    churned, steps = Churn(**churn), len(levels) - 1
    for visited, there in itertools.pairwise(levels):
        x, here = churned.more(x, visited, steps, noise, level_at)
        p, q = first_order(here, there)
        x = combined(p, x, (q, denoise(x, here)))
    return x


def heun(
    denoise: Denoise,
    x: Tensor,
    levels: Sequence[Level],
    noise: Noise,
    *,
    level_at: LevelAt,
    **churn: float,
) -> Tensor:
    """Euler's step, then another along the mean of the slopes at both ends; none at sigma 0.

    With r = s' / s, D the first prediction and D' the second, at Euler's end:
    y' = r y + (1 - r) (1 - 1 / (2 r)) D + (1 / (2 r) - 1 / 2) D'. `churn`: fields of `Churn`.

    Source: Karras et al. 2022, algorithms 1 and 2.
    """
    churned, steps, flow = Churn(**churn), len(levels) - 1, is_flow(levels)
    if not flow:
        check_signal("heun", levels[0])
    for visited, there in itertools.pairwise(levels):
        x, here = churned.more(x, visited, steps, noise, level_at)
        p, q = first_order(here, there)
        first = denoise(x, here)
        end = combined(p, x, (q, first))
        if there.variance > 0.0:
            r = p if flow else noise_ratio(here, there)
            scale, half = (1.0 if flow else there.alpha), 0.5 / r
            second = denoise(end, there)
            of_first = scale * (1.0 - r) * (1.0 - half)
            end = combined(p, x, (of_first, first), (scale * (half - 0.5), second))
        x = end
    return x


def dpm_2(
    denoise: Denoise,
    x: Tensor,
    levels: Sequence[Level],
    noise: Noise,
    *,
    level_at: LevelAt,
    **churn: float,
) -> Tensor:
    """A step along the slope at its middle in log s, where Euler leads; Euler's at the end.

    With r = s' / s, D and D' the predictions at the begin and in the middle, g = (r - 1) / sqrt(r):
    y' = r y + g (1 - sqrt(r)) D - g D'. `churn`: fields of `Churn`.

    Source: k-diffusion, `sample_dpm_2`; Karras et al. 2022, after DPM-Solver-2 (Lu et al. 2022a).
    """
    churned, steps = Churn(**churn), len(levels) - 1
    check_signal("dpm_2", levels[0])
    for visited, there in itertools.pairwise(levels):
        x, here = churned.more(x, visited, steps, noise, level_at)
        p, q = first_order(here, there)
        first = denoise(x, here)
        if there.variance == 0.0:
            x = combined(p, x, (q, first))
            continue
        middle = level_at(0.5 * (here.log_snr + there.log_snr))
        p_half, q_half = first_order(here, middle)
        second = denoise(combined(p_half, x, (q_half, first)), middle)
        r = noise_ratio(here, there)
        g = (r - 1.0) / math.sqrt(r)
        of_first = there.alpha * g * (1.0 - math.sqrt(r))
        x = combined(p, x, (of_first, first), (-there.alpha * g, second))
    return x
