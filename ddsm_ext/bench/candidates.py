"""What is compared for one op and shape: PyTorch slicing, dense pre-sliced weights, and ours.

`slicing` does what the reference code does: contiguous NCHW activations, `torch.cat` of two
sources, `weight[:c_out, :c_in]` in every call. `dense_cl` has the slice copied beforehand and
activations in channels_last, as `ours`, which calls this package's op.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddsm_ext.graph.shapes import (
    AttentionShape,
    ConvShape,
    LayerNormShape,
    LinearShape,
    NormShape,
    Shape,
)
from ddsm_ext.models.dense import resampled
from ddsm_ext.ops import (
    sliced_attention,
    sliced_conv2d,
    sliced_group_norm,
    sliced_layer_norm,
    sliced_linear,
)
from ddsm_ext.settings import Refusal

OPS = ("conv2d", "linear", "group_norm", "layer_norm", "attention")
# The kernels of a whole step: an op's are named after it.
KERNELS = (*(f"sliced_{op}" for op in OPS), "sliced_activation", "resample")
CANDIDATES = ("slicing", "dense_cl", "ours")
# A group norm over two sources returns its two parts.
Output = Tensor | tuple[Tensor, Tensor]
Call = Callable[[], Output]


def candidates(
    shape: Shape, batch: int, dtype: torch.dtype, *, device: str = "cpu"
) -> dict[str, Call]:
    """Return name -> call of the same function on the same values, without gradients.

    Args:
        shape: what to compute, by one of OPS.
        batch: images.
        dtype: type of activations and weights.
        device: where the values are made and used.
    """
    generator = torch.Generator(device).manual_seed(0)

    def normal(*size: int, scale: float = 1.0) -> Tensor:
        values = torch.randn(*size, generator=generator, dtype=torch.float32, device=device)
        return (values * scale).to(dtype)

    return _MAKERS[type(shape)](shape, batch, normal)


def _channels_last(*tensors: Tensor) -> list[Tensor]:
    return [tensor.contiguous(memory_format=torch.channels_last) for tensor in tensors]


def _sources(c: int, c2: int, batch: int, size: int, normal: Callable[..., Tensor]) -> list[Tensor]:
    return [normal(batch, channels, size, size) for channels in (c, c2) if channels]


def _conv2d(shape: ConvShape, batch: int, normal: Callable[..., Tensor]) -> dict[str, Call]:
    k, c_in, c_out = shape.kernel, shape.c_in + shape.c_in2, shape.c_out
    padding = k // 2 + shape.ring - shape.pad_end
    fan_in = c_in * k * k
    # A parameter, as in a network: its rearrangement is kept from call to call.
    weight = nn.Parameter(
        normal(shape.c_out_max, shape.c_in_max, k, k, scale=fan_in**-0.5), requires_grad=False
    )
    bias = normal(shape.c_out_max)
    sources = _sources(shape.c_in, shape.c_in2, batch, shape.in_size, normal)
    sources_cl = _channels_last(*sources)
    (dense_weight,) = _channels_last(weight[:c_out, :c_in])
    dense_bias = bias[:c_out].contiguous()
    first, second = sources_cl[0], sources_cl[1] if len(sources_cl) > 1 else None

    def conv(parts: list[Tensor], w: Tensor, b: Tensor) -> Tensor:
        x = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]  # [N, c_in, H, W]
        x = resampled(x, "up" if shape.upsample else None)
        x = F.pad(x, (0, 1, 0, 1)) if shape.pad_end else x
        return F.conv2d(x, w, b, stride=shape.stride, padding=padding)

    return {
        "slicing": lambda: conv(sources, weight[:c_out, :c_in], bias[:c_out]),
        "dense_cl": lambda: conv(sources_cl, dense_weight, dense_bias),
        "ours": lambda: sliced_conv2d(
            first,
            weight,
            bias,
            c_out,
            stride=shape.stride,
            padding=padding,
            x2=second,
            upsample=shape.upsample,
            pad_end=shape.pad_end,
        ),
    }


def _linear(shape: LinearShape, batch: int, normal: Callable[..., Tensor]) -> dict[str, Call]:
    weight = normal(shape.c_out_max, shape.c_in_max, scale=shape.c_in**-0.5)
    bias, x = normal(shape.c_out_max), normal(batch, shape.c_in)
    c_in, c_out = shape.c_in, shape.c_out
    dense_weight, dense_bias = weight[:c_out, :c_in].contiguous(), bias[:c_out].contiguous()
    return {
        "slicing": lambda: F.linear(x, weight[:c_out, :c_in], bias[:c_out]),
        "dense_cl": lambda: F.linear(x, dense_weight, dense_bias),
        "ours": lambda: sliced_linear(x, weight, bias, c_out),
    }


def _group_norm(shape: NormShape, batch: int, normal: Callable[..., Tensor]) -> dict[str, Call]:
    c = shape.c + shape.c2
    weight, bias = normal(shape.c_max), normal(shape.c_max)
    sources = _sources(shape.c, shape.c2, batch, shape.size, normal)
    sources_cl = _channels_last(*sources)
    first, second = sources_cl[0], sources_cl[1] if len(sources_cl) > 1 else None
    dense_weight, dense_bias = weight[:c].contiguous(), bias[:c].contiguous()
    scale, shift = normal(2, batch, c) if shape.modulated else (None, None)  # [N, c] each

    def norm(parts: list[Tensor], w: Tensor, b: Tensor) -> Tensor:
        x = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]  # [N, c, H, W]
        y = F.group_norm(x, shape.groups, w, b)
        if scale is not None and shift is not None:
            y = y * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
        return F.silu(y) if shape.silu else y

    return {
        "slicing": lambda: norm(sources, weight[:c], bias[:c]),
        "dense_cl": lambda: norm(sources_cl, dense_weight, dense_bias),
        "ours": lambda: sliced_group_norm(
            first, weight, bias, shape.groups, x2=second, silu=shape.silu, scale=scale, shift=shift
        ),
    }


def _layer_norm(
    shape: LayerNormShape, batch: int, normal: Callable[..., Tensor]
) -> dict[str, Call]:
    c = shape.c
    weight, bias = normal(shape.c_max), normal(shape.c_max)
    x = normal(batch, shape.rows, c)
    dense_weight, dense_bias = weight[:c].contiguous(), bias[:c].contiguous()
    scale, shift = normal(2, batch, c) if shape.modulated else (None, None)  # [N, c] each

    def norm(w: Tensor, b: Tensor) -> Tensor:
        y = F.layer_norm(x, (c,), w, b)
        if scale is None or shift is None:
            return y
        return y * (1 + scale[:, None]) + shift[:, None]

    return {
        "slicing": lambda: norm(weight[:c], bias[:c]),
        "dense_cl": lambda: norm(dense_weight, dense_bias),
        "ours": lambda: sliced_layer_norm(x, weight, bias, scale=scale, shift=shift),
    }


def _attention(shape: AttentionShape, batch: int, normal: Callable[..., Tensor]) -> dict[str, Call]:
    keys = shape.tokens if shape.keys is None else shape.keys
    q, k, v = (
        normal(batch, count, shape.heads, shape.head_size).transpose(1, 2)
        for count in (shape.tokens, keys, keys)
    )  # [N, heads, T, d]

    def bmm() -> Tensor:
        scores = torch.matmul(q, k.transpose(2, 3)) * shape.head_size**-0.5  # [N, heads, T, keys]
        return torch.matmul(scores.softmax(dim=-1), v)

    return {
        "slicing": bmm,
        "dense_cl": lambda: F.scaled_dot_product_attention(q, k, v),
        "ours": lambda: sliced_attention(q, k, v),
    }


_MAKERS: dict[type[Shape], Callable[..., dict[str, Call]]] = {
    ConvShape: _conv2d,
    LinearShape: _linear,
    NormShape: _group_norm,
    LayerNormShape: _layer_norm,
    AttentionShape: _attention,
}


def relative_error(got: Output, expected: Output) -> float:
    """max |got - expected| / max |expected|; two tensors count as joined along the channels."""
    a, b = ((torch.cat(x, dim=1) if isinstance(x, tuple) else x).double() for x in (got, expected))
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-30))


def compare(what: str, outputs: Mapping[str, Output], tolerance: float) -> tuple[float, str | None]:
    """Return ours's relative error against slicing, and a sentence on the first that is too wrong.

    The sentence is None where all candidates agree.
    """
    errors = {
        name: relative_error(output, outputs["slicing"])
        for name, output in outputs.items()
        if name != "slicing"
    }
    for name, error in errors.items():
        if not error <= tolerance:
            return errors["ours"], (
                f"{what}: {name} differs from slicing by {error:.2g}; "
                f"need at most {tolerance:g} before it is timed"
            )
    return errors["ours"], None


def check_agreement(what: str, outputs: Mapping[str, Output], tolerance: float) -> float:
    """Return the relative error of ours against slicing, after checking all candidates.

    Raises:
        ValueError: a candidate computes something else, so its time means nothing.
    """
    error, reason = compare(what, outputs, tolerance)
    if reason is not None:
        raise Refusal(reason)
    return error
