"""Resampling by 2: nearest-neighbour enlargement, or the mean of 2x2 pixels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ddsm_ext.ops._autograd import below_autograd, differentiable, needs_grad
from ddsm_ext.ops._call import (
    channels_last,
    check_flag,
    check_tensor,
    empty_nhwc,
    runs_native,
)
from ddsm_ext.settings import Refusal

_OP = "resample"


def resample(x: Tensor, up: bool) -> Tensor:
    """y = x with each pixel repeated 2x2 (up), or the mean of each 2x2 pixels of x (down).

    Args:
        x: [N, C, H, W], any memory format; fp32, bf16, or fp64 (CPU) or fp16 (CUDA).
        up: enlarge by nearest neighbours; False: halve by means, of an even H and W.

    Returns:
        y [N, C, 2H, 2W] or [N, C, H/2, W/2], dtype of x, channels_last.

    Raises:
        TypeError, ValueError: an argument that does not fit, with its value and what is needed.
    """
    check_tensor(_OP, "x", x, 4)
    check_flag(_OP, "up", up)
    height, width = x.shape[2], x.shape[3]
    if not up and (height % 2 or width % 2):
        raise Refusal(
            f"{_OP}: x has {height}x{width} pixels and up is False; need an even height and width"
        )
    training = needs_grad(x)
    if not runs_native(_OP, x, needs_grad=training):
        return resample_ref(x, up)
    return _call(x, up, 1.0, needs_grad=training)


def resample_ref(x: Tensor, up: bool) -> Tensor:
    """Plain-torch twin of `resample` (arguments and returns there, unchecked here)."""
    n, c, h, w = x.shape
    if up:
        y = x[:, :, :, None, :, None].expand(n, c, h, 2, w, 2).reshape(n, c, 2 * h, 2 * w)
    else:
        y = x.reshape(n, c, h // 2, 2, w // 2, 2).mean((3, 5))  # [N, C, H/2, W/2]
    return channels_last(y)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.up, ctx.gain = inputs[1:3]


def _backward(ctx: Any, grad_y: Tensor) -> dict[int, Tensor | None]:
    gain = ctx.gain * (4.0 if ctx.up else 0.25)
    raw = torch.ops.ddsm_ext.resample.default
    if needs_grad(grad_y):  # for a gradient of this gradient
        return {0: raw(grad_y, not ctx.up, gain)}
    with below_autograd():
        return {0: raw(grad_y, not ctx.up, gain)}


_call = differentiable(_OP, _save, _backward)


@torch.library.register_fake("ddsm_ext::resample")
def _fake(x: Tensor, up: bool, gain: float = 1.0, overlaps: bool = False) -> Tensor:
    n, c, h, w = x.shape
    return empty_nhwc(x, n, c, *((2 * h, 2 * w) if up else (h // 2, w // 2)))


@register_flop_formula(torch.ops.ddsm_ext.resample)
def _flops(*shapes: Any, **more: Any) -> int:
    """0 FLOPs: like PyTorch's own counters, only products count."""
    return 0
