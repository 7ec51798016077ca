"""One call of kernels beside float64, as a row of a family's report."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from cuda_kernels.gpu.device import DEVICE
from gpu_suite.tiles import parsed, printed_choices
from torch import Tensor

# Of the largest result: a rounding step of 16 bits, as sums are float32; two of tf32.
TOLERANCE = {torch.float32: 2.0**-9, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}
# A forced tile may not serve a shape; that the GPU or the build has no sm_90a path is a fault.
REFUSALS = ("no kernel for this tile", "the sm_90a path needs")
NO_REFUSAL = "needs a GPU of compute capability"
Row = dict[str, Any]
Call = Callable[[], Sequence[Tensor]]


@contextmanager
def outputs_begin_as_nan(like: Sequence[Tensor]) -> Iterator[None]:
    """Memory that an op takes for its outputs and workspaces is filled with NaN.

    Where torch does not fill it, the allocator gives the memory of such tensors again.
    """
    poison = [torch.full_like(y, torch.nan, dtype=kind) for y in like for kind in TOLERANCE]
    del poison
    before = torch.are_deterministic_algorithms_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before)


def compare(what: str, call: Call, exact: Sequence[Tensor], allowed: float) -> Row:
    """Return a row on a call that is made twice; "fault" says what is wrong, if something is."""
    row: Row = {"case": what, "allowed": allowed, "fault": None}
    try:
        with outputs_begin_as_nan(exact), printed_choices() as lines:
            first = [y.clone() for y in call()]
            second = call()
        row["chosen"] = [choice for line in lines if (choice := parsed(line))]
        row["repeats"] = all(a.equal(b) for a, b in zip(first, second, strict=True))
        errors = [
            float((y.double() - e).abs().max() / e.abs().max().clamp_min(1e-30))
            for y, e in zip(first, exact, strict=True)
        ]
        row["error"] = max(errors, key=lambda e: (e != e, e))
    except RuntimeError as error:
        text = str(error).splitlines()[0][:300]
        refused = any(reason in text for reason in REFUSALS) and NO_REFUSAL not in text
        row["refused" if refused else "fault"] = text
        return row
    if not row["error"] <= allowed:
        row["fault"] = f"error {row['error']:.2g}, allowed {allowed:.2g}"
    elif not row["repeats"]:
        row["fault"] = "the same call gave other bits"
    return row


def normal(*size: int, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    x = (torch.randn(*size, device=DEVICE) * scale).to(dtype)
    return x.contiguous(memory_format=torch.channels_last) if len(size) == 4 else x
