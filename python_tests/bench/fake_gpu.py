"""A GPU played by the CPU, for a `Setting` that takes the GPU's way through the benchmarks."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from ddsm_ext.bench.conditions import Setting
from ddsm_ext.bench.device import CALLS_A_GRAPH, Gpu
from ddsm_ext.models.network import SlimmableNetwork
from ddsm_ext.runtime.runner import StepRunner


class FakeGpu(Gpu):
    """Answers what needs a GPU, captures nothing, and is probed by what a CPU can compute.

    Args:
        runner: returns what runs a network's steps.
    """

    place = "cpu"
    roof_size = 64
    copy_bytes = 2**21

    def __init__(self, *, runner: Callable[[SlimmableNetwork], StepRunner] = StepRunner) -> None:
        self._runner = runner

    def synchronize(self) -> None:
        pass

    def properties(self) -> Any:
        return SimpleNamespace(
            name="NVIDIA Fake", major=9, minor=0, multi_processor_count=132, total_memory=2**37
        )

    def driver_version(self) -> str | None:
        return "580.1"

    def captured(self, call: Callable[[], object]) -> Callable[[], object]:
        return lambda: [call() for _ in range(CALLS_A_GRAPH)]

    def peak_of(self, call: Callable[[], object]) -> int:
        call()
        return 0

    def held_bytes(self) -> int:
        return 1000

    def runner(self, net: SlimmableNetwork) -> StepRunner:
        return self._runner(net)


def on_fake_gpu(dtype: str, device: FakeGpu | None = None) -> Setting:
    """Return a setting on the fake GPU, or on one of its kind."""
    return Setting(dtype, 1, device or FakeGpu())
