"""What blocks of other families add, beside float64.

Scale-shift norms, layer norms, resampling, filters, factors, rings, padding, class labels,
frequencies.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from cuda_kernels.gpu.device import ON_GPU
from cuda_kernels.gpu.rows import TOLERANCE, Row, compare, normal
from torch import Tensor

from ddsm_ext.graph.shapes import NormShape
from ddsm_ext.ops import _fused

# One source and two, groups over both, packs and single channels, sizes of ImageNet 64.
SHAPES = (
    NormShape(64, 32, 128, 32, 16, True),
    NormShape(21, 9, 64, 5, 6, True),
    *((
        NormShape(192, 0, 192, 32, 64, True),
        NormShape(576, 384, 960, 32, 16, True),
    ) if ON_GPU else ()),
)  # fmt: skip


WAYS = ((False, False), (True, False), (False, True))  # up, ring


def norm_inputs(
    shape: NormShape, n: int, dtype: torch.dtype
) -> tuple[list[Tensor], Tensor, Tensor, Tensor, Tensor]:
    """Sources, gamma, beta, and scale and shift as columns of one tensor."""
    sources = [normal(n, c, shape.size, shape.size, dtype=dtype) for c in (shape.c, shape.c2) if c]
    gamma, beta = normal(shape.c_max, dtype=dtype), normal(shape.c_max, dtype=dtype)
    scale, shift = normal(n, 2 * (shape.c + shape.c2), dtype=dtype).chunk(2, dim=1)
    return sources, gamma, beta, scale, shift


def exact_norm(
    shape: NormShape, z: Tensor, gamma: Tensor, beta: Tensor, scale: Tensor, shift: Tensor
) -> Tensor:
    """Of float64 tensors; z holds the channels of all sources."""
    c = z.shape[1]
    y = F.group_norm(z, shape.groups, gamma[:c], beta[:c])
    return F.silu(y * (1 + scale[:, :, None, None]) + shift[:, :, None, None])


def norm(shape: NormShape, dtype: torch.dtype) -> Row:
    """Forward and backward of the norm."""
    inputs = norm_inputs(shape, 3, dtype)
    sources, *rest = inputs
    leaves = [t.double().requires_grad_() for t in (torch.cat(sources, 1), *rest)]
    y = exact_norm(shape, *leaves)
    grad_y = normal(*y.shape, dtype=dtype)
    exact = [y.detach(), *torch.autograd.grad(y, leaves, grad_y.double())]
    two = len(sources) > 1
    x, x2 = sources[0], sources[1] if two else None
    grads_of_y = [*grad_y.split([source.shape[1] for source in sources], dim=1), None][:2]
    gamma, beta, scale, shift = rest
    numbers = (shape.groups, shape.c)

    def call() -> Sequence[Tensor]:
        ops = torch.ops.ddsm_ext
        y, y2, mean, rstd = ops.sliced_group_norm(
            x, x2, gamma, beta, *numbers, 1e-5, True, scale, shift
        )
        grads = [torch.zeros_like(gamma), torch.zeros_like(beta)]
        grads += [torch.full(scale.shape, torch.nan, dtype=dtype, device=x.device)
                  for _ in range(2)]  # fmt: skip
        grad_x, grad_x2 = ops.sliced_group_norm_backward(
            *grads_of_y, x, x2, gamma, beta, mean, rstd, *numbers, True, *grads[:2],
            scale, shift, *grads[2:],
        )  # fmt: skip
        joined = [torch.cat(pair, 1) if two else pair[0]
                  for pair in ((y, y2), (grad_x, grad_x2))]  # fmt: skip
        return [*joined, *grads]

    return compare(f"{shape} {dtype}, scale and shift", call, exact, 2 * TOLERANCE[dtype])


def halved_norm(shape: NormShape, dtype: torch.dtype) -> Row:
    """The norm of a step, averaged over 2x2 pixels, from its own moments."""
    sources, *rest = norm_inputs(shape, 5, dtype)
    z, *exact_rest = (t.double() for t in (torch.cat(sources, 1), *rest))
    exact = F.avg_pool2d(exact_norm(shape, z, *exact_rest), 2)
    gamma, beta, scale, shift = rest

    def call() -> Sequence[Tensor]:
        parts = _fused.group_norm_apply(
            sources, [None] * len(sources), gamma, beta, shape.groups, c2_offset=shape.c,
            eps=1e-5, silu=True, scale=scale, shift=shift, down=True,
        )  # fmt: skip
        return [torch.cat(parts, 1)]

    return compare(f"{shape} {dtype}, halved", call, [exact], 2 * TOLERANCE[dtype])


def layer_norm(c: int, affine: bool, dtype: torch.dtype) -> Row:
    """Both directions of a transformer's norm, with a scale and a shift, and that of a step."""
    n, tokens = 3, 70
    x, grad_y = normal(n, tokens, c, dtype=dtype), normal(n, tokens, c, dtype=dtype)
    params = [normal(c + 8, dtype=dtype) for _ in range(2)] if affine else []
    film = normal(n, 2 * c, dtype=dtype).chunk(2, dim=1)
    leaves = [t.double().requires_grad_() for t in (x, *params, *film)]
    gamma, beta = (p[:c] for p in leaves[1:3]) if affine else (None, None)
    scale, shift = (t[:, None] for t in leaves[-2:])
    y = F.layer_norm(leaves[0], (c,), gamma, beta) * (1 + scale) + shift
    exact = [y.detach(), y.detach(), *torch.autograd.grad(y, leaves, grad_y.double())]
    ops, given = torch.ops.ddsm_ext, [*params, None, None][:2]

    def call() -> Sequence[Tensor]:
        y, mean, rstd = ops.sliced_layer_norm(x, *given, 1e-5, *film)
        grads = [torch.zeros_like(p) for p in params]
        rows = [torch.full((n, c), torch.nan, dtype=dtype, device=x.device) for _ in film]
        grad_x = ops.sliced_layer_norm_backward(
            grad_y, x, *given, mean, rstd, *[*grads, None, None][:2], *film, *rows
        )
        of_step = _fused.layer_norm(x, *given, eps=1e-5, scale=film[0], shift=film[1])
        return [y, of_step, grad_x, *grads, *rows]

    what = f"layer norm of {c} channels {dtype}{', with parameters' * affine}"
    return compare(what, call, exact, 2 * TOLERANCE[dtype])


