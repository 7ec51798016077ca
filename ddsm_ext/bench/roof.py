"""The fastest that this machine multiplies and, for a GPU, copies: measured in the same run."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from ddsm_ext.bench.conditions import Setting
from ddsm_ext.bench.timing import interleaved

_SIZE = 1024  # three operands of 4 MB: large enough for the peak, small enough for a second
_GPU_SIZE = 8192  # 1.1 T FLOPs: 1.4 ms on an H100 in bfloat16
_GPU_COPY_BYTES = 2**32  # read and written; 80 times an H100's L2 cache
# These have no product in bfloat16: torch.mm in it takes seconds and could not beat float32.
_WITHOUT_BF16 = ("DEFAULT", "AVX2")


def measure_roof(setting: Setting) -> dict[str, Any]:
    """Return MACs a second of the fastest torch.mm and, on a GPU, bytes a second of a large copy.

    On the CPU float32 counts for every dtype: without products in bfloat16 it computes those in
    float32.

    Args:
        setting: what the work that is compared with the roof runs on; active already.

    Returns:
        "macs_per_s" and "probe", which says what ran; on a GPU also "bytes_per_s" (read and
        written) and "bytes_probe".
    """
    if setting.on_gpu:
        return _gpu_roof(setting)
    skipped = torch.backends.cpu.get_cpu_capability() in _WITHOUT_BF16
    dtypes = {torch.float32} if skipped else {torch.float32, setting.kind}
    factors = {kind: torch.ones(_SIZE, _SIZE, dtype=kind) for kind in dtypes}
    times = interleaved(
        {kind: partial(torch.mm, a, a) for kind, a in factors.items()}, rounds=9, **setting.timing
    )
    fastest = min(times, key=lambda kind: times[kind].min_ms)
    name = str(fastest).removeprefix("torch.")
    return {
        "macs_per_s": _SIZE**3 / (times[fastest].min_ms / 1000),
        "probe": f"torch.mm of {_SIZE} x {_SIZE} {name}",
    }


def _gpu_roof(setting: Setting) -> dict[str, Any]:
    # Random values: zeros and ones let the GPU draw less power and clock higher.
    a = torch.randn(_GPU_SIZE, _GPU_SIZE, device=setting.device).to(setting.kind)
    source = torch.randn(_GPU_COPY_BYTES // 8, device=setting.device)
    target = torch.empty_like(source)
    calls = {"mm": partial(torch.mm, a, a), "copy": partial(target.copy_, source)}
    times = interleaved(calls, rounds=9, **setting.timing)
    return {
        "macs_per_s": _GPU_SIZE**3 / (times["mm"].min_ms / 1000),
        "probe": f"torch.mm of {_GPU_SIZE} x {_GPU_SIZE} {setting.dtype}",
        "bytes_per_s": _GPU_COPY_BYTES / (times["copy"].min_ms / 1000),
        "bytes_probe": f"copy of {_GPU_COPY_BYTES // 2**21} MiB",
    }


def roof_ms(macs: float, roof: dict[str, Any], moved_bytes: float = 0.0) -> float:
    """Milliseconds that so many multiply-accumulates and bytes take at the roof, the longer one."""
    transfer_s = moved_bytes / roof["bytes_per_s"] if "bytes_per_s" in roof else 0.0
    return 1000 * max(macs / roof["macs_per_s"], transfer_s)
