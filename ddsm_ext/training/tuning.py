"""Fine-tuning for a strategy: a step trains one width, on the noise levels that it serves."""

from __future__ import annotations

import torch

from ddsm_ext.diffusion.noise import generator
from ddsm_ext.diffusion.schedule import NoiseSchedule
from ddsm_ext.sampling.strategy import Strategy
from ddsm_ext.training.batches import Stream
from ddsm_ext.training.timesteps import Subset


class Routing:
    """Which width a step trains, and on which timesteps.

    A step takes a width in proportion to the timesteps that the strategy gives it, and all its
    images get timesteps among those: over many steps each timestep is trained equally often, at the
    width that serves it, while every product runs on a whole batch.

    Args:
        strategy: width by noise level.
        sandwich_share: share of the steps that are left to the sandwich rule.
        schedule: log-SNR of each timestep.
        seed: of the run.

    Attributes:
        timesteps: width -> timesteps that the strategy gives it, [n] int64.
    """

    def __init__(
        self, strategy: Strategy, sandwich_share: float, schedule: NoiseSchedule, seed: int
    ) -> None:
        self._widths = strategy.widths_for(schedule.log_snrs.tolist())  # [T]
        self._share, self._seed = sandwich_share, seed
        self.timesteps = {
            width: torch.tensor([t for t, w in enumerate(self._widths) if w == width], device="cpu")
            for width in set(self._widths)
        }

    def at(self, step: int) -> tuple[float, Subset] | None:
        """Return the width of a step and its timesteps; None: a sandwich step.

        Args:
            step: 0-based; the choice is a function of (seed, step), the same on every rank.
        """
        stream = generator(self._seed, Stream.ROUTE, step)
        share = float(torch.rand((), generator=stream, dtype=torch.float64, device="cpu"))
        if share < self._share:
            return None
        t = int(torch.randint(len(self._widths), (), generator=stream, device="cpu"))
        return self._widths[t], Subset(self.timesteps[self._widths[t]])
