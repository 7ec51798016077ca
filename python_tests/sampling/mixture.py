"""The exact denoiser of a mixture of three normal distributions, which the golden files use."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddsm_ext.diffusion.level import Level
from ddsm_ext.sampling.strategy import Strategy

PARTS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
MEANS = torch.tensor([-0.8, 0.1, 0.9], dtype=torch.float64)
FULL = Strategy.constant(1.0)
VARIANCES = torch.tensor([0.1, 0.2, 0.15], dtype=torch.float64).square()


def mixture(x: Tensor, level: Level) -> Tensor:
    """E[x0 | x] of x = alpha x0 + sigma epsilon, of the shape of x."""
    alpha, total = level.alpha, level.alpha**2 * VARIANCES + level.variance  # [3]
    apart = x[..., None] - alpha * MEANS  # [..., 3]
    shares = (PARTS.log() - total.log() / 2 - apart.square() / (2 * total)).softmax(-1)
    return (shares * (MEANS + alpha * VARIANCES / total * apart)).sum(-1)


def gauss(x: Tensor, level: Level) -> Tensor:
    """E[x0 | x] for x0 of N(0.3, 0.5²)."""
    total = level.alpha**2 * 0.25 + level.variance
    return 0.3 + level.alpha * 0.25 / total * (x - level.alpha * 0.3)


@dataclass
class Recorder:
    """A denoiser as samplers see it, which notes where it is asked."""

    image: Callable[[Tensor, Level], Tensor] = mixture
    strategy: Strategy = FULL
    fraction: Tensor | None = None  # of learned variances
    levels: list[Level] = field(default_factory=list)
    seen: list[Tensor] = field(default_factory=list)

    def __call__(self, x: Tensor, level: Level) -> Tensor:
        self.levels.append(level)
        self.seen.append(x.clone())
        return self.image(x, level)

    def width_at(self, level: Level) -> float:
        return self.strategy.width_at(level.log_snr)

    def variance_fraction(self) -> Tensor:
        assert self.fraction is not None
        return self.fraction

    def gradient(self) -> None:
        return None


def draws(values: NDArray[np.float64] | Sequence[Any]) -> Callable[[], Tensor]:
    """Stored numbers, in order, as a sampler draws noise."""
    return iter(torch.as_tensor(values, dtype=torch.float64)).__next__


def exploding(log_snr: float) -> Level:
    """x = x0 + sigma epsilon, as EDM and k-diffusion have it."""
    return Level(0, log_snr, 0.0, math.exp(-log_snr))


def preserving(log_snr: float) -> Level:
    """x = alpha x0 + sigma epsilon with alpha² + sigma² = 1."""
    return Level(0, log_snr, -0.5 * math.log1p(math.exp(-log_snr)), 1 / (1 + math.exp(log_snr)))


def close(found: Tensor, expected: Tensor | NDArray[np.float64], tolerance: float = 1e-10) -> None:
    wanted = torch.as_tensor(expected)
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)
