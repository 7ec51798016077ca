"""The CUDA ops that a captured step of a network is made of: no autograd, no checks but C++'s."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ddsm_ext import _library
from ddsm_ext.ops._call import conv_tf32, is_tf32, matmul_tf32
from ddsm_ext.ops.activation import activation_number
from ddsm_ext.ops.conv2d import flops

_OPS = (
    "sliced_conv2d_fused",
    "sliced_group_norm_apply",
    "sliced_layer_norm_apply",
    "sliced_linear_fused",
    "sinusoidal_embedding",
    "resample",
)


def why_missing(device_type: str) -> str | None:
    """Return why the compiled libraries lack these ops for "cuda"; None: they have them."""
    if all(_library.has_kernel(op, device_type) for op in _OPS):
        return None
    return _library.cuda_missing_reason or f"the CUDA library has no kernels for {device_type}"


def precision(dtype: torch.dtype) -> tuple[bool, bool]:
    """Return what a captured step keeps of torch's switches: tf32 of convolutions, of products."""
    wide = dtype == torch.float32
    return wide and is_tf32("conv"), wide and is_tf32("matmul")


@dataclass(frozen=True)
class Shortcut:
    """A 1x1 convolution beside another one.

    Attributes:
        sources: x [N, c_in, H, W] and perhaps x2 [N, c_in2, H, W], of the output's H and W.
        weight: [c_out_max, c_in_max, 1, 1] or [c_out_max, c_in_max]; bias: [c_out_max].
        c_in2_offset: first weight input channel of x2.
    """

    sources: Sequence[Tensor]
    weight: Tensor
    bias: Tensor
    c_in2_offset: int = 0

    def tensors(self) -> list[Tensor]:
        """As the op takes them."""
        return [_as_window(self.weight), self.bias, *self.sources]


def make_tickets(device: torch.device) -> Tensor:
    """Return what tells the last part of a split sum that it is the last; see `conv2d_fused`."""
    return torch.zeros(4096, dtype=torch.int32, device=device)


def sinusoidal_embedding(
    t: Tensor,
    dim: int,
    table: Tensor | None,
    like: Tensor,
    *,
    halves: bool = False,
    swapped: bool = False,
    freq_shift: float = 0.0,
    frequencies: Tensor | None = None,
) -> Tensor:
    """Embed timesteps as `embed_time` does, in one launch that overlaps no other.

    Args:
        t: [N] timesteps, float32, float64 or int64.
        dim: size of the embedding, even.
        table: [rows, dim] frozen embeddings of t = 0 ... rows - 1; None computes all.
        like: of the dtype and device of the result.
        halves: all cosines, then all sines; False: sine and cosine in turn.
        swapped: of halves, the sines first.
        freq_shift: of halves, frequencies are 10000 ** (-i / (dim / 2 - freq_shift)).
        frequencies: [dim / 2] float32, of halves, times 2 pi; None: the above.

    Returns:
        [N, dim].
    """
    return torch.ops.ddsm_ext.sinusoidal_embedding(
        t, dim, halves, table, like, swapped, freq_shift, frequencies
    )


def resample(
    x: Tensor,
    up: bool,
    *,
    taps: int = 2,
    ring: bool = False,
    residual: Tensor | None = None,
    scale: float = 1.0,
    overlaps: bool = False,
) -> Tensor:
    """Enlarge or halve by 2, add a residual, multiply: as `ops.resample`.

    Args:
        x: [N, C, H, W]; H and W even where it is halved.
        up: enlarge.
        taps: of the filter, 2 or 4.
        ring: x has a pixel more on each side of what is halved.
        residual: of the result's shape.
        scale: factor on all.
        overlaps: the kernel may begin while the one before it ends.

    Returns:
        [N, C, 2 H, 2 W] or [N, C, H / 2, W / 2], with a ring less 1, channels_last.
    """
    return torch.ops.ddsm_ext.resample(x, up, scale, overlaps, taps, ring, residual)


