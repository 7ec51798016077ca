"""Layer shapes as calls of the public ops and of their plain-torch references."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from cuda_kernels.gpu.device import DEVICE, ON_GPU
from torch import Tensor

from ddsm_ext import ops
from ddsm_ext.graph.shapes import AttentionShape, ConvShape, LinearShape, NormShape, Shape
from ddsm_ext.ops.attention import sliced_attention_ref
from ddsm_ext.ops.conv2d import sliced_conv2d_ref
from ddsm_ext.ops.group_norm import sliced_group_norm_ref
from ddsm_ext.ops.linear import sliced_linear_ref
from ddsm_ext.ops.packed_attention import packed_attention_ref

Functions = Mapping[str, Callable[..., Any]]
OURS: Functions = {
    "conv2d": ops.sliced_conv2d,
    "linear": ops.sliced_linear,
    "group_norm": ops.sliced_group_norm,
    # With gradients it is the kernel in any case, without them on a GPU mostly torch's.
    "attention": partial(ops.sliced_attention, backend="kernel" if ON_GPU else "auto"),
    "context": partial(ops.packed_attention, backend="kernel" if ON_GPU else "auto"),
}
REFERENCE: Functions = {
    "conv2d": sliced_conv2d_ref,
    "linear": sliced_linear_ref,
    "group_norm": sliced_group_norm_ref,
    "attention": sliced_attention_ref,
    "context": packed_attention_ref,
}
LAYOUTS = (torch.contiguous_format, torch.channels_last)


def normal(
    *size: int, dtype: torch.dtype, scale: float = 1.0, layout: Any = torch.contiguous_format
) -> Tensor:
    """Normal values of torch's generator; the layout is for 4 dimensions."""
    values = (torch.randn(*size, device=DEVICE) * scale).to(dtype)
    return values.contiguous(memory_format=layout) if len(size) == 4 else values


def leaves_of(shape: Shape, batch: int, dtype: torch.dtype, layout: Any) -> list[Tensor]:
    """Random inputs of a layer: sources, then weight and bias."""
    options: dict[str, Any] = {"dtype": dtype, "layout": layout}
    if isinstance(shape, ConvShape):
        k, size = shape.kernel, shape.in_size
        sources = [normal(batch, c, size, size, **options) for c in (shape.c_in, shape.c_in2) if c]
        scale = ((shape.c_in + shape.c_in2) * k * k) ** -0.5
        weight = normal(shape.c_out_max, shape.c_in_max, k, k, scale=scale, **options)
        return [*sources, weight, normal(shape.c_out_max, dtype=dtype)]
    if isinstance(shape, LinearShape):
        weight = normal(shape.c_out_max, shape.c_in_max, scale=shape.c_in**-0.5, dtype=dtype)
        return [
            normal(batch, shape.c_in, dtype=dtype),
            weight,
            normal(shape.c_out_max, dtype=dtype),
        ]
    if isinstance(shape, NormShape):
        sources = [
            normal(batch, c, shape.size, shape.size, **options) for c in (shape.c, shape.c2) if c
        ]
        return [*sources, normal(shape.c_max, dtype=dtype), normal(shape.c_max, dtype=dtype)]
    if shape.keys is not None:
        c = shape.heads * shape.head_size
        sizes = ((batch, shape.tokens, c), (batch, shape.keys, 2, c))
        return [normal(*size, dtype=dtype) for size in sizes]
    by_position = (batch, shape.tokens, shape.heads, shape.head_size)
    return [normal(*by_position, dtype=dtype).transpose(1, 2) for _ in range(3)]


def call(functions: Functions, shape: Shape, leaves: Sequence[Tensor]) -> Tensor:
    """Run a layer; two outputs are joined along the channels."""
    if isinstance(shape, AttentionShape):
        if shape.keys is not None:
            return functions["context"](leaves[0], shape.heads, leaves[1])
        return functions["attention"](*leaves)
    *sources, weight, bias = leaves
    x, x2 = sources[0], sources[1] if len(sources) > 1 else None
    if isinstance(shape, LinearShape):
        return functions["linear"](x, weight, bias, shape.c_out)
    if isinstance(shape, ConvShape):
        options = {
            "stride": shape.stride,
            "padding": shape.kernel // 2 - shape.pad_end,
            "upsample": shape.upsample,
            "pad_end": shape.pad_end,
        }
        return functions["conv2d"](x, weight, bias, shape.c_out, x2=x2, **options)
    y = functions["group_norm"](x, weight, bias, shape.groups, x2=x2, silu=shape.silu)
    return torch.cat(y, dim=1) if isinstance(y, tuple) else y


def results(
    functions: Functions, shape: Shape, leaves: Sequence[Tensor], grad_y: Tensor | None = None
) -> list[Tensor]:
    """Output and the gradients of all leaves; `grad_y` None: of random numbers, always the same."""
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    y = call(functions, shape, leaves)
    if grad_y is None:
        torch.manual_seed(1)
        grad_y = torch.randn(y.shape, device=DEVICE).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, leaves, grad_y)]
