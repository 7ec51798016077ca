"""Calls captured into CUDA graphs, so that small problems are timed without their launches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from ddsm_ext.bench.timing import Key, Timing, interleaved
from ddsm_ext.runtime.graphs import GraphPool

CALLS_A_GRAPH = 20  # a replay costs microseconds itself


def captured(call: Callable[[], object]) -> Callable[[], object]:
    """Return the replay of a CUDA graph that makes CALLS_A_GRAPH calls in a row.

    Args:
        call: work on the current GPU that allocates from torch and waits for nothing.
    """

    def repeat() -> None:
        for _ in range(CALLS_A_GRAPH):
            call()

    return GraphPool(torch.device("cuda", torch.cuda.current_device())).capture(repeat)


def interleaved_graphs(
    calls: Mapping[Key, Callable[[], object]], **options: Any
) -> dict[Key, Timing]:
    """`interleaved` with every call captured; returns the times of single calls."""
    replays = {name: captured(call) for name, call in calls.items()}
    return {
        name: Timing(tuple(ms / CALLS_A_GRAPH for ms in timing.rounds_ms))
        for name, timing in interleaved(replays, **options).items()
    }
