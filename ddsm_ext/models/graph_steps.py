"""Steps on an NVIDIA GPU: one CUDA graph each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ddsm_ext.models.step_key import StepError, StepKey
from ddsm_ext.models.step_walk import StepWalk
from ddsm_ext.models.unet import SlimmableUNet
from ddsm_ext.ops._fused import make_tickets, precision, sinusoidal_embedding, why_missing
from ddsm_ext.runner.cuda_layers import Activation, CudaLayers
from ddsm_ext.runner.graphs import Call, GraphPool, Graphs
from ddsm_ext.runner.weights import WatchedPlaces

Precision = tuple[bool, bool]


def run_step(
    net: SlimmableUNet, width: float, x: Tensor, t: Tensor, tickets: Tensor | None = None
) -> Tensor:
    """Run a step with the CUDA kernels, at once.

    Args:
        net: the network, on x's device.
        width: a width that its config has checked.
        x: [N, C, H, W], channels_last.
        t: [N] timesteps, float32, float64 or int64.
        tickets: see `CudaLayers`.

    Returns:
        [N, C, H, W], channels_last.
    """
    # The one launch of a step that waits for everything before it, as CudaLayers wants it.
    embedding = sinusoidal_embedding(t, net.config.ch, net.time_embedding.table, x)  # [N, ch]
    return StepWalk(net, CudaLayers(tickets), width)(Activation(x), embedding).tensor


@dataclass(frozen=True)
class _Graph:
    """A recorded step: what it reads, and what it left until another one is replayed."""

    x: Tensor  # [N, C, H, W], channels_last
    t: Tensor  # [N] float32
    left: list[Tensor]  # the prediction [N, C, H, W]
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
    """

    dtypes = (torch.float32, torch.bfloat16, torch.float16)

    def __init__(
        self,
        net: SlimmableUNet,
        device: torch.device,
        make_graphs: Callable[[torch.device], Graphs] = GraphPool,
        step: Callable[[SlimmableUNet, float, Tensor, Tensor, Tensor], Tensor] = run_step,
    ) -> None:
        self._device = device
        self._make_graphs = make_graphs
        self._run_step = step
        self._places = WatchedPlaces(net)
        self._pool: _Pool | None = None
        self._graphs: dict[tuple[StepKey, Precision], _Graph] = {}
        self._failures: dict[StepKey, str] = {}

    def reason_against(self, net: SlimmableUNet) -> str | None:
        """See `Steps`."""
        missing = why_missing(self._device.type)
        if missing is not None:
            return missing
        for name, parameter in net.named_parameters():
            # The kernels take any layout, others only element by element.
            if parameter.dim() == 4 and not parameter.is_contiguous(
                memory_format=torch.channels_last
            ):
                return f"{name} is not channels_last"
        return None

    def renew(self, net: SlimmableUNet) -> None:
        """See `Steps`."""
        places = WatchedPlaces(net)
        if places.layout != self._places.layout:
            # A pool's handle cannot be used again once its last graph is gone.
            self._graphs.clear()
            self._failures.clear()
            self._pool = None
        self._places = places

    def prepare(self, net: SlimmableUNet, key: StepKey) -> None:
        """See `Steps`."""
        self._graph(net, key)

    def run(self, net: SlimmableUNet, key: StepKey, x: Tensor, t: Tensor) -> Tensor:
        """See `Steps`."""
        if self._places.moved():
            self.renew(net)
        graph = self._graph(net, key)
        assert self._pool is not None
        self._pool.graphs.wait()
        graph.x.copy_(x)
        graph.t.copy_(t)
        graph.replay()
        return graph.left[0].clone(memory_format=torch.channels_last)

    def activation_bytes(self, net: SlimmableUNet, key: StepKey) -> int:
        """See `Steps`; captures the step once more, in memory of its own."""
        pool = self._make_pool()
        graph = self._capture(net, key, pool)  # keeps the pool's memory
        nbytes = pool.graphs.nbytes()
        del graph
        return nbytes

    def held_bytes(self) -> int:
        """See `Steps`."""
        return self._pool.graphs.nbytes() if self._pool else 0

    def _graph(self, net: SlimmableUNet, key: StepKey) -> _Graph:
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

    def _capture(self, net: SlimmableUNet, key: StepKey, pool: _Pool) -> _Graph:
        shape = (key.images, net.config.image_channels, key.image_height, key.image_width)
        # In inference mode they could not be written again outside of it.
        with torch.inference_mode(False), torch.no_grad():
            x = torch.zeros(shape, dtype=key.dtype, device=self._device)
            x = x.contiguous(memory_format=torch.channels_last)
            t = torch.zeros(key.images, device=self._device)
            left: list[Tensor] = []

            def step() -> None:
                left[:] = [self._run_step(net, key.width, x, t, pool.tickets)]

            return _Graph(x, t, left, pool.graphs.capture(step))
