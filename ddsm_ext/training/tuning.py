"""Fine-tuning for a strategy: a step trains one width, on the noise levels that it serves."""

from __future__ import annotations

import torch
from torch import Tensor

from ddsm_ext.diffusion.noise import generator
from ddsm_ext.diffusion.schedule import NoiseSchedule
from ddsm_ext.sampling.strategy import Strategy
from ddsm_ext.training.batches import Stream
from ddsm_ext.training.timesteps import Accepted, Subset, Timesteps, Uniform


class Routing:
    """Which width a step trains, and on which timesteps.

    A step takes a width in proportion to the noise levels of training that the strategy gives it,
    and all its images get levels among those: over many steps each level is trained as often as
    without a strategy, at the width that serves it, while every product runs on a whole batch.

    Args:
        strategy: width by noise level.
        sandwich_share: share of the steps that are left to the sandwich rule.
        schedule: log-SNR of each timestep.
        seed: of the run.
        usual: where a training without a strategy draws from; None: all timesteps, equally likely.

    Attributes:
        timesteps: width -> timesteps that the strategy gives it, [n] int64.
    """

    def __init__(
        self,
        strategy: Strategy,
        sandwich_share: float,
        schedule: NoiseSchedule,
        seed: int,
        usual: Timesteps | None = None,
    ) -> None:
        self._widths = strategy.widths_for(schedule.log_snrs.tolist())  # [T]
        self._share, self._seed = sandwich_share, seed
        self._strategy, self._schedule = strategy, schedule
        self._usual = None if isinstance(usual, Uniform) else usual
        self.timesteps = {
            width: torch.tensor([t for t, w in enumerate(self._widths) if w == width], device="cpu")
            for width in set(self._widths)
        }

    def at(self, step: int) -> tuple[float, Timesteps] | None:
        """Return the width of a step and its timesteps; None: a sandwich step.

        Args:
            step: 0-based; the choice is a function of (seed, step), the same on every rank.
        """
        stream = generator(self._seed, Stream.ROUTE, step)
        share = float(torch.rand((), generator=stream, dtype=torch.float64, device="cpu"))
        if share < self._share:
            return None
        if self._usual is None:
            t = int(torch.randint(len(self._widths), (), generator=stream, device="cpu"))
            return self._widths[t], Subset(self.timesteps[self._widths[t]])
        (width,) = self._widths_at(self._usual.draw(1, stream))
        return width, Accepted(self._usual, lambda t: self._serves(width, t))

    def _widths_at(self, t: Tensor) -> list[float]:
        return self._strategy.widths_for(self._schedule.log_snr(t).tolist())

    def _serves(self, width: float, t: Tensor) -> Tensor:
        return torch.tensor([w == width for w in self._widths_at(t)], device="cpu")  # [N]
