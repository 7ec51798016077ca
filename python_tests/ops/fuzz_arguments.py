"""Random arguments of the ops, mostly wrong ones, and what each call must end in.

`test_fuzz` runs this in a process of its own, so that a crash is seen as a failure.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ddsm_ext._library import native
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
from ddsm_ext.ops._packed import DIRECT_BF16

DTYPES = (torch.float32, torch.bfloat16, torch.float64, torch.float16, torch.int64, torch.complex64)
# The CPU kernels', and float16, which plain torch computes there.
FITTING_DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float64, torch.float16])
# 36 * 32 * the first is 128 modulo 2^64, as is 16 * 8 * the second 0.
VAST = st.sampled_from([16012798675095097, 2**57, 2**59, 2**59 + 1])
INTEGERS = st.one_of(st.integers(-3, 12), st.sampled_from([2**31, 2**62, 2**63 - 1, -(2**63)]))
SCALARS = st.one_of(
    INTEGERS,
    st.sampled_from([2**63, -(2**70), True, False, None, "3", [1], "winograd_4x4"]),
    st.floats(),
)


def make_tensor(shape: list[int], dtype: torch.dtype, device: str, kind: int) -> Tensor:
    value = torch.ones(shape, dtype=dtype, device=device)
    if kind == 1 and value.dim() > 1:
        return value.transpose(0, 1)
    if kind == 2 and value.dim() > 0:
        return value[::2]
    if kind == 3 and value.numel() > 0:
        return value.to_sparse() if device == "cpu" else value
    if kind == 4:
        return value[..., None].expand(*shape, 3)
    if kind == 5 and value.is_floating_point():
        return value.requires_grad_()
    return value


TENSORS = st.one_of(
    st.builds(
        make_tensor,
        st.lists(st.integers(0, 7), max_size=5),
        st.sampled_from(DTYPES),
        st.sampled_from(["cpu", "cpu", "cpu", "meta"]),
        st.integers(0, 5),
    ),
    SCALARS,
)
TENSOR_NAMES = {"x", "x2", "weight", "bias", "q", "k", "v", "kv", "y", "scale", "shift"}
TENSOR_NAMES |= {"z", "gate", "residual"}


KINDS = ("size", "more", "fewer", "dtype", "gaps", "shifted", "expanded", "turned", "vast")


def near_miss(draw: st.DrawFn, tensor: Tensor) -> Tensor:
    """A tensor that differs from `tensor` in one of shape, dtype and strides."""
    if math.prod(size or 1 for size in tensor.shape) > 2**40:  # vast already
        return tensor
    shape, dtype = list(tensor.shape), tensor.dtype
    dim = draw(st.integers(0, max(0, len(shape) - 1)))
    kind = draw(st.sampled_from(KINDS))
    if kind == "size" and shape:
        shape[dim] = draw(st.sampled_from([0, 1, max(0, shape[dim] - 1), shape[dim] + 1]))
    if kind == "more":
        shape.insert(dim, draw(st.integers(0, 2)))
    if kind == "fewer" and shape:
        del shape[dim]
    if kind == "dtype":
        dtype = draw(st.sampled_from(DTYPES))
    if kind == "gaps":
        return torch.ones(*shape, 2, dtype=dtype)[..., 1]
    if kind == "shifted":
        return torch.ones(tensor.numel() + 1, dtype=dtype)[1:].view(shape)
    if kind == "expanded":
        return torch.ones((), dtype=dtype).expand(shape)
    if kind == "vast" and shape:
        shape[dim] = draw(VAST)
        if math.prod(size or 1 for size in shape) < 2**62:  # else torch makes no such tensor
            one = torch.ones((), dtype=dtype)
            return one.requires_grad_(dtype.is_floating_point and draw(st.booleans())).expand(shape)
        shape[dim] = 1
    if kind == "turned" and shape:
        return torch.ones(shape, dtype=dtype).movedim(dim, 0)
    return torch.ones(shape, dtype=dtype)


def near(draw: st.DrawFn, value: Any) -> Any:
    """A value of the same type, most often almost the same."""
    if isinstance(value, Tensor):
        return near_miss(draw, value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return draw(st.one_of(st.sampled_from([value - 1, value + 1]), INTEGERS))
    return draw(st.floats()) if isinstance(value, float) else value


# ---- arguments that fit ------------------------------------------------------------------------


def ones(draw: st.DrawFn, *shape: int, dtype: torch.dtype) -> Tensor:
    value = torch.ones(shape, dtype=dtype)
    if len(shape) == 4 and draw(st.booleans()):
        value = value.to(memory_format=torch.channels_last)
    return value.requires_grad_(draw(st.booleans()))


def conv2d_algos(dtype: torch.dtype, kernel: int, stride: int, upsample: bool) -> list[str]:
    """The algorithms that compute such a convolution here."""
    algos = ["auto", "direct"]
    if kernel == 3 and stride == 1 and dtype in (torch.float32, torch.bfloat16):
        algos += ["winograd_4x4", "winograd_2x2"]
    if dtype == torch.bfloat16 and not upsample and native.conv2d_has(DIRECT_BF16):
        algos.append("direct_bf16")
    return algos


@st.composite
def conv2d_arguments(draw: st.DrawFn) -> dict[str, Any]:
    dtype, k = draw(FITTING_DTYPES), draw(st.sampled_from([3, 1, 3, 2, 4]))
    stride, padding = draw(st.integers(1, 2)), draw(st.integers(0, k - 1))
    upsample = draw(st.booleans())
    n, c, c2 = draw(st.integers(0, 2)), draw(st.integers(1, 7)), draw(st.integers(0, 4))
    h, w = (draw(st.integers(max(1, k - 2 * padding), 6)) for _ in range(2))
    c_in_max, c_out_max = c + c2 + draw(st.integers(0, 4)), draw(st.integers(1, 9))
    weight = ones(draw, c_out_max, c_in_max, k, k, dtype=dtype)
    return {
        "x": ones(draw, n, c, h, w, dtype=dtype),
        "weight": nn.Parameter(weight) if draw(st.booleans()) else weight,
        "bias": ones(draw, c_out_max, dtype=dtype) if draw(st.booleans()) else None,
        "c_out": draw(st.integers(1, c_out_max)),
        "stride": stride,
        "padding": padding,
        "x2": ones(draw, n, c2, h, w, dtype=dtype) if c2 else None,
        "c_in2_offset": draw(st.sampled_from([None, c_in_max - c2])) if c2 else None,
        "upsample": upsample,
        "accumulate_grad": draw(st.booleans()),
        "algo": draw(st.sampled_from(conv2d_algos(dtype, k, stride, upsample))),
        "pad_end": draw(st.booleans()),
    }


def factors(draw: st.DrawFn, shape: list[int], dtype: torch.dtype) -> dict[str, Any]:
    """A gate and a residual, or not, of a result."""
    gated, added = len(shape) > 1 and draw(st.booleans()), draw(st.booleans())
    return {
        "gate": ones(draw, shape[0], shape[-1], dtype=dtype) if gated else None,
        "residual": ones(draw, *shape, dtype=dtype) if added else None,
    }


@st.composite
def linear_arguments(draw: st.DrawFn) -> dict[str, Any]:
    dtype, leading = draw(FITTING_DTYPES), draw(st.lists(st.integers(0, 4), max_size=3))
    c_in, c_out_max = draw(st.integers(1, 20)), draw(st.integers(1, 9))
    c_out, blocks = draw(st.integers(1, c_out_max)), draw(st.sampled_from([[], [1], [2], [2], [3]]))
    kinds = [None, "gelu", "gelu_tanh", *(["geglu"] if blocks == [2] else [])]
    kind = draw(st.sampled_from(kinds))
    columns = c_out if kind == "geglu" else sum(blocks, start=0 if blocks else 1) * c_out
    return {
        "x": ones(draw, *leading, c_in, dtype=dtype),
        "weight": ones(draw, *blocks, c_out_max, c_in + draw(st.integers(0, 4)), dtype=dtype),
        "bias": ones(draw, *blocks, c_out_max, dtype=dtype) if draw(st.booleans()) else None,
        "c_out": c_out,
        "activation": kind,
        **factors(draw, [*leading, columns], dtype),
        "accumulate_grad": draw(st.booleans()),
    }


@st.composite
def activation_arguments(draw: st.DrawFn) -> dict[str, Any]:
    dtype, leading = draw(FITTING_DTYPES), draw(st.lists(st.integers(0, 4), max_size=3))
    kind = draw(st.sampled_from([None, "gelu", "gelu_tanh", "geglu"]))
    c = draw(st.integers(1, 40))
    return {
        "z": ones(draw, *leading, 2 * c if kind == "geglu" else c, dtype=dtype),
        "kind": kind,
        **factors(draw, [*leading, c], dtype),
    }


@st.composite
def group_norm_arguments(draw: st.DrawFn) -> dict[str, Any]:
    dtype, n = draw(FITTING_DTYPES), draw(st.integers(0, 2))
    h, w = draw(st.integers(0, 4)), draw(st.integers(0, 4))
    c, c2, gap = draw(st.integers(1, 9)), draw(st.integers(0, 5)), draw(st.integers(0, 3))
    film = ones(draw, n, 2 * (c + c2), dtype=dtype) if draw(st.booleans()) else None
    scale, shift = (None, None) if film is None else film.chunk(2, dim=1)
    return {
        "x": ones(draw, n, c, h, w, dtype=dtype),
        "weight": ones(draw, c + c2 + gap, dtype=dtype),
        "bias": ones(draw, c + c2 + gap, dtype=dtype),
        "groups": draw(st.sampled_from([g for g in range(1, 15) if (c + c2) % g == 0])),
        "x2": ones(draw, n, c2, h, w, dtype=dtype) if c2 else None,
        "c2_offset": draw(st.sampled_from([None, c + gap])) if c2 else None,
        "eps": draw(st.floats(0, 1e30)),
        "silu": draw(st.booleans()),
        "scale": scale,
        "shift": shift,
        "accumulate_grad": draw(st.booleans()),
    }


@st.composite
def layer_norm_arguments(draw: st.DrawFn) -> dict[str, Any]:
    dtype, n, c = draw(FITTING_DTYPES), draw(st.integers(0, 3)), draw(st.integers(1, 20))
    middle = draw(st.lists(st.integers(0, 5), max_size=2))
    affine, modulated = draw(st.booleans()), draw(st.booleans())
    c_max = c + draw(st.integers(0, 3))
    film = ones(draw, n, 2 * c, dtype=dtype).chunk(2, dim=1) if modulated else (None, None)
    return {
        "x": ones(draw, n, *middle, c, dtype=dtype),
        "weight": ones(draw, c_max, dtype=dtype) if affine else None,
        "bias": ones(draw, c_max, dtype=dtype) if affine else None,
        "eps": draw(st.floats(0, 1e30)),
        "scale": film[0],
        "shift": film[1],
        "accumulate_grad": draw(st.booleans()),
    }


@st.composite
def resample_arguments(draw: st.DrawFn) -> dict[str, Any]:
    sizes = [draw(st.integers(0, limit)) for limit in (2, 9, 4, 4)]
    n, c, h, w = sizes
    dtype, up, taps = draw(FITTING_DTYPES), draw(st.booleans()), draw(st.sampled_from([2, 4]))
    ring = not up and taps == 4 and h > 0 and w > 0 and draw(st.booleans())
    size = (4 * h, 4 * w) if up else (h - ring, w - ring)
    return {
        "x": ones(draw, n, c, 2 * h, 2 * w, dtype=dtype),
        "up": up,
        "taps": taps,
        "ring": ring,
        "residual": ones(draw, n, c, *size, dtype=dtype) if draw(st.booleans()) else None,
        "scale": draw(st.floats(-10, 10)),
    }


@st.composite
def embedding_arguments(draw: st.DrawFn) -> dict[str, Any]:
    rows, c_max = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    return {
        "weight": ones(draw, rows, c_max, dtype=draw(FITTING_DTYPES)),
        "y": torch.tensor(draw(st.lists(st.integers(0, rows - 1), max_size=5)), dtype=torch.int64),
        "c": draw(st.integers(1, c_max)),
        "accumulate_grad": draw(st.booleans()),
    }


@st.composite
def attention_arguments(draw: st.DrawFn) -> dict[str, Any]:
    dtype, n, heads = draw(FITTING_DTYPES), draw(st.integers(0, 2)), draw(st.integers(0, 3))
    t_q, t_k, d = draw(st.integers(0, 9)), draw(st.integers(1, 70)), draw(st.integers(1, 9))
    return {
        "q": ones(draw, n, heads, t_q, d, dtype=dtype),
        "k": ones(draw, n, heads, t_k, d, dtype=dtype),
        "v": ones(draw, n, heads, t_k, d, dtype=dtype),
        "scale": draw(st.none() | st.floats(-10, 10)),
    }


@st.composite
def packed_attention_arguments(draw: st.DrawFn) -> dict[str, Any]:
    dtype, n, heads = draw(FITTING_DTYPES), draw(st.integers(0, 2)), draw(st.integers(1, 3))
    t_k, columns, apart = (
        draw(st.integers(1, 70)),
        heads * draw(st.integers(1, 9)),
        draw(st.booleans()),
    )
    size = (draw(st.integers(0, 9)), columns) if apart else (t_k, 3, columns)
    return {
        "q": ones(draw, n, *size, dtype=dtype),
        "heads": heads,
        "kv": ones(draw, n, t_k, 2, columns, dtype=dtype) if apart else None,
        "scale": draw(st.none() | st.floats(-10, 10)),
    }


OPS: dict[str, tuple[Callable[..., Any], st.SearchStrategy[dict[str, Any]]]] = {
    "activation": (activation, activation_arguments()),
    "packed_attention": (packed_attention, packed_attention_arguments()),
    "resample": (resample, resample_arguments()),
    "sliced_attention": (sliced_attention, attention_arguments()),
    "sliced_conv2d": (sliced_conv2d, conv2d_arguments()),
    "sliced_embedding": (sliced_embedding, embedding_arguments()),
    "sliced_group_norm": (sliced_group_norm, group_norm_arguments()),
    "sliced_layer_norm": (sliced_layer_norm, layer_norm_arguments()),
    "sliced_linear": (sliced_linear, linear_arguments()),
}


# ---- calls -------------------------------------------------------------------------------------


@st.composite
def arguments(draw: st.DrawFn, fitting: st.SearchStrategy[dict[str, Any]]) -> dict[str, Any]:
    """Arguments that fit, of which up to three are replaced by near ones or anything."""
    chosen = draw(fitting)
    for name in draw(st.lists(st.sampled_from(sorted(chosen)), max_size=3)):
        if draw(st.booleans()):
            chosen[name] = near(draw, chosen[name])
        else:
            chosen[name] = draw(TENSORS if name in TENSOR_NAMES else SCALARS)
    return chosen


def check_call(op: Callable[..., Any], chosen: dict[str, Any]) -> None:
    """The call and its backward run, or a TypeError or ValueError names the op."""
    try:
        result = op(**chosen)
        outputs = result if isinstance(result, tuple) else (result,)
        first = next(iter(chosen.values()))
        assert all(y.dtype == first.dtype and y.device == first.device for y in outputs)
        if outputs[0].requires_grad:
            torch.stack([y.sum() for y in outputs]).sum().backward()
    except (TypeError, ValueError) as error:
        if not str(error).startswith(f"{op.__name__}: "):
            raise
    except RuntimeError as error:
        vast = any(isinstance(v, Tensor) and v.numel() > 2**40 for v in chosen.values())
        if not vast or TORCHS_LIMITS.search(str(error)) is None:
            raise


# Torch's own words where plain torch is asked for more memory than there is.
TORCHS_LIMITS = re.compile("can't allocate memory|[Ss]torage size calculation|invalid .*size|2GB")


def run_examples(check: Callable[[Any], None], of: st.SearchStrategy[Any], examples: int) -> None:
    """`check` passes for `examples` values, the same ones in every run."""
    settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )(given(of)(check))()


def fuzz(name: str, examples: int) -> None:
    """Call one public op."""
    op, fitting = OPS[name]
    run_examples(lambda chosen: check_call(op, chosen), arguments(fitting), examples)
