"""Calls of every op for tests of derivatives, each beside the same made of torch's functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from ops.op_checks import normal, seeded
from torch import Tensor

from ddsm_ext.ops import (
    activation,
    packed_attention,
    resample,
    sliced_attention,
    sliced_conv2d,
    sliced_embedding,
    sliced_group_norm,
    sliced_layer_norm,
    sliced_linear,
)


class Case(NamedTuple):
    """An op with one output, torch's way to it, and the shapes of its differentiable inputs."""

    ours: Callable[..., Tensor]
    torchs: Callable[..., Tensor]
    shapes: tuple[tuple[int, ...], ...]
    image_inputs: int = 0  # so many are in x's dtype, the others parameters; 0: all

    def inputs(self, seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
        generator = seeded(seed)
        return tuple(normal(generator, *shape, dtype=dtype) for shape in self.shapes)


def _conv(x: Tensor, x2: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return sliced_conv2d(x, w, b, 5, padding=1, stride=2, x2=x2, c_in2_offset=5)


def _torchs_conv(x: Tensor, x2: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.conv2d(x, w[:5, :4], b[:5], 2, 1) + F.conv2d(x2, w[:5, 5:], None, 2, 1)


def _torchs_upsampled(x: Tensor, w: Tensor) -> Tensor:
    return F.conv2d(F.interpolate(x, scale_factor=2), w[:5, :3], padding=1)


def _norm(x: Tensor, x2: Tensor, w: Tensor, b: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    ours = sliced_group_norm(
        x, w, b, 2, x2=x2, c2_offset=5, silu=True, scale=scale, shift=shift, eps=0.01
    )
    return torch.cat(ours, dim=1)


def _torchs_norm(
    x: Tensor, x2: Tensor, w: Tensor, b: Tensor, scale: Tensor, shift: Tensor
) -> Tensor:
    used = [0, 1, 2, 3, 5, 6]
    y = F.group_norm(torch.cat([x, x2], dim=1).contiguous(), 2, w[used], b[used], 0.01)
    return F.silu(y * (1 + scale[:, :, None, None]) + shift[:, :, None, None])


def _layer_norm(x: Tensor, w: Tensor, b: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return sliced_layer_norm(x, w, b, scale=scale, shift=shift, eps=0.01)


def _torchs_layer_norm(x: Tensor, w: Tensor, b: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    y = F.layer_norm(x, (5,), w[:5], b[:5], 0.01)
    return y * (1 + scale[:, None]) + shift[:, None]


def _torchs_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(-2, -1) * 0.3).softmax(-1) @ v


def _torchs_glu(z: Tensor, gate: Tensor, residual: Tensor) -> Tensor:
    value, half = z.chunk(2, dim=-1)
    return residual + gate[:, None] * value * F.gelu(half)


def _torchs_blocks(x: Tensor, w: Tensor, b: Tensor, gate: Tensor, residual: Tensor) -> Tensor:
    w, b = w[:, :3, :4].reshape(6, 4), b[:, :3].reshape(6)
    return _torchs_glu(F.linear(x, w, b), gate, residual)


def _torchs_packed(q: Tensor, kv: Tensor) -> Tensor:
    parts = (q, kv[:, :, 0], kv[:, :, 1])
    heads = (part.unflatten(2, (2, 3)).transpose(1, 2) for part in parts)
    return _torchs_attention(*heads).transpose(1, 2).flatten(2)


def _filter(x: Tensor) -> Tensor:
    row = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=x.dtype) / 8
    return torch.outer(row, row).expand(2, 1, 4, 4)


LABELS = torch.tensor([1, 2, 1])
CASES = {
    "conv2d": Case(_conv, _torchs_conv, ((2, 4, 5, 5), (2, 2, 5, 5), (8, 7, 3, 3), (8,)), 2),
    "conv2d_upsampled": Case(
        lambda x, w: sliced_conv2d(x, w, None, 5, padding=1, upsample=True),
        _torchs_upsampled,
        ((1, 3, 3, 3), (6, 4, 3, 3)),
        1,
    ),
    "conv2d_padded_at_the_end": Case(
        lambda x, w: sliced_conv2d(x, w, None, 5, stride=2, pad_end=True),
        lambda x, w: F.conv2d(F.pad(x, (0, 1, 0, 1)), w[:5, :3], stride=2),
        ((1, 3, 4, 5), (6, 4, 3, 3)),
        1,
    ),
    "linear": Case(
        lambda x, w, b: sliced_linear(x, w, b, 3),
        lambda x, w, b: F.linear(x, w[:3, :4], b[:3]),
        ((2, 3, 4), (5, 6), (5,)),
        1,
    ),
    "linear_of_blocks": Case(
        lambda x, w, b, g, r: sliced_linear(x, w, b, 3, activation="geglu", gate=g, residual=r),
        _torchs_blocks,
        ((2, 3, 4), (2, 5, 6), (2, 5), (2, 3), (2, 3, 3)),
    ),
    "gelu": Case(lambda z: activation(z, "gelu"), F.gelu, ((2, 3, 4),)),
    "gelu_tanh": Case(
        lambda z: activation(z, "gelu_tanh"),
        lambda z: F.gelu(z, approximate="tanh"),
        ((2, 3, 4),),
    ),
    "geglu": Case(
        lambda z, g, r: activation(z, "geglu", gate=g, residual=r),
        _torchs_glu,
        ((2, 3, 6), (2, 3), (2, 3, 3)),
    ),
    "group_norm": Case(
        _norm, _torchs_norm, ((2, 4, 3, 3), (2, 2, 3, 3), (8,), (8,), (2, 6), (2, 6))
    ),
    "layer_norm": Case(_layer_norm, _torchs_layer_norm, ((2, 3, 5), (8,), (8,), (2, 5), (2, 5))),
    "attention": Case(
        lambda q, k, v: sliced_attention(q, k, v, scale=0.3),
        _torchs_attention,
        ((1, 2, 5, 4), (1, 2, 6, 4), (1, 2, 6, 4)),
    ),
    "attention_of_itself": Case(
        lambda x: sliced_attention(x, x, x, scale=0.3),
        lambda x: _torchs_attention(x, x, x),
        ((1, 2, 5, 4),),
    ),
    "packed_attention": Case(
        lambda x: packed_attention(x, 2, scale=0.3),
        lambda x: _torchs_packed(x[:, :, 0], x[:, :, 1:]),
        ((1, 5, 3, 6),),
    ),
    "packed_attention_to_others": Case(
        lambda q, kv: packed_attention(q, 2, kv, scale=0.3),
        _torchs_packed,
        ((1, 5, 6), (1, 4, 2, 6)),
    ),
    "embedding": Case(lambda w: sliced_embedding(w, LABELS, 3), lambda w: w[LABELS, :3], ((4, 5),)),
    "enlarge": Case(
        lambda x: resample(x, True), lambda x: F.interpolate(x, scale_factor=2), ((1, 2, 2, 4),)
    ),
    "halve": Case(lambda x: resample(x, False), lambda x: F.avg_pool2d(x, 2), ((1, 2, 2, 4),)),
    "filter_up": Case(
        lambda x: resample(x, True, taps=4),
        lambda x: F.conv_transpose2d(x, 4 * _filter(x), stride=2, padding=1, groups=2),
        ((1, 2, 2, 4),),
    ),
    "filter_down": Case(
        lambda x, r: resample(x, False, taps=4, ring=True, residual=r, scale=0.6),
        lambda x, r: (F.conv2d(x, _filter(x), stride=2, groups=2) + r) * 0.6,
        ((1, 2, 4, 6), (1, 2, 1, 2)),
    ),
}
