"""The fastest that multiply-accumulates run on this machine, measured by a matrix product."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from ddsm_ext.bench.timing import clock_of, interleaved

_SIZE = 1024  # three operands of 4 MB: large enough for the peak, small enough for a second
# These have no product in bfloat16: torch.mm in it takes seconds and could not beat float32.
_WITHOUT_BF16 = ("DEFAULT", "AVX2")


def measure_roof(dtype: torch.dtype, threads: int) -> dict[str, Any]:
    """Return MACs a second of the fastest torch.mm, in `dtype` or in float32, as a roof.

    float32 counts for every dtype: a CPU without products in bfloat16 computes them in float32.

    Args:
        dtype: type of the work that is compared with the roof.
        threads: torch threads, already set; 1 is timed in the thread's CPU time.

    Returns:
        "macs_per_s" and "probe", which says what ran.
    """
    skipped = torch.backends.cpu.get_cpu_capability() in _WITHOUT_BF16
    dtypes = {torch.float32} if skipped else {torch.float32, dtype}
    factors = {kind: torch.ones(_SIZE, _SIZE, dtype=kind) for kind in dtypes}
    times = interleaved(
        {kind: partial(torch.mm, a, a) for kind, a in factors.items()},
        rounds=9,
        clock=clock_of(threads)[0],
    )
    fastest = min(times, key=lambda kind: times[kind].min_ms)
    name = str(fastest).removeprefix("torch.")
    return {
        "macs_per_s": _SIZE**3 / (times[fastest].min_ms / 1000),
        "probe": f"torch.mm of {_SIZE} x {_SIZE} {name}",
    }


def roof_ms(macs: float, roof: dict[str, Any]) -> float:
    """Milliseconds that so many multiply-accumulates take at the roof."""
    return 1000 * macs / roof["macs_per_s"]
