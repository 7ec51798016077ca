"""Linear layer with a prefix of a larger weight."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ddsm_ext.ops._autograd import (
    Replayed,
    below_autograd,
    differentiable,
    grad_targets,
    needs_grad,
)
from ddsm_ext.ops._call import (
    autocast_dtype,
    check_accumulate,
    check_bias,
    check_c_out,
    check_tensor,
    check_weight_match,
    factor_beside,
    matmul_tf32,
    runs_native,
    shape_text,
    uncast,
)
from ddsm_ext.settings import Refusal

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
        x: [..., c_in], any strides, at least one dimension; fp32, bf16, or fp64 (CPU) or fp16
            (CUDA).
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
    training = needs_grad(*tensors)
    if not runs_native(_OP, x, needs_grad=training):
        return sliced_linear_ref(x, weight, bias, c_out)
    numbers = (c_out, matmul_tf32(x))
    return _call(*tensors, *numbers, needs_grad=training, accumulate_grad=accumulate_grad)


def sliced_linear_ref(x: Tensor, weight: Tensor, bias: Tensor | None, c_out: int) -> Tensor:
    """Plain-torch `sliced_linear`; the arguments mean the same and are not checked."""
    w = weight[:c_out, : x.shape[-1]].to(x.dtype)  # [c_out, c_in]
    b = None if bias is None else bias[:c_out].to(x.dtype)
    with uncast(x):
        return F.linear(x, w, b).contiguous()  # [..., c_out]


def _check_arguments(x: Any, weight: Any, bias: Any, c_out: Any, accumulate_grad: Any) -> None:
    check_tensor(_OP, "x", x)
    check_tensor(_OP, "weight", weight, 2)
    check_weight_match(_OP, x, weight)
    check_bias(_OP, bias, weight)
    check_c_out(_OP, c_out, weight)
    check_accumulate(_OP, accumulate_grad, weight, bias)
    if x.dim() < 1:
        raise Refusal(f"{_OP}: x has shape {shape_text(x)}, need at least one dimension")
    if not 1 <= x.shape[-1] <= weight.shape[1]:
        raise Refusal(
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
def _fake_grad_weight(*args: Any) -> None:
    """The gradients are added to arguments."""


def _run(
    training: bool, x: Tensor, weight: Tensor, bias: Tensor | None, c_out: int, tf32: bool
) -> Tensor:
    factors = (factor_beside(x, weight), factor_beside(x, bias))
    with below_autograd():
        return torch.ops.ddsm_ext.sliced_linear.default(x, *factors, c_out, tf32)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.tf32 = inputs[4]


def _backward(ctx: Any, grad_y: Tensor) -> dict[int, Tensor | None]:
    """Gradients of x and full-size ones of weight and bias, zero outside the prefix."""
    x, weight, bias = ctx.saved_tensors
    grad_x = None
    if ctx.needs_input_grad[0]:
        factor = factor_beside(grad_y, weight)
        grad_x = torch.ops.ddsm_ext.sliced_linear_grad_x(grad_y, factor, x.shape[-1], ctx.tf32)
    grad_weight, grad_bias = grad_targets(ctx, weight, bias)
    if grad_weight is not None or grad_bias is not None:
        into = torch.zeros_like(weight) if grad_weight is None else grad_weight
        torch.ops.ddsm_ext.sliced_linear_grad_weight(grad_y, x, into, grad_bias, ctx.tf32)
    return {0: grad_x, 1: grad_weight, 2: grad_bias}


def _replay(ctx: Any, saved: list[Any], grads: tuple[Tensor, ...]) -> Replayed:
    x, weight, bias = saved
    return (sliced_linear_ref(x, weight, bias, grads[0].shape[-1]),), dict(enumerate(saved))


_call = differentiable(
    _OP, _save, _backward, parameters={"weight": 1, "bias": 2}, run=_run, replay=_replay
)


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
