"""Which timesteps the images of a width get: all, some, or more of those where it errs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor

from ddsm_ext.diffusion.schedule import NoiseSchedule
from ddsm_ext.training.config import TrainConfig

BINS = 16  # equal ranges of t whose errors are told apart
# What an older step counts for in the running errors, a step: the last 100 decide, 200 images a bin
# in batches of 32.
MEMORY = 0.99
_LEAST_DRAWS = 64  # at once, of which some are accepted


class Timesteps(Protocol):
    """A distribution of timesteps."""

    def draw(self, count: int, stream: Generator) -> Tensor:
        """Return t [count] on the CPU, int64 or float64 between two timesteps."""

    def factors(self, t: Tensor) -> Tensor | None:
        """Return what the losses at t [N] are multiplied by, [N] float32; None: by 1."""


@dataclass(frozen=True)
class Uniform:
    """All of 0 .. timesteps - 1, equally likely."""

    timesteps: int

    def draw(self, count: int, stream: Generator) -> Tensor:
        """As `Timesteps.draw`."""
        return torch.randint(self.timesteps, (count,), generator=stream, device="cpu")

    def factors(self, t: Tensor) -> None:
        """As `Timesteps.factors`."""


@dataclass(frozen=True)
class LogNormal:
    """log(sigma / alpha) normally distributed, at the ends of the schedule where it lies beyond.

    The mean loss is that of this distribution.

    Args:
        schedule: noise level of each timestep, and between them.
        mean, deviation: of log(sigma / alpha).

    Source: Karras et al. 2022, table 1.
    """

    schedule: NoiseSchedule
    mean: float
    deviation: float

    def draw(self, count: int, stream: Generator) -> Tensor:
        """As `Timesteps.draw`, but float64 between two timesteps."""
        z = torch.randn(count, generator=stream, dtype=torch.float64, device="cpu")  # [count]
        return self.schedule.timesteps_at(-2.0 * (self.mean + self.deviation * z))

    def factors(self, t: Tensor) -> None:
        """As `Timesteps.factors`."""


def usual_timesteps(schedule: NoiseSchedule, config: TrainConfig) -> Timesteps:
    """Return the distribution that `config.noise_levels` names."""
    if config.noise_levels == "log_normal":
        return LogNormal(schedule, config.p_mean, config.p_std)
    return Uniform(schedule.timesteps)


@dataclass(frozen=True)
class Subset:
    """Some timesteps, equally likely; the mean loss is of them alone.

    Args:
        values: [n] int64.
    """

    values: Tensor

    def draw(self, count: int, stream: Generator) -> Tensor:
        """As `Timesteps.draw`."""
        index = torch.randint(len(self.values), (count,), generator=stream, device="cpu")
        return self.values[index]

    def factors(self, t: Tensor) -> None:
        """As `Timesteps.factors`."""


@dataclass(frozen=True)
class Accepted:
    """Those draws of a distribution that a condition accepts; the mean loss is of them alone.

    Args:
        source: what is drawn from.
        accepts: t [N] -> bool [N]; of some draws at least.
    """

    source: Timesteps
    accepts: Callable[[Tensor], Tensor]

    def draw(self, count: int, stream: Generator) -> Tensor:
        """As `Timesteps.draw`: as often as it takes."""
        found = self.source.draw(0, stream)
        while len(found) < count:
            t = self.source.draw(max(count, _LEAST_DRAWS), stream)
            found = torch.cat([found, t[self.accepts(t)]])
        return found[:count]

    def factors(self, t: Tensor) -> None:
        """As `Timesteps.factors`."""


@dataclass(frozen=True)
class Weighted:
    """Each timestep with a probability p(t) of its own; the mean loss stays that of uniform ones.

    Args:
        probabilities: [T] float64, positive, of sum 1.
    """

    probabilities: Tensor

    def draw(self, count: int, stream: Generator) -> Tensor:
        """As `Timesteps.draw`, by inverting the distribution function."""
        sums = self.probabilities.cumsum(0)
        at = torch.rand(count, generator=stream, dtype=torch.float64, device="cpu") * sums[-1]
        return torch.searchsorted(sums, at, right=True).clamp_(max=len(sums) - 1)

    def factors(self, t: Tensor) -> Tensor:
        """1 / (T p(t))."""
        p = self.probabilities
        return (1.0 / (len(p) * p[t.cpu()])).float().to(t.device)


class ErrorTable:
    """Running mean error of each narrow width by range of t, of the newest steps.

    Args:
        widths: the narrow widths.
        timesteps: T.
    """

    def __init__(self, widths: Sequence[float], timesteps: int) -> None:
        self._rows = {width: row for row, width in enumerate(widths)}
        bins = min(BINS, timesteps)
        self._bin_of = torch.arange(timesteps, device="cpu") * bins // timesteps  # [T]
        # Sums of errors, and how many there were, older steps counting less
        shape = (2, len(widths), bins)
        self.totals = torch.zeros(shape, dtype=torch.float64, device="cpu")  # [2, W, B]

    def probabilities(self, width: float, share: float) -> Tensor:
        """Probability of each timestep, [T] float64: (1 - share) / T + share error / sum of errors.

        Uniform until every range has been seen.

        Args:
            width: one of the table's.
            share: 0 <= share < 1.
        """
        sums, counts = self.totals[:, self._rows[width]]  # [B], [B]
        timesteps = len(self._bin_of)
        uniform = torch.full((timesteps,), 1.0 / timesteps, dtype=torch.float64, device="cpu")
        if not bool((counts > 0).all()) or not float(sums.sum()) > 0:
            return uniform
        errors = (sums / counts)[self._bin_of]  # [T]
        return (1.0 - share) * uniform + share * errors / errors.sum()

    def none_seen(self) -> Tensor:
        """What a step adds before it saw anything, [2, W, B]."""
        return torch.zeros_like(self.totals)

    def see(self, seen: Tensor, width: float, t: Tensor, errors: Tensor) -> None:
        """Add a width's images to what a step saw.

        Args:
            seen: [2, W, B], changed.
            width: one of the table's.
            t: [N] timesteps.
            errors: [N] error of each image.
        """
        row, bins = self._rows[width], self._bin_of[t.cpu()]
        values = errors.detach().double().cpu()
        seen[0, row].index_add_(0, bins, values)
        seen[1, row].index_add_(0, bins, torch.ones_like(values))

    def add(self, seen: Tensor) -> None:
        """Take what a step saw, of all ranks; widths that it did not train keep their errors."""
        trained = seen[1].sum(1) > 0  # [W]
        self.totals[:, trained] *= MEMORY
        self.totals += seen
