"""Latent diffusion's attention of pixels to each other and to a context: PyTorch, packed_attention.

Queries, keys and values lie as a product leaves them, side by side in one buffer; a context's keys
and values do so in another.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ddsm_ext.bench.candidates import Call
from ddsm_ext.graph.shapes import AttentionShape
from ddsm_ext.ops import packed_attention

OP = "attention"
HEADS, HEAD_SIZE = 8, 32  # at full width
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def shapes(width: float) -> list[AttentionShape]:
    """32x32 and 16x16 pixels, attending to each other, to 77 tokens and to one."""
    heads = max(1, round(HEADS * width))
    return [
        AttentionShape(heads, side**2, HEAD_SIZE, keys)
        for side in (32, 16)
        for keys in (None, 77, 1)
    ]


def buffers(shape: AttentionShape, batch: int, dtype: torch.dtype) -> list[Tensor]:
    """[N, T, 3, c]; or of a context [N, T, c] and [N, keys, 2, c]."""
    generator = torch.Generator().manual_seed(0)
    c = shape.heads * shape.head_size
    sizes: list[tuple[int, ...]] = [(shape.tokens, 3, c)]
    if shape.keys is not None:
        sizes = [(shape.tokens, c), (shape.keys, 2, c)]
    return [torch.randn(batch, *size, generator=generator).to(dtype) for size in sizes]


def by_torch(attention: Attention, heads: int, q: Tensor, kv: Tensor | None = None) -> Tensor:
    """What a user writes around an attention of [N, heads, T, d] each."""
    parts = q.unbind(2) if kv is None else (q, *kv.unbind(2))
    split = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in parts)
    return attention(*split).transpose(1, 2).flatten(2)  # [N, T, c]


def bmm(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """By products and a softmax."""
    scores = torch.matmul(q, k.transpose(2, 3)) * q.shape[3] ** -0.5  # [N, heads, T, keys]
    return torch.matmul(scores.softmax(dim=-1), v)


def functions(heads: int) -> dict[str, Callable[..., Tensor]]:
    """Return name -> function of the buffers."""
    return {
        "slicing": lambda *given: by_torch(bmm, heads, *given),
        "dense_cl": lambda *given: by_torch(F.scaled_dot_product_attention, heads, *given),
        "ours": lambda q, kv=None: packed_attention(q, heads, kv),
    }


def candidates(shape: AttentionShape, batch: int, dtype: torch.dtype) -> dict[str, Call]:
    """Return name -> call of the same function on the same values."""
    given = buffers(shape, batch, dtype)
    return {
        name: lambda function=function: function(*given)
        for name, function in functions(shape.heads).items()
    }


def test_packed_attention(case: Any, candidate: str, time_candidate: Any) -> None:
    time_candidate(case, candidate)
