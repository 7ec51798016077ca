"""Calls of the raw ops past the Python layer's checks: a result or a RuntimeError, never a crash.

Every argument has its schema's type; up to three are near misses of what fits, as those get
furthest into the C++ checks.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st
from ops.fuzz_arguments import OPS, near, run_examples
from torch import Tensor

from ddsm_ext._library import native
from ddsm_ext.ops._packed import ALGORITHMS, DIRECT, DIRECT_BF16
from ddsm_ext.ops.activation import KINDS


def conv2d_calls(a: dict[str, Any]) -> dict[str, list[Any]]:
    x, x2, weight, bias = a["x"], a["x2"], a["weight"], a["bias"]
    _n, c, h, w = x.shape
    window = [a["stride"], a["padding"], a["upsample"]]
    offset = c if a["c_in2_offset"] is None else a["c_in2_offset"]
    algo = 0 if a["algo"] == "auto" else ALGORITHMS.index(a["algo"])
    end = [False, a["pad_end"]]  # tf32, pad_end
    forward = [x, x2, weight, bias, a["c_out"], offset, *window, *panels_and_algo(weight, algo)]
    forward += end
    y = torch.ops.ddsm_ext.sliced_conv2d(*forward)
    grads = [torch.zeros_like(weight), None if bias is None else torch.zeros_like(bias)]
    grad_algo = DIRECT if algo == DIRECT_BF16 else algo
    grad_x = [y, weight, c, 0, h, w, *window]
    grad_x += panels_and_algo(weight, DIRECT if a["upsample"] else grad_algo, transposed=True)
    grad_x += end
    kind = [algo, a["upsample"] and algo == 0, False]
    biases = [weight.new_ones(weight.shape[0]) if bias is None else bias]
    shift = y[:, :, 0, 0].contiguous()
    corner = weight[:, :, :1, :1].contiguous()
    shortcut = [corner, biases[0], y[:, : corner.shape[1]]]
    # shift, residual, shortcut and its c_in2_offset, moments, tickets, overlaps, tf32, gain,
    # pad_end, activation, gate
    wanted = [shift, y, shortcut, 0, True, None, False, False, 0.5, a["pad_end"], 1, shift]
    return {
        "sliced_conv2d": forward,
        "sliced_conv2d_fused": [x, x2, [weight], biases, a["c_out"], offset, *window, *wanted],
        "sliced_conv2d_grad_x": grad_x,
        "sliced_conv2d_grad_weight": [y, x, x2, offset, *window, *grads, grad_algo, *end],
        "sliced_conv2d_panels": [weight, *kind, empty_panels(weight, *kind)],
    }


def empty_panels(weight: Tensor, *kind: int) -> Tensor:
    return torch.empty(native.conv2d_panel_floats(*weight.shape[:3], *kind))


def panels_and_algo(weight: Tensor, algo: int, *, transposed: bool = False) -> list[Any]:
    if algo == DIRECT:
        return [None, DIRECT]
    panels = empty_panels(weight, algo, False, transposed)
    torch.ops.ddsm_ext.sliced_conv2d_panels(weight, algo, False, transposed, panels)
    return [panels, algo]


def linear_calls(a: dict[str, Any]) -> dict[str, list[Any]]:
    x, weight, bias = a["x"], a["weight"], a["bias"]
    y = torch.ops.ddsm_ext.sliced_linear(x, weight, bias, a["c_out"])
    grads = [torch.zeros_like(weight), None if bias is None else torch.zeros_like(bias)]
    table = torch.ones(4, 16)
    one = weight if weight.dim() == 2 else weight[0]
    row = one.new_ones(one.shape[0])
    shift = y.flatten(0, -2) if y.dim() > 1 else y[None]
    number = KINDS.index(a["activation"])
    return {
        "sinusoidal_embedding": [torch.arange(5) / 2, 16, a["c_out"] % 2 == 0, table, x],
        "sliced_linear": [x, weight, bias, a["c_out"], False, number, a["gate"], a["residual"]],
        "sliced_linear_fused": [x, [one], [row], [a["c_out"]], shift, True, False, False],
        "sliced_linear_grad_x": [y, weight, x.shape[-1]],
        "sliced_linear_grad_weight": [y, x, *grads],
    }


def activation_calls(a: dict[str, Any]) -> dict[str, list[Any]]:
    z, gate, number = a["z"], a["gate"], KINDS.index(a["kind"])
    forward = [z, number, gate, a["residual"]]
    y = torch.ops.ddsm_ext.sliced_activation(*forward)
    grad_gate = None
    if gate is not None:
        grad_gate = gate.new_zeros(gate.shape, dtype=torch.promote_types(z.dtype, torch.float32))
    return {
        "sliced_activation": forward,
        "sliced_activation_backward": [y, z, number, gate, grad_gate],
    }


def group_norm_calls(a: dict[str, Any]) -> dict[str, list[Any]]:
    x, x2, weight, bias = a["x"], a["x2"], a["weight"], a["bias"]
    offset = x.shape[1] if a["c2_offset"] is None else a["c2_offset"]
    split = [a["groups"], offset]
    film = [a["scale"], a["shift"]]
    forward = [x, x2, weight, bias, *split, a["eps"], a["silu"], *film]
    y, y2, mean, rstd = torch.ops.ddsm_ext.sliced_group_norm(*forward)
    grad_ys = [y, None if x2 is None else y2]
    grads = [torch.zeros_like(weight), torch.zeros_like(bias)]
    sources = [x, x2, weight, bias, mean, rstd]
    return {
        "sliced_group_norm": forward,
        "sliced_group_norm_apply": [*forward[:8], None, None, *film, False, False],
        "sliced_group_norm_backward": [
            *(*grad_ys, *sources, *split, a["silu"], *grads, *film),
            *(None if row is None else torch.ones_like(row) for row in film),
        ],
    }


def layer_norm_calls(a: dict[str, Any]) -> dict[str, list[Any]]:
    given = [a[name] for name in ("x", "weight", "bias")]
    film = [a["scale"], a["shift"]]
    forward = [*given, a["eps"], *film]
    y, mean, rstd = torch.ops.ddsm_ext.sliced_layer_norm(*forward)
    grads = [None if t is None else torch.ones_like(t) for t in (*given[1:], *film)]
    return {
        "sliced_layer_norm": forward,
        "sliced_layer_norm_apply": [*forward, False],
        "sliced_layer_norm_backward": [y, *given, mean, rstd, *grads[:2], *film, *grads[2:]],
    }


def resample_calls(a: dict[str, Any]) -> dict[str, list[Any]]:
    more = [a[name] for name in ("taps", "ring", "residual")]
    return {"resample": [a["x"], a["up"], 0.25, False, *more]}


def attention_calls(a: dict[str, Any]) -> dict[str, list[Any]]:
    q, k, v, scale = (a[name] for name in ("q", "k", "v", "scale"))
    out, lse = torch.ops.ddsm_ext.sliced_attention(q, k, v, scale)
    return {
        "sliced_attention": [q, k, v, scale],
        "sliced_attention_backward": [out, q, k, v, out, lse, scale],
    }


def packed_attention_calls(a: dict[str, Any]) -> dict[str, list[Any]]:
    given = [a[name] for name in ("q", "kv", "heads", "scale")]
    out, lse = torch.ops.ddsm_ext.packed_attention(*given)
    return {
        "packed_attention": given,
        "packed_attention_backward": [out, *given[:2], out, lse, *given[2:]],
    }


Calls = Callable[[dict[str, Any]], dict[str, list[Any]]]
# Public op: the raw calls, forward and backward, made of arguments that fit it.
CALLS: dict[str, Calls] = {
    "activation": activation_calls,
    "packed_attention": packed_attention_calls,
    "resample": resample_calls,
    "sliced_attention": attention_calls,
    "sliced_conv2d": conv2d_calls,
    "sliced_group_norm": group_norm_calls,
    "sliced_layer_norm": layer_norm_calls,
    "sliced_linear": linear_calls,
}


def other_value(draw: st.DrawFn, kind: str, value: Any) -> Any:
    """Another value of the schema type `kind`."""
    if kind.startswith("Optional[") and draw(st.integers(0, 3)) == 0:
        return None
    if isinstance(value, list):
        longer = value * draw(st.integers(0, 3))
        return [near(draw, item) if draw(st.booleans()) else item for item in longer]
    if value is None:
        value = torch.ones(2, 3, 4, 4) if "Tensor" in kind else 0.5
    return near(draw, value)


@st.composite
def raw_call(draw: st.DrawFn, name: str, calls: Calls) -> tuple[str, list[Any]]:
    chosen = draw(OPS[name][1])
    for key, value in chosen.items():  # of float16 there is no kernel on the CPU
        if isinstance(value, Tensor) and value.dtype == torch.float16:
            chosen[key] = value.float()
    with torch.no_grad():
        fitting = calls(chosen)
    raw_name = draw(st.sampled_from(sorted(fitting)))
    schema = getattr(torch.ops.ddsm_ext, raw_name).default._schema.arguments
    given = fitting[raw_name]
    values = given + [argument.default_value for argument in schema[len(given) :]]
    for index in draw(st.lists(st.integers(0, len(values) - 1), max_size=3)):
        values[index] = other_value(draw, str(schema[index].type), values[index])
    return raw_name, values


# Where a check of the bindings stands, and the op that it names.
NAMED = re.compile(r"csrc/bindings/\w+\.(?:h|cpp):\d+, (\w+): ")


def check_raw_call(call: tuple[str, list[Any]]) -> None:
    """A result, or a RuntimeError, which names the op that was called if the bindings raise it."""
    name, values = call
    try:
        with torch.no_grad():
            getattr(torch.ops.ddsm_ext, name)(*values)
    except RuntimeError as error:
        named = NAMED.search(str(error))
        if named is not None and named[1] != name:
            raise AssertionError(f"{name} was called") from error


def fuzz(name: str, examples: int, calls: Calls | None = None) -> None:
    """Call the raw ops, forward and backward, of one public op, if it has any.

    calls: makes them of arguments that fit; None: `CALLS`'s.
    """
    calls = calls or CALLS.get(name)
    if calls is not None:
        run_examples(check_raw_call, raw_call(name, calls), examples)
