"""A sanitizer build reports faults in the kernels: its silence in other tests means something."""

from __future__ import annotations

import pytest
from ops.op_checks import ISAS, run_python

from ddsm_ext import _library

pytestmark = pytest.mark.skipif(
    _library.native.build_info()["sanitizer"] != "address,undefined",
    reason="needs a build with DDSM_SANITIZE=address,undefined",
)

CALL = """
import numpy, torch
from ddsm_ext import _library
from ddsm_ext.ops import sliced_linear

_library.native.set_isa("{isa}")
x = {x}
sliced_linear(x, torch.ones(8, 64), None, 8)
"""


@pytest.mark.parametrize("isa", ISAS)
def test_a_read_past_the_end_is_reported(isa: str) -> None:
    short = "numpy.ones(300, numpy.float32)"
    x = f"torch.from_numpy(numpy.lib.stride_tricks.as_strided({short}, (10, 64)))"
    report = run_python(CALL.format(isa=isa, x=x)).stderr
    assert "AddressSanitizer: heap-buffer-overflow" in report
    assert f"ddsm::{isa}::linear" in report


@pytest.mark.parametrize("isa", ISAS)
def test_undefined_behaviour_is_reported(isa: str) -> None:
    x = "torch.frombuffer(bytearray(2561), dtype=torch.float32, offset=1).view(10, 64)"
    report = run_python(CALL.format(isa=isa, x=x)).stderr
    assert "runtime error: load of misaligned address" in report
