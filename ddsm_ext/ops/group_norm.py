"""Group norm (with optional FiLM and SiLU) of a channel prefix, over one or two sources."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ddsm_ext.ops._autograd import Replayed, differentiable, grad_targets, needs_grad
from ddsm_ext.ops._call import (
    channels_last,
    check_accumulate,
    check_bias,
    check_flag,
    check_int,
    check_second_source,
    check_tensor,
    check_weight_match,
    empty_nhwc,
    runs_native,
)
from ddsm_ext.ops._norms import check_eps, checked_modulation
from ddsm_ext.settings import Refusal

_OP = "sliced_group_norm"


def _check(
    x: Any,
    weight: Any,
    bias: Any,
    groups: Any,
    x2: Any,
    c2_offset: Any,
    eps: Any,
    silu: Any,
    accumulate_grad: Any,
) -> int:
    """Check everything that the kernels rely on; return the second source's parameter offset."""
    check_tensor(_OP, "x", x, 4)
    check_tensor(_OP, "weight", weight, 1)
    check_weight_match(_OP, x, weight)
    if bias is None:
        check_tensor(_OP, "bias", bias, 1)
    check_bias(_OP, bias, weight)
    check_int(_OP, "groups", groups)
    check_flag(_OP, "silu", silu)
    check_accumulate(_OP, accumulate_grad, weight, bias)
    check_eps(_OP, eps)
    c = x.shape[1]
    if not 1 <= c <= weight.shape[0]:
        raise Refusal(
            f"{_OP}: x has {c} channels, weight has {weight.shape[0]}; "
            f"need 1 <= channels <= {weight.shape[0]}"
        )
    c2_offset = check_second_source(_OP, "c2_offset", x, x2, c2_offset, weight.shape[0])
    channels = c if x2 is None else c + x2.shape[1]
    if groups < 1 or channels % groups != 0:
        raise Refusal(
            f"{_OP}: groups is {groups}, the input has {channels} channels; "
            "need groups >= 1 that divide them"
        )
    return c2_offset


