"""A slimmable network of two convolutions, a data set of random images, and short runs on them."""

from __future__ import annotations

import os
import signal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddsm_ext.data.dataset import ImageDataset
from ddsm_ext.diffusion.config import DiffusionConfig
from ddsm_ext.diffusion.schedule import make_schedule
from ddsm_ext.training.config import TrainConfig
from ddsm_ext.training.loop import train

SCHEDULE = make_schedule(DiffusionConfig(timesteps=50))


class ToyNet(nn.Module):
    """Uses the first `width` of 8 hidden channels."""

    def __init__(self, seed: int = 0, dropout: float = 0.2) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.first = nn.Conv2d(1, 8, 3, padding=1)
            self.last = nn.Conv2d(8, 1, 3, padding=1)
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.widths: list[float] = []
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor, t: Tensor, width: float) -> Tensor:
        """[N, 1, H, W] and [N] to [N, 1, H, W]."""
        self.widths.append(width)
        if self.training:
            self.calls += 1
        c = max(1, round(8 * width))
        hidden = F.conv2d(x, self.first.weight[:c], self.first.bias[:c], padding=1)
        hidden = self.dropout(F.silu(hidden + t.float()[:, None, None, None] / 1000))
        return F.conv2d(hidden, self.last.weight[:, :c], self.last.bias, padding=1)


class StopAt(ToyNet):
    """Sends a signal to the own process within a step of three widths, as Ctrl-C does."""

    def __init__(self, step: int, number: int = signal.SIGINT) -> None:
        super().__init__()
        self.stop_call, self.number, self.seen = 3 * step + 2, number, 0

    def forward(self, x: Tensor, t: Tensor, width: float) -> Tensor:
        self.seen += self.training
        if self.seen == self.stop_call:
            os.kill(os.getpid(), self.number)
        return super().forward(x, t, width)


def toy_data(count: int = 37, size: int = 6) -> ImageDataset:
    """Random grey images, mirrored at random in training."""
    images = np.random.default_rng(0).integers(0, 256, (count, 1, size, size), dtype=np.uint8)
    return ImageDataset(images, None, (), "toy", f"toy-{count}-{size}", flips=True)


def config(**changes) -> TrainConfig:
    settings = {"steps": 24, "batch_size": 5, "log_every": 4, "checkpoint_every": 6, "seed": 3}
    return TrainConfig(**{**settings, "warmup_steps": 4, "lr": 1e-2, **changes})


def run_train(run_dir, cfg, net=None, **options):
    return train(net or ToyNet(), toy_data(), SCHEDULE, cfg, run_dir, **options)
