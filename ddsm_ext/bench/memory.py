"""Peak of what calls allocate, buffers inside PyTorch's own ops included."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from itertools import accumulate
from typing import TypeVar

import torch
from torch.profiler import ProfilerActivity, profile, record_function

Key = TypeVar("Key", bound=Hashable)


def peak_bytes(calls: Mapping[Key, Callable[[], object]], *, device: str = "cpu") -> dict[Key, int]:
    """Return the most bytes that each call holds at once beyond what was held before it.

    The profiler sees every block of PyTorch's CPU allocator: also the copy of a sliced weight that
    an op makes inside, which no hook on tensors sees. On a GPU the allocator keeps count itself;
    what a CUDA graph has held since its capture is not in it (`held_gpu_bytes` is).

    Args:
        calls: name -> call; one run of each is recorded, so warm them up first.
        device: "cpu" or "cuda".
    """
    if device == "cuda":
        return {key: _gpu_peak(call) for key, call in calls.items()}
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        for number, call in enumerate(calls.values()):
            with record_function(f"peak_bytes.{number}"):
                call()
    assert recorded.profiler is not None
    events = sorted(recorded.profiler.kineto_results.events(), key=lambda e: e.start_ns())
    blocks = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    spans = {e.name(): (e.start_ns(), e.end_ns()) for e in events}
    return {
        key: max(accumulate((size for at, size in blocks if start <= at <= end), initial=0))
        for number, key in enumerate(calls)
        for start, end in [spans[f"peak_bytes.{number}"]]
    }


def _gpu_peak(call: Callable[[], object]) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def held_gpu_bytes() -> int:
    """Return what torch holds of the GPU's memory now, graphs' pools included, free blocks not."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved()
