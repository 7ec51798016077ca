"""Resampling by 2 with a filter of 2 taps (nearest neighbours, means of 2x2 pixels) or of 4."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ddsm_ext.ops._autograd import below_autograd, differentiable, needs_grad, wants_grad
from ddsm_ext.ops._call import (
    channels_last,
    check_flag,
    check_int,
    check_tensor,
    empty_nhwc,
    runs_native,
    shape_text,
)
from ddsm_ext.settings import Refusal, TypeRefusal, is_number

_OP = "resample"


def resample(
    x: Tensor,
    up: bool,
    *,
    taps: int = 2,
    ring: bool = False,
    residual: Tensor | None = None,
    scale: float = 1.0,
) -> Tensor:
    """y = (filter of x, at twice (up) or half (down) its pixels, + residual) * scale.

    2 taps: each pixel repeated 2x2 (up), or the mean of each 2x2 pixels (down). 4 taps, in each
    direction: y[i] = (x[2i - 1] + 3 x[2i] + 3 x[2i + 1] + x[2i + 2]) / 8 (down), or 4 times its
    transpose (up), where x is 0 beyond the image.

    Args:
        x: [N, C, H, W], any memory format; fp32, bf16, or fp64 (CPU) or fp16 (CUDA).
        up: enlarge; False: halve, of an even H and W.
        taps: 2 or 4.
        ring: x has a pixel more on each side of the image that is halved, which 4 taps read.
        residual: of y's shape, dtype and device; None: none.
        scale: a number.

    Returns:
        y [N, C, 2H, 2W] or [N, C, H/2, W/2] (with a ring [N, C, H/2 - 1, W/2 - 1]), dtype of x,
        channels_last.

    Raises:
        TypeError, ValueError: an argument that does not fit, with its value and what is needed.

    Source: Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models",
        the architectures; Song et al. 2021, "Score-Based Generative Modeling through SDEs", the
        filter.
    """
    _check_arguments(x, up, taps, ring, residual, scale)
    training = needs_grad(x, residual)
    if not runs_native(_OP, x, needs_grad=training):
        return resample_ref(x, up, taps=taps, ring=ring, residual=residual, scale=scale)
    numbers = (up, float(scale), False, taps, ring)
    return _call(x, *numbers, residual, needs_grad=training)


def resample_ref(
    x: Tensor,
    up: bool,
    *,
    taps: int = 2,
    ring: bool = False,
    residual: Tensor | None = None,
    scale: float = 1.0,
) -> Tensor:
    """Plain-torch twin of `resample` (arguments and returns there, unchecked here)."""
    n, c, h, w = x.shape
    if x.numel() == 0 or (ring and min(h, w) == 2):  # torch convolves no such image
        sizes = [_output_size(size, up, ring) for size in (h, w)]
        y = (x.sum() * 0).expand(n, c, *sizes)
    elif taps == 4:
        one = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=x.dtype, device=x.device) / 8
        kernel = torch.outer(one, one).expand(c, 1, 4, 4)
        padding = 0 if ring else 1
        if up:
            y = F.conv_transpose2d(x, 4 * kernel, stride=2, padding=padding, groups=c)
        else:
            y = F.conv2d(x, kernel, stride=2, padding=padding, groups=c)
    elif up:
        y = x[:, :, :, None, :, None].expand(n, c, h, 2, w, 2).reshape(n, c, 2 * h, 2 * w)
    else:
        y = x.reshape(n, c, h // 2, 2, w // 2, 2).mean((3, 5))  # [N, C, H/2, W/2]
    if residual is not None:
        y = y + residual
    return channels_last(y if scale == 1 else y * scale)


def _check_arguments(x: Any, up: Any, taps: Any, ring: Any, residual: Any, scale: Any) -> None:
    check_tensor(_OP, "x", x, 4)
    check_flag(_OP, "up", up)
    check_flag(_OP, "ring", ring)
    check_int(_OP, "taps", taps)
    if taps not in (2, 4):
        raise Refusal(f"{_OP}: taps is {taps}; need 2 or 4")
    if ring and (up or taps != 4):
        raise Refusal(f"{_OP}: ring is True, up {up}, taps {taps}; need up=False and taps=4")
    if not is_number(scale, -math.inf):
        raise TypeRefusal(f"{_OP}: scale is {scale!r}; need a finite number")
    height, width = x.shape[2], x.shape[3]
    if not up and (height % 2 or width % 2 or (ring and min(height, width) < 2)):
        need = "an even height and width" + (" from 2 on" if ring else "")
        raise Refusal(f"{_OP}: x has {height}x{width} pixels and up is False; need {need}")
    if residual is None:
        return
    check_tensor(_OP, "residual", residual, 4)
    if residual.dtype != x.dtype or residual.device != x.device:
        raise TypeRefusal(
            f"{_OP}: residual is {residual.dtype} on {residual.device}, x {x.dtype} on "
            f"{x.device}; need the same dtype and device"
        )
    wanted = (*x.shape[:2], *(_output_size(size, up, ring) for size in (height, width)))
    if residual.shape != wanted:
        raise Refusal(f"{_OP}: residual has shape {shape_text(residual)}; need {list(wanted)}")


def _output_size(size: int, up: bool, ring: bool) -> int:
    """One side of the result; the transpose of a filter with a ring makes one, too."""
    if up:
        return 2 * size + (2 if ring else 0)
    return size // 2 - (1 if ring else 0)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.up, ctx.gain, _overlaps, ctx.taps, ctx.ring = inputs[1:6]


def _backward(ctx: Any, grad_y: Tensor) -> dict[int, Tensor | None]:
    grads: dict[int, Tensor | None] = {}
    if ctx.needs_input_grad[0]:
        gain = ctx.gain * (4.0 if ctx.up else 0.25)
        raw = torch.ops.ddsm_ext.resample.default
        numbers = (not ctx.up, gain, False, ctx.taps, ctx.ring, None)
        if needs_grad(grad_y):  # for a gradient of this gradient
            grads[0] = raw(grad_y, *numbers)
        else:
            with below_autograd():
                grads[0] = raw(grad_y, *numbers)
    if wants_grad(ctx, 6):
        grads[6] = grad_y if ctx.gain == 1 else grad_y * ctx.gain
    return grads


_call = differentiable(_OP, _save, _backward)


@torch.library.register_fake("ddsm_ext::resample")
def _fake(
    x: Tensor,
    up: bool,
    gain: float = 1.0,
    overlaps: bool = False,
    taps: int = 2,
    ring: bool = False,
    residual: Tensor | None = None,
) -> Tensor:
    n, c, h, w = x.shape
    return empty_nhwc(x, n, c, _output_size(h, up, ring), _output_size(w, up, ring))


@register_flop_formula(torch.ops.ddsm_ext.resample)
def _flops(*shapes: Any, **more: Any) -> int:
    """0 FLOPs: like PyTorch's own counters, only products count."""
    return 0