def sliced_group_norm_ref(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    *,
    x2: Tensor | None = None,
    c2_offset: int | None = None,
    eps: float = 1e-5,
    silu: bool = False,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Plain-torch twin of `sliced_group_norm` (arguments and returns there, unchecked here)."""
    c = x.shape[1]
    z, gamma, beta = x, weight[:c], bias[:c]
    if x2 is not None:
        start = c if c2_offset is None else c2_offset
        end = start + x2.shape[1]
        z = torch.cat([x, x2], dim=1)  # [N, c + c2, H, W]
        gamma = torch.cat([gamma, weight[start:end]])  # [c + c2]
        beta = torch.cat([beta, bias[start:end]])  # [c + c2]
    # bf16 and fp16 are normalised in fp32: parameters may be fp32 beside them.
    dtype = torch.promote_types(x.dtype, torch.float32)
    # Of three dimensions, as for a channels_last input that needs no gradient itself the backward
    # of torch 2.13 reads memory beyond it; 1x1 pixels may pass for that however they lie.
    pixels = z.to(dtype).flatten(2)  # [N, c (+ c2), H W]
    y = torch.group_norm(pixels, groups, gamma.to(dtype), beta.to(dtype), eps).reshape(z.shape)
    if scale is not None and shift is not None:
        y = y * (1 + scale.to(dtype)[:, :, None, None]) + shift.to(dtype)[:, :, None, None]
    if silu:
        y = torch.nn.functional.silu(y)
    y = y.to(x.dtype)
    if x2 is None:
        return channels_last(y)
    return (
        channels_last(y[:, :c]),  # [N, c, H, W]
        channels_last(y[:, c:]),  # [N, c2, H, W]
    )


def sliced_group_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    *,
    x2: Tensor | None = None,
    c2_offset: int | None = None,
    eps: float = 1e-5,
    silu: bool = False,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    accumulate_grad: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """y = act(u * (1 + scale) + shift), u = (z - mean_g(z)) / sqrt(var_g(z) + eps) * gamma + beta.

    z is x, or x and x2 side by side on the channels.

    Args:
        x: [N, c, H, W], any memory format; fp32, bf16, or fp64 (CPU) or fp16 (CUDA).
        weight: gamma, [c_max]; weight[:c] is used. May be fp32 beside a 16-bit x.
        bias: beta, [c_max], dtype of weight.
        groups: number of groups over all c (+ c2) channels, which it must divide. A group may
            hold channels of both sources.
        x2: second source [N, c2, H, W], dtype of x; None: one source.
        c2_offset: where x2's part of weight and bias begins, >= c; None: c.
        eps: added to the (biased) variance.
        silu: act is SiLU, v * sigmoid(v); False: the identity.
        scale, shift: [N, c (+ c2)] of x's dtype (under autocast any), such as the halves of a wider
            tensor: FiLM, or "scale-shift norm", of each image. None: act(u).
        accumulate_grad: backward adds dL/dgamma and dL/dbeta to the prefixes of `weight.grad` and
            `bias.grad` (made when None; both must be leaves) and autograd sees none.

    Returns:
        y [N, c, H, W], or (y, y2) with y2 [N, c2, H, W]; dtype of x, channels_last.

    Raises:
        TypeError, ValueError: an argument that does not fit, with its value and what is needed.

    Source: Wu & He 2018, "Group Normalization", eq. 1-4; Dhariwal & Nichol 2021, "Diffusion Models
        Beat GANs on Image Synthesis", sec. 3.1, for scale and shift.
    """
    offset = _check(x, weight, bias, groups, x2, c2_offset, eps, silu, accumulate_grad)
    channels = x.shape[1] if x2 is None else x.shape[1] + x2.shape[1]
    scale, shift = checked_modulation(_OP, scale, shift, x, channels)
    training = needs_grad(x, x2, weight, bias, scale, shift)
    if not runs_native(_OP, x, needs_grad=training):
        return sliced_group_norm_ref(
            x, weight, bias, groups,
            x2=x2, c2_offset=offset, eps=eps, silu=silu, scale=scale, shift=shift,
        )  # fmt: skip
    inputs = (x, x2, weight, bias, groups, offset, eps, silu, scale, shift)
    y, y2, _, _ = _call(*inputs, needs_grad=training, accumulate_grad=accumulate_grad)
    return y if x2 is None else (y, y2)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, x2, weight, bias, ctx.groups, ctx.c2_offset, ctx.eps, ctx.silu, scale, shift = inputs
    _, _, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.save_for_backward(x, x2, weight, bias, mean, rstd, scale, shift)


def _backward(ctx: Any, *grads: Tensor) -> dict[int, Tensor | None]:
    x, x2, weight, bias, mean, rstd, scale, shift = ctx.saved_tensors
    targets = grad_targets(ctx, weight, bias)
    modulation: list[Tensor | None] = [None, None]
    if scale is not None:
        modulation = [
            scale.new_empty(scale.shape) if needed else None  # [N, c (+ c2)]
            for needed in ctx.needs_input_grad[8:10]
        ]
    grad_x, grad_x2 = torch.ops.ddsm_ext.sliced_group_norm_backward(
        grads[0],
        None if x2 is None else grads[1],
        x,
        x2,
        weight,
        bias,
        mean,
        rstd,
        ctx.groups,
        ctx.c2_offset,
        ctx.silu,
        *targets,
        scale,
        shift,
        *modulation,
    )
    found = {0: grad_x, 1: None if x2 is None else grad_x2, 2: targets[0], 3: targets[1]}
    return {**found, 8: modulation[0], 9: modulation[1]}


def _replay(ctx: Any, saved: list[Any], grads: tuple[Tensor, ...]) -> Replayed:
    x, x2, weight, bias, _mean, _rstd, scale, shift = saved
    y = sliced_group_norm_ref(
        x, weight, bias, ctx.groups,
        x2=x2, c2_offset=ctx.c2_offset, eps=ctx.eps, silu=ctx.silu, scale=scale, shift=shift,
    )  # fmt: skip
    inputs = {0: x, 1: x2, 2: weight, 3: bias, 8: scale, 9: shift}
    return y if isinstance(y, tuple) else (y,), inputs


_call = differentiable(_OP, _save, _backward, parameters={"weight": 2, "bias": 3}, replay=_replay)


@torch.library.register_fake("ddsm_ext::sliced_group_norm")
def _fake(
    x: Tensor,
    x2: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    c2_offset: int,
    eps: float,
    silu: bool,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    statistics = torch.promote_types(x.dtype, torch.float32)
    return (
        empty_nhwc(x, *x.shape),
        x.new_empty(0) if x2 is None else empty_nhwc(x2, *x2.shape),
        x.new_empty((x.shape[0], groups), dtype=statistics),  # [N, groups]
        x.new_empty((x.shape[0], groups), dtype=statistics),  # [N, groups]
    )


@torch.library.register_fake("ddsm_ext::sliced_group_norm_backward")
def _fake_backward(
    grad_y: Tensor, grad_y2: Tensor | None, x: Tensor, x2: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor]:
    grad_x2 = x.new_empty(0) if x2 is None else empty_nhwc(x2, *x2.shape)
    return empty_nhwc(x, *x.shape), grad_x2


@register_flop_formula(
    [torch.ops.ddsm_ext.sliced_group_norm, torch.ops.ddsm_ext.sliced_group_norm_backward]
)
def _flops(*shapes: Any, **more: Any) -> int:
    """0 FLOPs: like PyTorch's own counters, only products count."""
    return 0
