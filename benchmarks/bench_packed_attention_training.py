"""Forward and backward of the attention of `bench_packed_attention`: PyTorch, packed_attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from bench_packed_attention import OP, buffers, functions, shapes
from torch import Tensor

from ddsm_ext.bench.candidates import Call, Output
from ddsm_ext.graph.shapes import AttentionShape

__all__ = ["OP", "shapes"]


def candidates(shape: AttentionShape, batch: int, dtype: torch.dtype) -> dict[str, Call]:
    """Return name -> call that gives the gradients of the buffers."""
    leaves = [x.requires_grad_() for x in buffers(shape, batch, dtype)]
    size = (batch, shape.tokens, shape.heads * shape.head_size)
    grad = torch.randn(*size, generator=torch.Generator().manual_seed(1)).to(dtype)

    def gradients(function: Callable[..., Tensor]) -> Output:
        with torch.enable_grad():
            found = torch.autograd.grad(function(*leaves), leaves, grad)
        first, *second = (gradient.flatten(1) for gradient in found)
        return (first, *second) if second else first

    return {
        name: lambda function=function: gradients(function)
        for name, function in functions(shape.heads).items()
    }


def test_packed_attention_training(case: Any, candidate: str, time_candidate: Any) -> None:
    time_candidate(case, candidate)
