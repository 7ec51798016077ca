"""Steps on an NVIDIA GPU: one CUDA graph each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ddsm_ext.ops._fused import make_tickets, precision, sinusoidal_embedding, why_missing
from ddsm_ext.ops._weights import WatchedPlaces
from ddsm_ext.ops.embedding import sliced_embedding
from ddsm_ext.runtime.backend import Network, StepError, StepKey
from ddsm_ext.runtime.cuda_layers import Activation, CudaLayers
from ddsm_ext.runtime.inputs import in_blocks
from ddsm_ext.runtime.words import missing_word, run_words

Precision = tuple[bool, bool]
Call = Callable[[], object]


def run_step(
    net: Network, width: float, inputs: Mapping[str, Tensor], tickets: Tensor | None = None
) -> Tensor:
    """Run a step with the CUDA kernels, at once.

    Args:
        net: the network, on x's device.
        width: a width that its config has checked.
        inputs: by name: x [N, C, H, W], channels_last; t [N] timesteps, float32, float64 or int64;
            y [N] int64 labels where the network has them, or [k N] in blocks of all images;
            context [N, C, T, 1] tokens, channels_last, where it has any.
        tickets: see `CudaLayers`.

    Returns:
        [N, C', H, W], or of [k N], channels_last.
    """
    x, counts = inputs["x"], net.config.counts(width)
    images = len(inputs["y"]) if "y" in inputs else len(x)
    rows: dict[int, Tensor] = {}
    # Time embeddings last: theirs are the launches of a step that wait for everything before them,
    # as CudaLayers wants it.
    for node in sorted(net.graph.nodes, key=lambda node: node.op == "sinusoid"):
        if node.op == "embed":
            labels, table = inputs[node.reads[0].name], net.layer(node.name).weight
            rows[node.index] = sliced_embedding(table, labels, counts[node.index]).to(x.dtype)
        elif node.op == "sinusoid":
            t, frozen = inputs[node.reads[0].name], net.get_buffer(node.name)
            t = in_blocks(t, images)
            rows[node.index] = sinusoidal_embedding(
                t, node.out.c_max, None if node.fourier else frozen, x, halves=node.halves,
                swapped=node.swapped, freq_shift=node.freq_shift,
                frequencies=frozen if node.fourier else None,
            )  # fmt: skip
    for node in net.graph.nodes:  # by torch's kernels, which overlap nothing either
        if node.op == "embed" and node.shift is not None:
            rows[node.index] = rows[node.index] + rows[node.shift.index]
    layers, blocks = CudaLayers(tickets), images // len(x)
    once = layers if blocks > 1 else None
    context = Activation(inputs["context"]) if "context" in inputs else None
    return run_words(net, width, layers, Activation(x), rows, once, blocks, context).tensor


class Graphs(Protocol):
    """What records calls; `GraphPool` does it with CUDA graphs."""

    def capture(self, call: Call) -> Call:
        """Record the device work of `call`; the result does it again, on the current stream."""

    def wait(self) -> None:
        """Let the current stream wait for all replays so far."""

    def finish(self) -> None:
        """Wait, here, for all replays so far: what they use may then be freed."""

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
        current = torch.cuda.current_stream(self._device)
        # Entered again, so that it is current afterwards even where a capture fails.
        with torch.cuda.device(self._device), torch.cuda.stream(current):
            # Calls share memory with replays that may still run, on any stream.
            self.wait()
            self._stream.wait_stream(current)
            # Not captured: kernels are loaded and library handles made at their first use.
            with torch.cuda.stream(self._stream):
                call()
            current.wait_stream(self._stream)
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

    def finish(self) -> None:
        """See `Graphs`."""
        self._last.synchronize()

    def nbytes(self) -> int:
        """Memory that the pool holds on the device."""
        return sum(
            segment["total_size"]
            for segment in torch.cuda.memory_snapshot()
            if tuple(segment["segment_pool_id"]) == tuple(self._handle)
        )


@dataclass(frozen=True)
class _Graph:
    """A recorded step: what it reads, and what it left until another one is replayed."""

    inputs: dict[str, Tensor]  # x [N, C, H, W], channels_last; t [N] float32; y [N] int64
    left: list[Tensor]  # the prediction [N, C', H, W]
    replay: Call


@dataclass(frozen=True)
class _Pool:
    """What the graphs share, of which one runs at a time: `Graphs.wait` sees to that."""

    graphs: Graphs
    tickets: Tensor


class GraphSteps:
    """Captures a step at its first use; graphs read the weights where they are.

    New values of weights (an optimizer's step, an average copied over them) therefore need nothing;
    all graphs are dropped when a parameter is elsewhere, has another dtype or another layout. They
    share one pool of memory, about that of the widest.

    Args:
        net: the network.
        device: where its parameters are.
        make_graphs: makes what records the steps.
        step: what is recorded.
        missing: why a kind of device has no kernels for it; None: it has them.
    """

    dtypes = (torch.float32, torch.bfloat16, torch.float16)

    def __init__(
        self,
        net: Network,
        device: torch.device,
        make_graphs: Callable[[torch.device], Graphs] = GraphPool,
        step: Callable[[Network, float, Mapping[str, Tensor], Tensor], Tensor] = run_step,
        missing: Callable[[str], str | None] = why_missing,
    ) -> None:
        self._device = device
        self._make_graphs = make_graphs
        self._run_step = step
        self._missing = missing
        self._places = WatchedPlaces(net)
        self._pool: _Pool | None = None
        self._graphs: dict[tuple[StepKey, Precision], _Graph] = {}
        self._failures: dict[StepKey, str] = {}

    def reason_against(self, net: Network) -> str | None:
        """See `Steps`."""
        missing = self._missing(self._device.type) or missing_word(net.graph, "CUDA")
        if missing is not None:
            return missing
        for name, parameter in net.named_parameters():
            # The kernels take any layout, others only element by element.
            if parameter.dim() == 4 and not parameter.is_contiguous(
                memory_format=torch.channels_last
            ):
                return f"{name} is not channels_last"
        return None

    def renew(self, net: Network, *, whole: bool = False) -> bool:
        """See `Steps`; graphs read the weights themselves."""
        changed = self._places.changed()
        if changed:
            if self._pool is not None:
                self._pool.graphs.finish()
            # A pool's handle cannot be used again once its last graph is gone.
            self._graphs.clear()
            self._failures.clear()
            self._pool = None
        return changed

    def prepare(self, net: Network, key: StepKey) -> None:
        """See `Steps`."""
        self._graph(net, key)

    def run(self, net: Network, key: StepKey, inputs: Mapping[str, Tensor]) -> Tensor:
        """See `Steps`."""
        graph = self._graph(net, key)
        assert self._pool is not None
        self._pool.graphs.wait()
        for name, tensor in graph.inputs.items():
            tensor.copy_(inputs[name])
        graph.replay()
        return graph.left[0].clone(memory_format=torch.channels_last)

    def activation_bytes(self, net: Network, key: StepKey) -> int:
        """See `Steps`; captures the step once more, in memory of its own."""
        pool = self._make_pool()
        graph = self._capture(net, key, pool)  # keeps the pool's memory
        nbytes = pool.graphs.nbytes()
        del graph
        return nbytes

    def held_bytes(self) -> int:
        """See `Steps`."""
        return self._pool.graphs.nbytes() if self._pool else 0

    def _graph(self, net: Network, key: StepKey) -> _Graph:
        kind = (key, precision(key.dtype))
        if kind not in self._graphs:
            if key in self._failures:
                raise StepError(self._failures[key])
            if self._pool is None:
                self._pool = self._make_pool()
            try:
                self._graphs[kind] = self._capture(net, key, self._pool)
            except RuntimeError as error:
                self._failures[key] = f"capturing it failed ({str(error).splitlines()[0]})"
                raise StepError(self._failures[key]) from error
        return self._graphs[kind]

    def _make_pool(self) -> _Pool:
        with torch.inference_mode(False):
            return _Pool(self._make_graphs(self._device), make_tickets(self._device))

    def _capture(self, net: Network, key: StepKey, pool: _Pool) -> _Graph:
        channels = net.graph.inputs["x"].out.c_max
        shape = (key.images, channels, key.image_height, key.image_width)
        # In inference mode they could not be written again outside of it.
        with torch.inference_mode(False), torch.no_grad():
            x = torch.zeros(shape, dtype=key.dtype, device=self._device)
            inputs = {
                name: torch.zeros(
                    key.images * (key.labels if name == "y" else 1),
                    dtype=torch.int64 if name == "y" else torch.float32,
                    device=self._device,
                )
                for name in net.graph.inputs
                if name != "augment"  # which steps do without
            }
            inputs["x"] = x.contiguous(memory_format=torch.channels_last)
            if "context" in inputs:
                channels = net.graph.inputs["context"].out.c_max
                tokens = x.new_zeros(key.images, key.tokens, channels)
                inputs["context"] = tokens.transpose(1, 2)[..., None]
            left: list[Tensor] = []

            def step() -> None:
                left[:] = [self._run_step(net, key.width, inputs, pool.tickets)]

            return _Graph(inputs, left, pool.graphs.capture(step))
