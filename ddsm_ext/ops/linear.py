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
    wants_grad,
)
from ddsm_ext.ops._call import (
    autocast_dtype,
    check_accumulate,
    check_bias_kind,
    check_c_out,
    check_tensor,
    check_weight_match,
    factor_beside,
    matmul_tf32,
    runs_native,
    shape_text,
    uncast,
)
from ddsm_ext.ops.activation import (
    KINDS,
    activation_gradients,
    activation_number,
    activation_ref,
    checked_factors,
)
from ddsm_ext.ops.activation import activation as activate
from ddsm_ext.settings import Refusal

_OP = "sliced_linear"
# Of one weight: kMostBlocks of the kernels, which list them.
MOST_BLOCKS = 1024


def sliced_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    c_out: int,
    *,
    activation: str | None = None,
    gate: Tensor | None = None,
    residual: Tensor | None = None,
    accumulate_grad: bool = False,
) -> Tensor:
    """y = residual + gate * act(z), z = x @ weight[:c_out, :c_in].T + bias[:c_out], not copied.

    A weight of B blocks makes B such products side by side: z holds c_out columns of each.

    Args:
        x: [..., c_in], any strides, at least one dimension; fp32, bf16, or fp64 (CPU) or fp16
            (CUDA).
        weight: [c_out_max, c_in_max] or [B, c_out_max, c_in_max], x's dtype, or float32 with a
            16-bit x.
        bias: [c_out_max] or [B, c_out_max] of weight's dtype; None adds nothing.
        c_out: active output features, of each block.
        activation, gate, residual: as of `ops.activation`, whose z this product is; "geglu" takes
            two blocks. Without gradients they cost no pass of their own; with, z is kept.
        accumulate_grad: backward adds the weight and bias gradients to `weight.grad` and
            `bias.grad` itself and reports none to autograd (hooks do not see them). Under
            torch.compile autograd accumulates them as usual.

    Returns:
        [..., B c_out], or [..., c_out] after "geglu", of x's dtype, contiguous.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: a wrong shape, device or count.
    """
    blocks = _check_arguments(x, weight, bias, c_out, accumulate_grad)
    dtype = autocast_dtype(x)
    if dtype is not None:
        x = x.to(dtype)
    numbers: tuple[Any, ...] = (c_out, matmul_tf32(x))
    fused = activation is not None or gate is not None or residual is not None
    if not fused:
        return _product(x, weight, bias, numbers, accumulate_grad)
    number = activation_number(_OP, activation)
    if activation == "geglu" and blocks != 2:
        raise Refusal(f"{_OP}: weight has shape {shape_text(weight)}; need 2 blocks for 'geglu'")
    columns = c_out if activation == "geglu" else blocks * c_out
    gate, residual = checked_factors(_OP, gate, residual, x, (*x.shape[:-1], columns))
    # Without a kernel the product says so.
    if needs_grad(x, weight, bias, gate, residual) or not runs_native(
        _OP, x, needs_grad=False, warn=False
    ):
        z = _product(x, weight, bias, numbers, accumulate_grad)
        return activate(z, activation, gate=gate, residual=residual)
    return _call(x, weight, bias, *numbers, number, gate, residual, needs_grad=False)


def _product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    numbers: tuple[Any, ...],
    accumulate_grad: bool,
) -> Tensor:
    training = needs_grad(x, weight, bias)
    if not runs_native(_OP, x, needs_grad=training):
        return sliced_linear_ref(x, weight, bias, numbers[0])
    inputs = (x, weight, bias, *numbers)
    return _call(*inputs, needs_grad=training, accumulate_grad=accumulate_grad)


