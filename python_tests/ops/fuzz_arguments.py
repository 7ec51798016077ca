"""Calls of the ops with random, mostly wrong arguments; each ends in a result or a clear error.

Run in a process of its own (op_checks.run_fuzz), so that a crash is seen as a failure.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ddsm_ext.ops.conv2d import sliced_conv2d
from ddsm_ext.ops.linear import sliced_linear

DTYPES = (torch.float32, torch.bfloat16, torch.float64, torch.float16, torch.int64, torch.complex64)
INTEGERS = st.one_of(st.integers(-3, 12), st.sampled_from([2**31, 2**63 - 1, 2**63, -(2**70)]))
SCALARS = st.one_of(INTEGERS, st.booleans(), st.floats(), st.none(), st.just("3"), st.just([1]))


def make_tensor(shape: list[int], dtype: torch.dtype, device: str, kind: int) -> torch.Tensor:
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


def conv_tensor(n: int, c: int, h: int, w: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.ones(n, c, h, w, dtype=dtype)


@st.composite
def conv2d_arguments(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments that fit, of which up to three are replaced by anything."""
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float64]))
    k, h, w = draw(st.integers(1, 4)), draw(st.integers(1, 6)), draw(st.integers(1, 6))
    n, c, c2 = draw(st.integers(0, 2)), draw(st.integers(1, 7)), draw(st.integers(0, 4))
    c_in_max, c_out_max = c + c2 + draw(st.integers(0, 4)), draw(st.integers(1, 9))
    arguments: dict[str, Any] = {
        "x": conv_tensor(n, c, h, w, dtype),
        "weight": conv_tensor(c_out_max, c_in_max, k, k, dtype),
        "bias": draw(st.sampled_from([None, torch.ones(c_out_max, dtype=dtype)])),
        "c_out": draw(st.integers(1, c_out_max)),
        "stride": draw(st.integers(1, 2)),
        "padding": draw(st.integers(0, k - 1)),
        "x2": conv_tensor(n, c2, h, w, dtype) if c2 else None,
        "c_in2_offset": None,
        "upsample": draw(st.booleans()),
        "accumulate_grad": draw(st.booleans()),
    }
    for name in draw(st.lists(st.sampled_from(sorted(arguments)), max_size=3)):
        is_tensor = name in ("x", "weight", "bias", "x2")
        arguments[name] = draw(TENSORS if is_tensor else SCALARS)
    return arguments


@st.composite
def linear_arguments(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments that fit, of which up to three are replaced by anything."""
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float64]))
    leading = draw(st.lists(st.integers(0, 4), max_size=3))
    c_in, c_out_max = draw(st.integers(1, 20)), draw(st.integers(1, 9))
    arguments: dict[str, Any] = {
        "x": torch.ones(*leading, c_in, dtype=dtype),
        "weight": torch.ones(c_out_max, c_in + draw(st.integers(0, 4)), dtype=dtype),
        "bias": draw(st.sampled_from([None, torch.ones(c_out_max, dtype=dtype)])),
        "c_out": draw(st.integers(1, c_out_max)),
        "accumulate_grad": draw(st.booleans()),
    }
    for name in draw(st.lists(st.sampled_from(sorted(arguments)), max_size=3)):
        arguments[name] = draw(TENSORS if name in ("x", "weight", "bias") else SCALARS)
    return arguments


def check_call(op: Callable[..., torch.Tensor], arguments: dict[str, Any]) -> None:
    """The call gives finite numbers of x's dtype, or a TypeError or ValueError naming the op."""
    try:
        y = op(**arguments)
    except (TypeError, ValueError) as error:
        if not str(error).startswith(f"{op.__name__}: "):
            raise
        return
    assert y.dtype == arguments["x"].dtype
    if y.device.type == "cpu":
        assert torch.isfinite(y).all()


def fuzz(
    op: Callable[..., torch.Tensor], arguments: st.SearchStrategy[dict[str, Any]], examples: int
) -> None:
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(arguments)
    def run(chosen: dict[str, Any]) -> None:
        check_call(op, chosen)

    run()


def fuzz_conv2d(examples: int) -> None:
    fuzz(sliced_conv2d, conv2d_arguments(), examples)


def fuzz_linear(examples: int) -> None:
    fuzz(sliced_linear, linear_arguments(), examples)
