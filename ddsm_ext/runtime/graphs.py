"""CUDA graphs that share one pool of memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

Call = Callable[[], object]


class Graphs(Protocol):
    """What records calls; `GraphPool` does it with CUDA graphs."""

    def capture(self, call: Call) -> Call:
        """Record the device work of `call`; the result does it again, on the current stream."""

    def wait(self) -> None:
        """Let the current stream wait for all replays so far."""

    def nbytes(self) -> int:
        """Memory that all recorded work together holds."""


class GraphPool:
    """CUDA graphs whose intermediate tensors lie in the same memory: the largest one's.

    Replays on several streams follow each other if each begins with `wait`. Only tensors made
    outside of `capture` keep their values from one replay to another's.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._handle = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)
        self._last = self._stream

    def capture(self, call: Call) -> Call:
        """Record the kernels of `call`, which runs twice; replay them with the result.

        The first run is not captured, and follows all replays so far.

        Raises:
            RuntimeError: `call` does something that a graph cannot hold.
        """
        with torch.cuda.device(self._device):
            # Calls share memory with replays that may still run, on any stream.
            self.wait()
            self._stream.wait_stream(torch.cuda.current_stream())
            # Not captured: kernels are loaded and library handles made at their first use.
            with torch.cuda.stream(self._stream):
                call()
            torch.cuda.current_stream().wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            # thread_local: another thread's allocation must not end the capture.
            with torch.cuda.graph(
                graph,
                pool=self._handle,
                stream=self._stream,
                capture_error_mode="thread_local",
            ):
                call()
        return graph.replay

    def wait(self) -> None:
        """Let the current stream wait for all replays so far."""
        stream = torch.cuda.current_stream(self._device)
        if stream != self._last:
            stream.wait_stream(self._last)
            self._last = stream

    def nbytes(self) -> int:
        """Memory that the pool holds on the device."""
        return sum(
            segment["total_size"]
            for segment in torch.cuda.memory_snapshot()
            if tuple(segment["segment_pool_id"]) == tuple(self._handle)
        )
