"""Linear layer with a prefix of a larger weight."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.flop_counter import register_flop_formula

from ddsm_ext.ops._arguments import (
    autocast_dtype,
    call_kernel,
    check_accumulate,
    check_bias,
    check_c_out,
    check_tensor,
    check_weight_match,
    factor_beside,
    grad_buffer,
    shape_text,
)
from ddsm_ext.ops._dispatch import runs_native
from ddsm_ext.ops._precision import matmul_tf32

_OP = "sliced_linear"


def sliced_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    c_out: int,
    *,
    accumulate_grad: bool = False,
) -> Tensor:
    """Compute `x @ weight[:c_out, :c_in].T + bias[:c_out]` without copying the slice.

    Args:
        x: [..., c_in], float32, bfloat16 or float64, any strides, at least one dimension.
        weight: [c_out_max, c_in_max], x's dtype, or float32 with a 16-bit x.
        bias: [c_out_max] of weight's dtype; None adds nothing.
        c_out: active output features.
        accumulate_grad: backward adds the weight and bias gradients to `weight.grad` and
            `bias.grad` itself and reports none to autograd (hooks do not see them). Under
            torch.compile autograd accumulates them as usual.

    Returns:
        [..., c_out] of x's dtype, contiguous.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: a wrong shape, device or count.
    """
    _check_arguments(x, weight, bias, c_out, accumulate_grad)
    dtype = autocast_dtype(x)
    if dtype is not None:
        x = x.to(dtype)
    tensors = (x, weight, bias)
    needs_grad = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    if not runs_native(_OP, x, needs_grad=needs_grad):
        return sliced_linear_ref(x, weight, bias, c_out)
    tf32 = matmul_tf32(x)
    if torch.compiler.is_compiling():
        return torch.ops.ddsm_ext.sliced_linear(*tensors, c_out, tf32)
    if needs_grad:
        return _SlicedLinear.apply(*tensors, c_out, tf32, accumulate_grad)
    return _forward(*tensors, c_out, tf32)


def sliced_linear_ref(x: Tensor, weight: Tensor, bias: Tensor | None, c_out: int) -> Tensor:
    """Plain-torch `sliced_linear`; the arguments mean the same and are not checked."""
    w = weight[:c_out, : x.shape[-1]].to(x.dtype)  # [c_out, c_in]
    b = None if bias is None else bias[:c_out].to(x.dtype)
    with torch.autocast(x.device.type, enabled=False):
        return F.linear(x, w, b).contiguous()  # [..., c_out]


def _check_arguments(x: Any, weight: Any, bias: Any, c_out: Any, accumulate_grad: Any) -> None:
    check_tensor(_OP, "x", x)
    check_tensor(_OP, "weight", weight, 2)
    check_weight_match(_OP, x, weight)
    check_bias(_OP, bias, weight)
    check_c_out(_OP, c_out, weight)
    check_accumulate(_OP, accumulate_grad, weight, bias)
    if x.dim() < 1:
        raise ValueError(f"{_OP}: x has shape {shape_text(x)}, need at least one dimension")
    if not 1 <= x.shape[-1] <= weight.shape[1]:
        raise ValueError(
            f"{_OP}: x has {x.shape[-1]} features, weight has {weight.shape[1]} input features; "
            f"need 1 <= c_in <= {weight.shape[1]}"
        )


@torch.library.register_fake("ddsm_ext::sliced_linear")
def _fake(x: Tensor, weight: Tensor, bias: Tensor | None, c_out: int, tf32: bool = False) -> Tensor:
    return x.new_empty((*x.shape[:-1], c_out))  # [..., c_out]


@torch.library.register_fake("ddsm_ext::sliced_linear_grad_x")
def _fake_grad_x(grad_y: Tensor, weight: Tensor, c_in: int, tf32: bool = False) -> Tensor:
    return grad_y.new_empty((*grad_y.shape[:-1], c_in))  # [..., c_in]


@torch.library.register_fake("ddsm_ext::sliced_linear_grad_weight")
def _fake_grad_weight(
    grad_y: Tensor,
    x: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor | None,
    tf32: bool = False,
) -> None:
    return None


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, c_out: int, tf32: bool) -> Tensor:
    factors = (factor_beside(x, weight), factor_beside(x, bias))
    return call_kernel(torch.ops.ddsm_ext.sliced_linear.default, x, *factors, c_out, tf32)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.tf32 = inputs[4]


def _grad_x(ctx: Any, grad_y: Tensor) -> Tensor | None:
    x, weight, _bias = ctx.saved_tensors
    if not ctx.needs_input_grad[0]:
        return None
    factor = factor_beside(grad_y, weight)
    return torch.ops.ddsm_ext.sliced_linear_grad_x(grad_y, factor, x.shape[-1], ctx.tf32)


def _backward(ctx: Any, grad_y: Tensor) -> tuple[Any, ...]:
    """Gradients of x and full-size ones of weight and bias, zero outside the prefix."""
    x, weight, bias = ctx.saved_tensors
    _, wants_weight, wants_bias = ctx.needs_input_grad[:3]
    grad_weight = grad_bias = None
    if wants_weight or wants_bias:
        grad_weight = torch.zeros_like(weight)  # [c_out_max, c_in_max]
        grad_bias = torch.zeros_like(bias) if wants_bias else None  # [c_out_max]
        torch.ops.ddsm_ext.sliced_linear_grad_weight(grad_y, x, grad_weight, grad_bias, ctx.tf32)
    return _grad_x(ctx, grad_y), grad_weight if wants_weight else None, grad_bias, None, None


torch.library.register_autograd("ddsm_ext::sliced_linear", _backward, setup_context=_setup_context)


class _SlicedLinear(torch.autograd.Function):
    """The eager path: less per call than register_autograd's, and `accumulate_grad`."""

    @staticmethod
    def forward(*args: Any) -> Tensor:
        return _forward(*args[:-1])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _setup_context(ctx, inputs[:-1], output)
        # The parameters themselves: saved_tensors may give other tensor objects.
        ctx.owners = (inputs[1], inputs[2]) if inputs[-1] else None

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Any, ...]:
        if ctx.owners is None:
            return *_backward(ctx, grad_y), None
        weight, bias = ctx.owners
        _, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        if wants_weight or wants_bias:
            grad_weight = grad_buffer(weight) if wants_weight else torch.zeros_like(weight)
            grad_bias = grad_buffer(bias) if wants_bias else None
            x = ctx.saved_tensors[0]
            grads = (grad_weight, grad_bias)
            torch.ops.ddsm_ext.sliced_linear_grad_weight(grad_y, x, *grads, ctx.tf32)
        return _grad_x(ctx, grad_y), *[None] * 5


def _flops(x: Any, weight: Any, bias: Any, c_out: int, *args: Any, **kwargs: Any) -> int:
    """FLOPs (2 x MACs) from shapes."""
    return 2 * math.prod(x) * c_out


def _flops_grad_x(grad_y: Any, weight: Any, c_in: int, *args: Any, **kwargs: Any) -> int:
    return 2 * math.prod(grad_y) * c_in


def _flops_grad_weight(grad_y: Any, x: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * math.prod(grad_y) * x[-1]


register_flop_formula(torch.ops.ddsm_ext.sliced_linear)(_flops)
register_flop_formula(torch.ops.ddsm_ext.sliced_linear_grad_x)(_flops_grad_x)
register_flop_formula(torch.ops.ddsm_ext.sliced_linear_grad_weight)(_flops_grad_weight)
