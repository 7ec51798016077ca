"""Weights by formula, as the golden file's README states it, and the reference's time table."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

TIME_TABLE = "time_embedding.timembedding.0.weight"


def time_table(steps: int, ch: int) -> Tensor:
    """The frozen table, rows t = 0 ... steps - 1, in float32 like the reference's."""
    frequencies = torch.exp(-(torch.arange(0, ch, 2) / ch * math.log(10000)))
    angles = torch.arange(steps).float()[:, None] * frequencies[None, :]
    return torch.stack([angles.sin(), angles.cos()], dim=-1).view(steps, ch)


def formula_weights(
    shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """State dict of the golden files' README; DDSM's modules held it in float32."""
    state = {}
    for k, name in enumerate(sorted(shapes)):
        shape = shapes[name]
        if name == TIME_TABLE:
            state[name] = time_table(*shape)
            continue
        i = np.arange(math.prod(shape), dtype=np.float64)
        v = np.sin(0.7 * i * (1 + 0.001 * (k % 17)) + k).reshape(shape)
        if len(shape) > 1:
            v = v * math.sqrt(2 / v[0].size)
        else:
            v = 1 + 0.2 * v if name.endswith("weight") else 0.1 * v
        state[name] = torch.from_numpy(v).to(dtype)
    return state
