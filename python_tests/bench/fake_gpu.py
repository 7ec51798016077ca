"""A `Setting` that takes the GPU's way through the benchmarks, on the CPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ddsm_ext.bench import conditions, ops, steps
from ddsm_ext.bench.conditions import Setting
from ddsm_ext.bench.timing import interleaved

PROPERTIES = SimpleNamespace(
    name="NVIDIA Fake", major=9, minor=0, multi_processor_count=132, total_memory=2**37
)


class FakeGpu(Setting):
    @property
    def on_gpu(self) -> bool:
        return True

    def conditions(self, batch: int) -> dict[str, Any]:
        return super().conditions(batch) | {"device": "cuda"}


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace what needs a GPU: its queries, its graphs, and probes too large for a CPU."""
    for name in ("synchronize", "empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    for name in ("memory_allocated", "memory_reserved", "max_memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda: 1000)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: PROPERTIES)
    monkeypatch.setattr(conditions, "_driver_version", lambda: "580.1")
    monkeypatch.setattr(conditions, "_GPU_SIZE", 64)
    monkeypatch.setattr(conditions, "_GPU_COPY_BYTES", 2**21)
    monkeypatch.setattr(ops, "interleaved_graphs", interleaved)
    monkeypatch.setattr(steps, "held_gpu_bytes", lambda: 1000)