def resampled(c: int, up: bool, dtype: torch.dtype) -> Row:
    x = normal(7, c, 12, 20, dtype=dtype)
    wide = x.double()
    exact = F.interpolate(wide, scale_factor=2.0) if up else F.avg_pool2d(wide, 2)
    what = f"{c} channels {dtype}, {'enlarged' if up else 'halved'}"
    return compare(what, lambda: [_fused.resample(x, up)], [exact], TOLERANCE[dtype])


def filtered(c: int, up: bool, ring: bool, dtype: torch.dtype) -> Row:
    """A filter of 4 taps, a residual and a factor."""
    x = normal(7, c, 12, 20, dtype=dtype)
    row = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64, device=x.device) / 8
    kernel, padding = torch.outer(row, row).expand(c, 1, 4, 4), 0 if ring else 1
    if up:
        exact = F.conv_transpose2d(x.double(), 4 * kernel, stride=2, padding=padding, groups=c)
    else:
        exact = F.conv2d(x.double(), kernel, stride=2, padding=padding, groups=c)
    residual = normal(*exact.shape, dtype=dtype)
    exact = (exact + residual.double()) * 0.5**0.5
    how = {"taps": 4, "ring": ring, "residual": residual, "scale": 0.5**0.5}
    what = f"{c} channels {dtype}, filtered {'up' if up else 'down'}{' from a ring' * ring}"
    return compare(what, lambda: [_fused.resample(x, up, **how)], [exact], TOLERANCE[dtype])


def scaled(c: int, ring: bool, dtype: torch.dtype) -> Row:
    """A convolution and a residual times a factor, or with a ring around the image."""
    x, bias = normal(5, c, 16, 16, dtype=dtype), normal(c, dtype=dtype)
    weight = normal(c, c, 3, 3, dtype=dtype, scale=(9 * c) ** -0.5)
    exact = F.conv2d(x.double(), weight.double(), bias.double(), padding=1 + ring)
    residual = normal(*exact.shape, dtype=dtype)
    exact = (exact + residual.double()) * 0.5**0.5

    def call() -> Sequence[Tensor]:
        y, _ = _fused.conv2d_fused(
            [x], [weight], [bias], c, residual=residual, scale=0.5**0.5, ring=ring
        )
        return [y]

    what = f"{c} channels {dtype}, times a factor{', a ring' * ring}"
    return compare(what, call, [exact], 2 * TOLERANCE[dtype])


