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


@settings(max_examples=1, database=None)
@given(st.fixed_dictionaries({op: fitting for op, (_, fitting) in OPS.items()}))
def test_every_raw_op_is_called(fitting: dict[str, dict[str, Any]]) -> None:
    called = {name for op, arguments in fitting.items() for name in CALLS[op](arguments)}
    schemas = [schema.name for schema in torch._C._jit_get_all_schemas()]
    assert {f"ddsm_ext::{name}" for name in called} == {
        name for name in schemas if name.startswith("ddsm_ext::")
    }
