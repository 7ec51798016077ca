"""Data with known exact predictions, small networks and samplers that several tests use."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ddsm_ext.diffusion.config import DiffusionConfig
from ddsm_ext.diffusion.level import Level
from ddsm_ext.diffusion.schedule import NoiseSchedule, make_schedule
from ddsm_ext.sampling.config import SamplerConfig
from ddsm_ext.sampling.denoiser import Evaluation

SCHEDULE = make_schedule(DiffusionConfig())
COSINE = make_schedule(DiffusionConfig(schedule="cosine"))
SHAPE = (3, 8, 8)
MEAN, SPREAD = 0.2, 0.15


class GaussianData:
    """The exact predictions for images whose pixels are independent N(mean, spread²)."""

    def __init__(
        self,
        schedule: NoiseSchedule,
        mean: float = MEAN,
        spread: float = SPREAD,
        parameterisation: str = "epsilon",
    ) -> None:
        self.schedule, self.mean, self.spread = schedule, mean, spread
        self.parameterisation = parameterisation

    def __call__(self, x: Tensor, t: Tensor, width: float) -> Tensor:
        alpha_bar = self.schedule.log_alphas_bar[t].exp().view(-1, 1, 1, 1)
        alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        x = x.double()
        share = sigma / (alpha_bar * self.spread**2 + 1 - alpha_bar)
        epsilon = share * (x - alpha * self.mean)  # E[epsilon | x_t] of a joint Gaussian
        x0 = (x - sigma * epsilon) / alpha
        return {"epsilon": epsilon, "x0": x0, "v": alpha * epsilon - sigma * x0}[
            self.parameterisation
        ].float()


class TinyNet(nn.Module):
    """A fixed random convolution network with dropout, enough to mix pixels and channels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1),
            nn.SiLU(),
            nn.Dropout(0.5),
            nn.Conv2d(16, 3, 3, padding=1),
        )

    def forward(self, x: Tensor, t: Tensor, width: float) -> Tensor:
        return width * self.body(x) + 1e-3 * t.view(-1, 1, 1, 1)


def kept(store: list, *, last: bool = False):
    """A callback that keeps x_t of every step, or of the last one only."""

    def callback(evaluation: Evaluation, x_t: Tensor, x0: Tensor) -> None:
        if last:
            store.clear()
        store.append(x_t.clone())

    return callback


def full(n: int, **settings) -> tuple[range, tuple[int, int, int], SamplerConfig]:
    return range(n), SHAPE, SamplerConfig(clip_denoised=False, **settings)


def heun(denoise: Callable, x: Tensor, levels: list[Level], noise: Callable) -> Tensor:
    """Karras et al. 2022, algorithm 1, on x / alpha over sigma / alpha."""
    for here, there in itertools.pairwise(levels):
        s, s_next = here.sigma / here.alpha, there.sigma / there.alpha
        y = x / here.alpha
        slope = (y - denoise(x, here)) / s
        x = there.alpha * (y + (s_next - s) * slope)
        if s_next > 0:
            second = (x / there.alpha - denoise(x, there)) / s_next
            x = there.alpha * (y + (s_next - s) * (slope + second) / 2)
    return x
