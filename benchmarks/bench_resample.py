"""Halving and enlarging in the ADM U-Net: PyTorch, resample."""

from __future__ import annotations

from typing import Any

import torch
from published.grid import ADM_IMAGENET64

from ddsm_ext.bench.candidates import Call
from ddsm_ext.graph.shapes import ResampleShape
from ddsm_ext.models.dense import resampled
from ddsm_ext.ops import resample

NETWORK = ADM_IMAGENET64
OP = "resample"


def candidates(shape: ResampleShape, batch: int, dtype: torch.dtype) -> dict[str, Call]:
    """Return name -> call of the same function on the same values."""
    generator = torch.Generator().manual_seed(0)
    size = (batch, shape.c, shape.in_size, shape.in_size)
    x = torch.randn(*size, generator=generator).to(dtype)
    x_cl = x.contiguous(memory_format=torch.channels_last)
    way = "up" if shape.up else "down"
    return {
        "slicing": lambda: resampled(x, way),
        "dense_cl": lambda: resampled(x_cl, way),
        "ours": lambda: resample(x_cl, shape.up),
    }


def test_resample(case: Any, candidate: str, time_candidate: Any) -> None:
    time_candidate(case, candidate)
