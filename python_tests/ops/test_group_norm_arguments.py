"""sliced_group_norm refuses what does not fit, in one sentence, and never crashes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ops.fuzz_arguments import SCALARS, TENSORS
from ops.op_checks import run_fuzz

from ddsm_ext.ops import sliced_group_norm


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"x": None}, TypeError, "x is NoneType"),
        ({"x": torch.zeros(2, 8, 4)}, ValueError, "x has shape"),
        ({"x": torch.zeros(2, 8, 4, 4, dtype=torch.int32)}, TypeError, "torch.int32"),
        ({"x": torch.zeros(2, 17, 4, 4)}, ValueError, "x has 17 channels, weight has 16"),
        ({"bias": torch.zeros(15)}, ValueError, "15"),
        ({"groups": 3}, ValueError, "groups is 3, the input has 8 channels"),
        ({"groups": 0}, ValueError, "groups is 0"),
        ({"groups": 2.0}, TypeError, "groups is 2.0"),
        ({"c2_offset": 8}, ValueError, "x2 is None"),
        ({"x2": torch.zeros(2, 8, 4, 5)}, ValueError, r"x2 has shape \[2, 8, 4, 5\]"),
        ({"x2": torch.zeros(2, 8, 4, 4), "c2_offset": 9}, ValueError, "c2_offset is 9"),
        ({"x2": torch.zeros(2, 8, 4, 4), "c2_offset": 4}, ValueError, "c2_offset is 4"),
        ({"eps": -1.0}, ValueError, "eps is -1.0"),
        ({"silu": 1}, TypeError, "silu is 1"),
    ],
)
def test_refusals_name_the_values(change: dict[str, Any], error: type, text: str) -> None:
    arguments: dict[str, Any] = {
        "x": torch.zeros(2, 8, 4, 4),
        "weight": torch.zeros(16),
        "bias": torch.zeros(16),
        "groups": 4,
    }
    with pytest.raises(error, match=f"^sliced_group_norm: .*{text}"):
        sliced_group_norm(**{**arguments, **change})


# ---- bad arguments, in a process of their own --------------------------------------------------


@st.composite
def arguments(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments that fit, of which up to three are replaced by anything."""
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float64]))
    n, h, w = draw(st.integers(0, 2)), draw(st.integers(0, 4)), draw(st.integers(0, 4))
    c, c2, gap = draw(st.integers(1, 9)), draw(st.integers(0, 5)), draw(st.integers(0, 3))
    grad = draw(st.booleans())
    chosen: dict[str, Any] = {
        "x": torch.ones(n, c, h, w, dtype=dtype, requires_grad=grad),
        "weight": torch.ones(c + c2 + gap, dtype=dtype, requires_grad=grad),
        "bias": torch.ones(c + c2 + gap, dtype=dtype),
        "groups": draw(st.sampled_from([g for g in range(1, 15) if (c + c2) % g == 0])),
        "x2": torch.ones(n, c2, h, w, dtype=dtype) if c2 else None,
        "c2_offset": draw(st.sampled_from([None, c + gap])) if c2 else None,
        "eps": draw(st.floats(0, 1e30)),
        "silu": draw(st.booleans()),
        "accumulate_grad": draw(st.booleans()),
    }
    for name in draw(st.lists(st.sampled_from(sorted(chosen)), max_size=3)):
        is_tensor = name in ("x", "weight", "bias", "x2")
        chosen[name] = draw(TENSORS if is_tensor else SCALARS)
    return chosen


def _check_call(chosen: dict[str, Any]) -> None:
    try:
        result = sliced_group_norm(**chosen)
    except (TypeError, ValueError) as error:
        assert str(error).startswith("sliced_group_norm: "), error  # noqa: PT017
        return
    outputs = result if isinstance(result, tuple) else (result,)
    assert outputs[0].shape == chosen["x"].shape
    if outputs[0].requires_grad:
        torch.stack([y.sum() for y in outputs]).sum().backward()


def fuzz(examples: int) -> None:
    settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )(given(arguments())(_check_call))()


def test_bad_arguments_raise_and_never_crash() -> None:
    run_fuzz("ops.test_group_norm_arguments", "fuzz", 2000)
