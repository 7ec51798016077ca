"""Sinusoidal embedding of continuous t, in plain torch."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sinusoidal_embedding(
    t: Tensor, dim: int, *, halves: bool = False, dtype: torch.dtype = torch.float32
) -> Tensor:
    """e[2i] = sin(t f_i), e[2i + 1] = cos(t f_i) with f_i = 10000 ** (-2i / dim).

    Args:
        t: [N] timesteps, integer or continuous.
        dim: size of the embedding, even.
        halves: order e as [cos of all i | sin of all i], as guided-diffusion does.
        dtype: float32 or float64, the precision to compute in.

    Returns:
        [N, dim] of `dtype`.

    Source: Vaswani et al. 2017, sec. 3.5; the operations and their order are those of the reference
        code of DDSM, whose float32 values agree bit for bit, or, for halves, of guided-diffusion.
    """
    if halves:
        exponent = -math.log(10000) * torch.arange(dim // 2, device=t.device, dtype=dtype)
        angles = t.to(dtype)[:, None] * torch.exp(exponent / (dim // 2))[None, :]  # [N, dim / 2]
        return torch.cat([angles.cos(), angles.sin()], dim=-1)  # [N, dim]
    exponent = torch.arange(0, dim, 2, device=t.device, dtype=dtype) / dim * math.log(10000)
    angles = t.to(dtype)[:, None] * torch.exp(-exponent)[None, :]  # [N, dim / 2]
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)  # [N, dim]


def embed_time(
    t: Tensor, dim: int, table: Tensor | None, dtype: torch.dtype, *, halves: bool = False
) -> Tensor:
    """Sinusoidal embedding in `dtype`; rows of a frozen `table` where t is one of its steps.

    Args:
        t: [N] timesteps, integer or continuous.
        dim: size of the embedding.
        table: [rows, dim] frozen embeddings of t = 0 ... rows - 1; None computes all.
        dtype: dtype of the result.
        halves: as `sinusoidal_embedding`'s.
    """
    precision = torch.float64 if dtype == torch.float64 else torch.float32
    embedding = sinusoidal_embedding(t, dim, halves=halves, dtype=precision).to(dtype)  # [N, dim]
    if table is None:
        return embedding
    row = t.round().long().clamp(0, table.shape[0] - 1) if t.is_floating_point() else t.long()
    row = row.clamp(0, table.shape[0] - 1)
    # A table is only kept to equal a checkpoint exactly at its own integer steps.
    return torch.where((row == t)[:, None], table[row].to(dtype), embedding)