def halved_at_the_end(c: int, dtype: torch.dtype) -> Row:
    """A convolution of stride 2 with zeros behind the image alone."""
    x, bias = normal(5, c, 16, 16, dtype=dtype), normal(c, dtype=dtype)
    weight = normal(c, c, 3, 3, dtype=dtype, scale=(9 * c) ** -0.5)
    padded = F.pad(x.double(), (0, 1, 0, 1))
    exact = F.conv2d(padded, weight.double(), bias.double(), stride=2)

    def call() -> Sequence[Tensor]:
        return _fused.conv2d_fused([x], [weight], [bias], c, stride=2, pad_end=True)[:1]

    return compare(f"{c} channels {dtype}, halved", call, [exact], 2 * TOLERANCE[dtype])


def frequencies(dtype: torch.dtype) -> Row:
    """Sines and cosines of given frequencies and of those up to the last, sines first."""
    x, f = normal(9, 1, dtype=dtype), normal(32, dtype=torch.float32) * 16
    t = normal(9, dtype=torch.float32)
    half = torch.arange(32, device=x.device, dtype=torch.float64)
    exact = []
    for of in (2 * torch.pi * f.double(), 10000.0 ** (-half / 31)):
        angles = t.double()[:, None] * of
        exact.append(torch.cat([angles.sin(), angles.cos()], 1))

    def call() -> Sequence[Tensor]:
        how = {"halves": True, "swapped": True}
        return [
            _fused.sinusoidal_embedding(t, 64, None, x, frequencies=f, **how),
            _fused.sinusoidal_embedding(t, 64, None, x, freq_shift=1.0, **how),
        ]

    return compare(f"frequencies {dtype}", call, exact, TOLERANCE[dtype])


def labelled(rows: int, dtype: torch.dtype) -> Row:
    """A linear layer with the rows of classes added before SiLU, and sines in halves."""
    x, table = normal(rows, 96, dtype=dtype), normal(10, 200, dtype=dtype)
    weight = normal(200, 128, dtype=dtype, scale=96**-0.5)
    bias, t = normal(200, dtype=dtype), torch.arange(rows, device=x.device) * 7.5
    shift = table[torch.arange(rows, device=x.device) % 10][:, :120]  # [N, c_out]
    exact = F.linear(x.double(), weight.double()[:120, :96], bias.double()[:120])
    angles = t.double()[:, None] * 10000.0 ** (-torch.arange(32, device=x.device) / 32.0).double()
    halves = torch.cat([angles.cos(), angles.sin()], 1)

    def call() -> Sequence[Tensor]:
        (y,) = _fused.linear_fused(x, [weight], [bias], [120], shift=shift, silu=True)
        return [y, _fused.sinusoidal_embedding(t, 64, None, x, halves=True)]

    wanted = [F.silu(exact + shift.double()), halves]
    return compare(f"{rows} labels {dtype}", call, wanted, TOLERANCE[dtype])


def modulated_rows() -> list[Row]:
    """Every path, in all dtypes."""
    return [
        row
        for dtype in TOLERANCE
        for row in (
            *(norm(shape, dtype) for shape in SHAPES),
            *(halved_norm(shape, dtype) for shape in SHAPES),
            *(layer_norm(c, affine, dtype) for c in (64, 21, 1152) for affine in (False, True)),
            *(resampled(c, up, dtype) for c in (64, 21) for up in (False, True)),
            *(labelled(rows, dtype) for rows in (1, 9, 70)),
            *(filtered(c, up, ring, dtype) for c in (64, 21) for up, ring in WAYS),
            *(scaled(c, ring, dtype) for c in (64, 21) for ring in (False, True)),
            *(halved_at_the_end(c, dtype) for c in (64, 21)),
            frequencies(dtype),
        )
    ]
