"""A slimmable network of two convolutions and dropout, and a data set of random images."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddsm_ext.data.dataset import ImageDataset


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


def toy_data(count: int = 37, size: int = 6) -> ImageDataset:
    """Random grey images, mirrored at random in training."""
    images = np.random.default_rng(0).integers(0, 256, (count, 1, size, size), dtype=np.uint8)
    return ImageDataset(images, None, (), "toy", f"toy-{count}-{size}", flips=True)
