"""Halving and enlarging in the ADM U-Net: PyTorch, resample."""

from __future__ import annotations

from typing import Any

import torch
from published.grid import ADM_IMAGENET64
from torch import Tensor

from ddsm_ext.bench.candidates import Call
from ddsm_ext.graph.shapes import ResampleShape
from ddsm_ext.models.dense import resampled
from ddsm_ext.ops import resample

NETWORK = ADM_IMAGENET64
OP = "resample"
SCALE = 0.5**0.5  # of what is resampled and added to, as in NCSN++


def candidates(shape: ResampleShape, batch: int, dtype: torch.dtype) -> dict[str, Call]:
    """Return name -> call of the same function on the same values."""
    generator = torch.Generator().manual_seed(0)
    size = (batch, shape.c, shape.in_size, shape.in_size)
    x = torch.randn(*size, generator=generator).to(dtype)
    x_cl = x.contiguous(memory_format=torch.channels_last)
    way, how = "up" if shape.up else "down", {"taps": shape.taps, "ring": shape.ring}
    added: Tensor | None = None
    if shape.residual:
        added = torch.randn(batch, shape.c, shape.size, shape.size, generator=generator).to(dtype)
        added = added.contiguous(memory_format=torch.channels_last)

    def plain(source: Tensor) -> Tensor:
        y = resampled(source, way, **how)
        return y if added is None else (y + added) * SCALE

    scale = 1.0 if added is None else SCALE
    return {
        "slicing": lambda: plain(x),
        "dense_cl": lambda: plain(x_cl),
        "ours": lambda: resample(x_cl, shape.up, **how, residual=added, scale=scale),
    }


def test_resample(case: Any, candidate: str, time_candidate: Any) -> None:
    time_candidate(case, candidate)