def sliced_linear_ref(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    c_out: int,
    *,
    activation: str | None = None,
    gate: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Plain-torch `sliced_linear`; the arguments mean the same and are not checked."""
    # [B c_out, c_in]
    w = weight[..., :c_out, : x.shape[-1]].reshape(-1, x.shape[-1]).to(x.dtype)
    b = None if bias is None else bias[..., :c_out].reshape(-1).to(x.dtype)
    with uncast(x):
        z = F.linear(x, w, b).contiguous()  # [..., B c_out]
    if activation is None and gate is None and residual is None:
        return z
    return activation_ref(z, activation, gate=gate, residual=residual)


def _check_arguments(x: Any, weight: Any, bias: Any, c_out: Any, accumulate_grad: Any) -> int:
    """Check the product's arguments; return the number of blocks."""
    check_tensor(_OP, "x", x)
    check_tensor(_OP, "weight", weight)
    if weight.dim() not in (2, 3):
        raise Refusal(f"{_OP}: weight has shape {shape_text(weight)}; need 2 or 3 dimensions")
    blocks = weight.shape[0] if weight.dim() == 3 else 1
    if not 1 <= blocks <= MOST_BLOCKS:
        raise Refusal(f"{_OP}: weight has {blocks} blocks; need 1 to {MOST_BLOCKS}")
    check_weight_match(_OP, x, weight)
    if bias is not None:
        check_tensor(_OP, "bias", bias)
        if bias.shape != weight.shape[:-1]:
            raise Refusal(
                f"{_OP}: bias has shape {shape_text(bias)}, weight {shape_text(weight)}; "
                f"need {list(weight.shape[:-1])}"
            )
        check_bias_kind(_OP, bias, weight)
    check_c_out(_OP, c_out, weight.shape[-2])
    check_accumulate(_OP, accumulate_grad, weight, bias)
    if x.dim() < 1:
        raise Refusal(f"{_OP}: x has shape {shape_text(x)}, need at least one dimension")
    c_in_max = weight.shape[-1]
    if not 1 <= x.shape[-1] <= c_in_max:
        raise Refusal(
            f"{_OP}: x has {x.shape[-1]} features, weight has {c_in_max} input features; "
            f"need 1 <= c_in <= {c_in_max}"
        )
    return blocks


@torch.library.register_fake("ddsm_ext::sliced_linear")
def _fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    c_out: int,
    tf32: bool = False,
    activation: int = 0,
    gate: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    blocks = weight.shape[0] if weight.dim() == 3 and KINDS[activation] != "geglu" else 1
    return x.new_empty((*x.shape[:-1], blocks * c_out))  # [..., B c_out]


@torch.library.register_fake("ddsm_ext::sliced_linear_grad_x")
def _fake_grad_x(grad_y: Tensor, weight: Tensor, c_in: int, tf32: bool = False) -> Tensor:
    return grad_y.new_empty((*grad_y.shape[:-1], c_in))  # [..., c_in]


@torch.library.register_fake("ddsm_ext::sliced_linear_grad_weight")
def _fake_grad_weight(*args: Any) -> None:
    """The gradients are added to arguments."""


def _run(
    training: bool, x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any
) -> Tensor:
    factors = (factor_beside(x, weight), factor_beside(x, bias))
    with below_autograd():
        return torch.ops.ddsm_ext.sliced_linear.default(x, *factors, *rest)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, ctx.c_out, ctx.tf32, *fused = inputs
    ctx.number, gate, _residual = fused or (0, None, None)
    ctx.save_for_backward(x, weight, bias, gate)


def _backward(ctx: Any, grad_y: Tensor) -> dict[int, Tensor | None]:
    """Gradients of x and full-size ones of weight and bias, zero outside the prefix."""
    x, weight, bias, gate = ctx.saved_tensors
    grads: dict[int, Tensor | None] = {7: grad_y if wants_grad(ctx, 7) else None}
    factor = factor_beside(x, weight)
    if ctx.number or gate is not None:  # of a raw call: z was not kept
        z = torch.ops.ddsm_ext.sliced_linear(x, factor, factor_beside(x, bias), ctx.c_out, ctx.tf32)
        grad_y, grads[6] = activation_gradients(
            grad_y, z, ctx.number, gate, wants_gate=wants_grad(ctx, 6)
        )
    if ctx.needs_input_grad[0]:
        grads[0] = torch.ops.ddsm_ext.sliced_linear_grad_x(grad_y, factor, x.shape[-1], ctx.tf32)
    grads[1], grads[2] = grad_weight, grad_bias = grad_targets(ctx, weight, bias)
    if grad_weight is not None or grad_bias is not None:
        into = torch.zeros_like(weight) if grad_weight is None else grad_weight
        torch.ops.ddsm_ext.sliced_linear_grad_weight(grad_y, x, into, grad_bias, ctx.tf32)
    return grads


def _replay(ctx: Any, saved: list[Any], grads: tuple[Tensor, ...]) -> Replayed:
    x, weight, bias, _gate = saved
    return (sliced_linear_ref(x, weight, bias, ctx.c_out),), {0: x, 1: weight, 2: bias}


_call = differentiable(
    _OP, _save, _backward, parameters={"weight": 1, "bias": 2}, run=_run, replay=_replay
)


def _flops(x: Any, weight: Any, bias: Any, c_out: int, *args: Any, **kwargs: Any) -> int:
    """FLOPs (2 x MACs) from shapes."""
    return 2 * math.prod(x) * c_out * math.prod(weight[:-2])


def _flops_grad_x(grad_y: Any, weight: Any, c_in: int, *args: Any, **kwargs: Any) -> int:
    return 2 * math.prod(grad_y) * c_in


def _flops_grad_weight(grad_y: Any, x: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * math.prod(grad_y) * x[-1]


register_flop_formula(torch.ops.ddsm_ext.sliced_linear)(_flops)
register_flop_formula(torch.ops.ddsm_ext.sliced_linear_grad_x)(_flops_grad_x)
register_flop_formula(torch.ops.ddsm_ext.sliced_linear_grad_weight)(_flops_grad_weight)