def linear_fused(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    c_out: Sequence[int],
    *,
    shift: Tensor | None = None,
    silu: bool = False,
    overlaps: bool = False,
) -> tuple[Tensor, ...]:
    """Map one input by several weights in one launch for 64 of them.

    Args:
        x: [N, c].
        weights: [c_out_max, c or more] each, of x's dtype or float32.
        biases: [c_out_max] each, or none of any weight.
        c_out: active outputs of each weight.
        shift: [N, c_out] of x's dtype added before SiLU, any row stride; beside one weight only.
        silu: apply SiLU to the results.
        overlaps: the kernel may begin while the one before it ends, which writes no weights.

    Returns:
        [N, c_out] each, of x's dtype: columns of one tensor, rows at multiples of 16 bytes.
    """
    joined = torch.ops.ddsm_ext.sliced_linear_fused(
        x, weights, biases, c_out, shift, silu, overlaps, matmul_tf32(x)
    )  # [N, c_out of all, each rounded up to a multiple of 8]
    begins = accumulate((-(-c // 8) * 8 for c in c_out), initial=0)
    return tuple(joined[:, begin : begin + c] for begin, c in zip(begins, c_out, strict=False))


def _as_window(weight: Tensor) -> Tensor:
    """A weight [c_out_max, c_in_max] as that of a 1x1 convolution, another as it is."""
    return weight[:, :, None, None] if weight.dim() == 2 else weight


def conv2d_fused(
    sources: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    c_out: int,
    *,
    c_in2_offset: int = 0,
    stride: int = 1,
    upsample: bool = False,
    shift: Tensor | None = None,
    residual: Tensor | None = None,
    shortcut: Shortcut | None = None,
    scale: float = 1.0,
    ring: bool = False,
    pad_end: bool = False,
    moments: bool = False,
    tickets: Tensor | None = None,
    overlaps: bool = False,
    activation: str | None = None,
    gate: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """y = (residual + gate * act(convolution + bias + shift + shortcut)) * scale, and its moments.

    Args:
        sources: x [N, c_in, H, W] and perhaps x2 [N, c_in2, H, W].
        weights: one to three of one shape and layout [c_out_max, c_in_max, k, k] whose outputs
            lie side by side; [c_out_max, c_in_max] is that of a 1x1 convolution.
        biases: [c_out_max] for each weight; None for all: they have none.
        c_out: active output channels of each weight.
        c_in2_offset: first weight input channel of x2.
        stride: 1 or 2.
        upsample: enlarge the sources 2x (nearest neighbour) first.
        shift: [N, channels of y] added to every pixel, not beside "geglu".
        residual: [N, channels of y, H_out, W_out] added to the result.
        shortcut: a 1x1 convolution of further sources, added to the sum; beside one weight only.
        scale: factor on the result with all that is added.
        ring: convolve one pixel around the image, too.
        pad_end: have one row and column of zeros less before the sources.
        moments: whether `group_norm_apply` will read the result.
        tickets: `make_tickets`'s, which no other launch uses then; None: cleared memory.
        overlaps: the kernel may begin while the one before it ends, which writes no weights.
        activation: as of `ops.activation`; "geglu" takes two weights, value and gate half.
        gate: [N, channels of y] of x's dtype, any row stride.

    Returns:
        y [N, c_out of all weights, H_out, W_out] (after "geglu" of one), channels_last, and its
        moments: bytes of a layout that belongs to the kernels, or None.
    """
    weights = [_as_window(weight) for weight in weights]
    x, x2 = sources[0], sources[1] if len(sources) > 1 else None
    y, found = torch.ops.ddsm_ext.sliced_conv2d_fused(
        *(x, x2, weights, [bias for bias in biases if bias is not None]),
        c_out,
        c_in2_offset,
        stride,
        weights[0].shape[2] // 2 + ring - pad_end,
        upsample,
        shift,
        residual,
        shortcut.tensors() if shortcut else [],
        shortcut.c_in2_offset if shortcut else 0,
        moments,
        tickets,
        overlaps,
        conv_tf32(x),
        scale,
        pad_end,
        activation_number("conv2d_fused", activation),
        gate,
    )
    return y, found if moments else None


def group_norm_apply(
    sources: Sequence[Tensor],
    moments: Sequence[Tensor | None],
    weight: Tensor,
    bias: Tensor,
    groups: int,
    *,
    c2_offset: int = 0,
    eps: float,
    silu: bool,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    down: bool = False,
    overlaps: bool = False,
) -> tuple[Tensor, ...]:
    """Normalise one source or the unjoined concat of two, as `sliced_group_norm` does.

    Args:
        sources: x [N, c, H, W] and perhaps x2 [N, c2, H, W].
        moments: what `conv2d_fused` left of each source; None: found in a pass of its own.
        weight, bias: gamma and beta, [c_max].
        groups: number of groups over all channels.
        c2_offset: where x2's part of weight and bias begins.
        eps: added to the variance.
        silu: apply SiLU to the result.
        scale, shift: [N, all channels] of x's dtype, both or neither, any row stride: what SiLU is
            applied to is the norm * (1 + scale) + shift.
        down: average 2x2 pixels of the result, H and W even.
        overlaps: the kernel may begin while the one before it ends.

    Returns:
        One tensor for each source, of its shape or halved, channels_last.
    """
    two = len(sources) > 1
    y, y2 = torch.ops.ddsm_ext.sliced_group_norm_apply(
        sources[0],
        sources[1] if two else None,
        weight,
        bias,
        groups,
        c2_offset,
        eps,
        silu,
        moments[0],
        moments[1] if two else None,
        scale,
        shift,
        down,
        overlaps,
    )
    return (y, y2) if two else (y,)


def layer_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    eps: float,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    overlaps: bool = False,
) -> Tensor:
    """Normalise the channels of each row, as `sliced_layer_norm` does.

    Args:
        x: [N, ..., c].
        weight, bias: gamma and beta, [c_max], both or neither.
        eps: added to the variance.
        scale, shift: [N, c] of x's dtype, both or neither, any row stride: the result is the
            norm * (1 + scale) + shift.
        overlaps: the kernel may begin while the one before it ends.

    Returns:
        [N, ..., c], contiguous.
    """
    return torch.ops.ddsm_ext.sliced_layer_norm_apply(x, weight, bias, eps, scale, shift, overlaps)


@register_flop_formula(torch.ops.ddsm_ext.sliced_conv2d_fused)
def _flops(x, x2, weights, *args, out_shape, **more) -> int:  # type: ignore[no-untyped-def]
    """FLOPs (2 x MACs) of all weights and of the shortcut."""
    y, _moments = out_shape  # [N, c_out of all weights, H_out, W_out]
    total = flops(x, x2, weights[0], out_shape=y)
    if shortcut := args[8]:
        weight, _, source, *second = shortcut
        total += flops(source, *(second or [None]), weight, out_shape=y)
    return total


@register_flop_formula(torch.ops.ddsm_ext.sliced_linear_fused)
def _flops_linear(x, weights, biases, c_out, *more, **named) -> int:  # type: ignore[no-untyped-def]
    """FLOPs (2 x MACs) of all weights."""
    return 2 * math.prod(x) * sum(c_out)


@register_flop_formula(torch.ops.ddsm_ext.sinusoidal_embedding)
@register_flop_formula(torch.ops.ddsm_ext.sliced_group_norm_apply)
@register_flop_formula(torch.ops.ddsm_ext.sliced_layer_norm_apply)
def _flops_norm(*shapes, **more) -> int:  # type: ignore[no-untyped-def]
    """0 FLOPs: like PyTorch's own counters, only products count."""
    return 0
