"""Layer norm (with optional scale and shift of each image) of a channel prefix."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ddsm_ext.ops._autograd import Replayed, differentiable, grad_targets, needs_grad
from ddsm_ext.ops._call import (
    check_accumulate,
    check_bias,
    check_tensor,
    check_weight_match,
    runs_native,
    shape_text,
)
from ddsm_ext.ops._norms import check_eps, checked_modulation
from ddsm_ext.settings import Refusal

_OP = "sliced_layer_norm"


def sliced_layer_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    eps: float = 1e-5,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    accumulate_grad: bool = False,
) -> Tensor:
    """y = u * (1 + scale) + shift, u = (x - mean_c(x)) / sqrt(var_c(x) + eps) * gamma + beta.

    Mean and variance are those of the c channels of one row.

    Args:
        x: [N, ..., c], at least two dimensions, any strides; fp32, bf16, or fp64 (CPU) or fp16
            (CUDA).
        weight: gamma, [c_max]; weight[:c] is used. May be fp32 beside a 16-bit x. None: 1, and
            bias is None, too.
        bias: beta, [c_max], dtype of weight; None: 0.
        eps: added to the (biased) variance.
        scale, shift: [N, c] of x's dtype (under autocast any), such as columns of a wider tensor:
            what modulates the norm of each image ("adaLN"). None: y = u.
        accumulate_grad: backward adds dL/dgamma and dL/dbeta to the prefixes of `weight.grad` and
            `bias.grad` (made when None; both must be leaves) and autograd sees none.

    Returns:
        y, contiguous, with shape and dtype of x.

    Raises:
        TypeError, ValueError: an argument that does not fit, with its value and what is needed.

    Source: Ba et al. 2016, "Layer Normalization", eq. 3-4; Peebles & Xie 2023, "Scalable Diffusion
        Models with Transformers", sec. 3.2, for scale and shift.
    """
    _check(x, weight, bias, eps, accumulate_grad)
    scale, shift = checked_modulation(_OP, scale, shift, x, x.shape[-1])
    training = needs_grad(x, weight, bias, scale, shift)
    if not runs_native(_OP, x, needs_grad=training):
        return sliced_layer_norm_ref(x, weight, bias, eps=eps, scale=scale, shift=shift)
    inputs = (x, weight, bias, eps, scale, shift)
    y, _, _ = _call(*inputs, needs_grad=training, accumulate_grad=accumulate_grad)
    return y


def sliced_layer_norm_ref(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    eps: float = 1e-5,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    """Plain-torch twin of `sliced_layer_norm` (arguments and returns there, unchecked here)."""
    c = x.shape[-1]
    # bf16 and fp16 are normalised in fp32: parameters may be fp32 beside them.
    dtype = torch.promote_types(x.dtype, torch.float32)
    gamma, beta = (None if p is None else p[:c].to(dtype) for p in (weight, bias))  # [c]
    y = F.layer_norm(x.to(dtype), (c,), gamma, beta, eps)
    if scale is not None and shift is not None:
        rows = (x.shape[0], *[1] * (x.dim() - 2), c)
        y = y * (1 + scale.to(dtype).reshape(rows)) + shift.to(dtype).reshape(rows)
    return y.to(x.dtype).contiguous()


def _check(x: Any, weight: Any, bias: Any, eps: Any, accumulate_grad: Any) -> None:
    check_tensor(_OP, "x", x)
    check_eps(_OP, eps)
    if x.dim() < 2 or x.shape[-1] < 1:
        raise Refusal(
            f"{_OP}: x has shape {shape_text(x)}; need at least 2 dimensions and 1 channel"
        )
    for given, other in ((weight, bias), (bias, weight)):
        if given is None and other is not None:
            raise Refusal(f"{_OP}: only one of weight and bias is given; need both or neither")
    if weight is not None:
        check_tensor(_OP, "weight", weight, 1)
        check_weight_match(_OP, x, weight)
        check_bias(_OP, bias, weight)
        if x.shape[-1] > weight.shape[0]:
            raise Refusal(
                f"{_OP}: x has {x.shape[-1]} channels, weight has {weight.shape[0]}; "
                f"need 1 <= channels <= {weight.shape[0]}"
            )
    check_accumulate(_OP, accumulate_grad, weight, bias)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, ctx.eps, scale, shift = inputs
    _, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.save_for_backward(x, weight, bias, mean, rstd, scale, shift)


def _backward(ctx: Any, *grads: Tensor) -> dict[int, Tensor | None]:
    x, weight, bias, mean, rstd, scale, shift = ctx.saved_tensors
    targets = grad_targets(ctx, weight, bias)
    modulation: list[Tensor | None] = [None, None]
    if scale is not None:
        modulation = [
            scale.new_empty(scale.shape) if needed else None  # [N, c]
            for needed in ctx.needs_input_grad[4:6]
        ]
    grad_x = torch.ops.ddsm_ext.sliced_layer_norm_backward(
        grads[0], x, weight, bias, mean, rstd, *targets, scale, shift, *modulation
    )
    return dict(enumerate((grad_x, *targets, None, *modulation)))


def _replay(ctx: Any, saved: list[Any], grads: tuple[Tensor, ...]) -> Replayed:
    x, weight, bias, _mean, _rstd, scale, shift = saved
    y = sliced_layer_norm_ref(x, weight, bias, eps=ctx.eps, scale=scale, shift=shift)
    return (y,), {0: x, 1: weight, 2: bias, 4: scale, 5: shift}


_call = differentiable(_OP, _save, _backward, parameters={"weight": 1, "bias": 2}, replay=_replay)


@torch.library.register_fake("ddsm_ext::sliced_layer_norm")
def _fake(x: Tensor, *rest: Any, **more: Any) -> tuple[Tensor, Tensor, Tensor]:
    statistics = torch.promote_types(x.dtype, torch.float32)
    return (
        x.new_empty(x.shape),
        x.new_empty(x.shape[:-1], dtype=statistics),  # [N, ...]
        x.new_empty(x.shape[:-1], dtype=statistics),  # [N, ...]
    )


@torch.library.register_fake("ddsm_ext::sliced_layer_norm_backward")
def _fake_backward(grad_y: Tensor, x: Tensor, *rest: Any, **more: Any) -> Tensor:
    return x.new_empty(x.shape)


@register_flop_formula(
    [torch.ops.ddsm_ext.sliced_layer_norm, torch.ops.ddsm_ext.sliced_layer_norm_backward]
)
def _flops(*shapes: Any, **more: Any) -> int:
    """0 FLOPs: like PyTorch's own counters, only products count."""
    return 0
