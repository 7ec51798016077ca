"""Any arguments end in a result or an error that names the op; none end the process."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.fuzz_arguments import OPS
from ops.fuzz_raw import CALLS
from ops.op_checks import run_python


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("examples", [200, pytest.param(2000, marks=pytest.mark.slow)])
def test_random_arguments(op: str, examples: int) -> None:
    fuzz = f"fuzz_arguments.fuzz({op!r}, {examples}); fuzz_raw.fuzz({op!r}, {examples})"
    done = run_python(f"from ops import fuzz_arguments, fuzz_raw; {fuzz}")
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stderr[-4000:]}"


@pytest.mark.parametrize(
    "call",
    [
        "sliced_conv2d_panels(torch.ones(4, 0, 3, 3), 1, False, False, torch.empty(0))",
        "sliced_conv2d_grad_x(image, image, 1, 0, 2**63 - 1, 2, 1, 3, True)",  # height * 2
    ],
)
def test_raw_calls_that_once_divided_by_zero_or_overflowed(call: str) -> None:
    done = run_python(
        "import torch, ddsm_ext.ops.conv2d\n"
        "image = torch.ones(1, 1, 4, 4)\n"
        f"torch.ops.ddsm_ext.{call}"
    )
    assert "RuntimeError: " in done.stderr, f"exit status {done.returncode}\n{done.stderr}"


@settings(max_examples=1, database=None)
@given(st.fixed_dictionaries({op: fitting for op, (_, fitting) in OPS.items()}))
def test_every_raw_op_is_called(fitting: dict[str, dict[str, Any]]) -> None:
    called = {name for op, calls in CALLS.items() for name in calls(fitting[op])}
    schemas = [schema.name for schema in torch._C._jit_get_all_schemas()]
    assert {f"ddsm_ext::{name}" for name in called} == {
        name for name in schemas if name.startswith("ddsm_ext::")
    }
