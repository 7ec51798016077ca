"""Group norm (with optional SiLU) of a channel prefix, over one or two sources."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.flop_counter import register_flop_formula

from ddsm_ext.ops._arguments import (
    call_kernel,
    check_accumulate,
    check_bias,
    check_flag,
    check_int,
    check_second_source,
    check_tensor,
    check_weight_match,
)
from ddsm_ext.ops._dispatch import runs_native
from ddsm_ext.ops._gradients import grad_target

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
    check_tensor(_OP, "bias", bias, 1)
    check_bias(_OP, bias, weight)
    check_int(_OP, "groups", groups)
    check_flag(_OP, "silu", silu)
    check_accumulate(_OP, accumulate_grad, weight, bias)
    if isinstance(eps, bool) or not isinstance(eps, (int, float)):
        raise TypeError(f"{_OP}: eps is {eps!r}, need a float")
    if not 0 <= eps < float("inf"):
        raise ValueError(f"{_OP}: eps is {eps!r}, need 0 <= eps < inf")
    c = x.shape[1]
    if not 1 <= c <= weight.shape[0]:
        raise ValueError(
            f"{_OP}: x has {c} channels, weight has {weight.shape[0]}; "
            f"need 1 <= channels <= {weight.shape[0]}"
        )
    c2_offset = check_second_source(_OP, "c2_offset", x, x2, c2_offset, weight.shape[0])
    channels = c if x2 is None else c + x2.shape[1]
    if groups < 1 or channels % groups != 0:
        raise ValueError(
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
    y = torch.group_norm(z.to(dtype), groups, gamma.to(dtype), beta.to(dtype), eps)
    if silu:
        y = torch.nn.functional.silu(y)
    y = y.to(x.dtype)
    if x2 is None:
        return y.contiguous(memory_format=torch.channels_last)
    return (
        y[:, :c].contiguous(memory_format=torch.channels_last),  # [N, c, H, W]
        y[:, c:].contiguous(memory_format=torch.channels_last),  # [N, c2, H, W]
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
    accumulate_grad: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """y = act((z - mean_g(z)) / sqrt(var_g(z) + eps) * gamma + beta), z = [x; x2] on channels.

    Args:
        x: [N, c, H, W], any memory format; fp32, bf16 or fp64.
        weight: gamma, [c_max]; weight[:c] is used. May be fp32 beside bf16 activations.
        bias: beta, [c_max], dtype of weight.
        groups: number of groups over all c (+ c2) channels, which it must divide. A group may
            hold channels of both sources.
        x2: second source [N, c2, H, W], dtype of x; None: one source.
        c2_offset: where x2's part of weight and bias begins, >= c; None: c.
        eps: added to the (biased) variance.
        silu: act is SiLU, u * sigmoid(u); False: the identity.
        accumulate_grad: backward adds dL/dgamma and dL/dbeta to the prefixes of `weight.grad` and
            `bias.grad` (made when None; both must be leaves) and autograd sees none.

    Returns:
        y [N, c, H, W], or (y, y2) with y2 [N, c2, H, W]; dtype of x, channels_last.

    Raises:
        TypeError, ValueError: an argument that does not fit, with its value and what is needed.

    Source: Wu & He 2018, "Group Normalization", eq. 1-4.
    """
    offset = _check(x, weight, bias, groups, x2, c2_offset, eps, silu, accumulate_grad)
    needs_grad = torch.is_grad_enabled() and (
        x.requires_grad
        or weight.requires_grad
        or bias.requires_grad
        or (x2 is not None and x2.requires_grad)
    )
    if not runs_native(_OP, x, needs_grad=needs_grad):
        return sliced_group_norm_ref(
            x, weight, bias, groups, x2=x2, c2_offset=offset, eps=eps, silu=silu
        )
    arguments = (x, x2, weight, bias, groups, offset, eps, silu)
    if torch.compiler.is_compiling():
        y, y2, _, _ = torch.ops.ddsm_ext.sliced_group_norm(*arguments)
    elif needs_grad:
        y, y2, _, _ = _GroupNorm.apply(*arguments, accumulate_grad)
    else:
        y, y2, _, _ = call_kernel(torch.ops.ddsm_ext.sliced_group_norm.default, *arguments)
    return y if x2 is None else (y, y2)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, x2, weight, bias, groups, c2_offset, _, silu, *accumulate = inputs
    _, _, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.save_for_backward(x, x2, weight, bias, mean, rstd)
    ctx.groups, ctx.c2_offset, ctx.silu = groups, c2_offset, silu
    ctx.accumulate = bool(accumulate and accumulate[0])


def _backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    x, x2, weight, bias, mean, rstd = ctx.saved_tensors
    needs = ctx.needs_input_grad
    targets = [
        grad_target(param, ctx.accumulate) if needed else None
        for param, needed in ((weight, needs[2]), (bias, needs[3]))
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
    )
    grad_weight, grad_bias = (None, None) if ctx.accumulate else targets
    rest = (None,) * (len(needs) - 4)
    return grad_x, None if x2 is None else grad_x2, grad_weight, grad_bias, *rest


class _GroupNorm(torch.autograd.Function):
    """Eager autograd around the raw op: a fifth of register_autograd's cost a call."""

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        return call_kernel(torch.ops.ddsm_ext.sliced_group_norm.default, *inputs[:8])

    setup_context = staticmethod(_setup_context)
    backward = staticmethod(once_differentiable(_backward))


torch.library.register_autograd(
    "ddsm_ext::sliced_group_norm", _backward, setup_context=_setup_context
)


def _empty_nhwc(like: Tensor) -> Tensor:
    return torch.empty(
        like.shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last
    )


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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    statistics = torch.promote_types(x.dtype, torch.float32)
    return (
        _empty_nhwc(x),
        x.new_empty(0) if x2 is None else _empty_nhwc(x2),
        x.new_empty((x.shape[0], groups), dtype=statistics),  # [N, groups]
        x.new_empty((x.shape[0], groups), dtype=statistics),  # [N, groups]
    )


@torch.library.register_fake("ddsm_ext::sliced_group_norm_backward")
def _fake_backward(
    grad_y: Tensor, grad_y2: Tensor | None, x: Tensor, x2: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor]:
    return _empty_nhwc(x), x.new_empty(0) if x2 is None else _empty_nhwc(x2)


@register_flop_formula(
    [torch.ops.ddsm_ext.sliced_group_norm, torch.ops.ddsm_ext.sliced_group_norm_backward]
)
def _flops(*shapes: Any, **more: Any) -> int:
    """0 FLOPs: like PyTorch's own counters, only products count."""
    return 0
