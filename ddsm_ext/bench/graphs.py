"""Calls captured into CUDA graphs, so that small problems are timed without their launches."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar

import torch

from ddsm_ext.bench.timing import Timing, interleaved
from ddsm_ext.runtime.graphs import GraphPool

Key = TypeVar("Key", bound=Hashable)
_CALLS_A_GRAPH = 20  # a replay costs microseconds itself


def captured(call: Callable[[], object], calls: int = _CALLS_A_GRAPH) -> Callable[[], object]:
    """Return the replay of a CUDA graph that makes `calls` calls in a row.

    Args:
        call: work on the current GPU that allocates from torch and waits for nothing.
        calls: how often the graph makes it.
    """

    def repeat() -> None:
        for _ in range(calls):
            call()

    return GraphPool(torch.device("cuda", torch.cuda.current_device())).capture(repeat)


def interleaved_graphs(
    calls: Mapping[Key, Callable[[], object]], **options: Any
) -> dict[Key, Timing]:
    """`interleaved` with every call captured; returns the times of single calls."""
    replays = {name: captured(call) for name, call in calls.items()}
    return {
        name: Timing(tuple(ms / _CALLS_A_GRAPH for ms in timing.rounds_ms))
        for name, timing in interleaved(replays, **options).items()
    }
