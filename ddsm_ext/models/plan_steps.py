"""Steps on the CPU: one native call each."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ddsm_ext.models.step_key import StepKey
from ddsm_ext.models.step_walk import StepWalk
from ddsm_ext.models.unet import SlimmableUNet
from ddsm_ext.nn.sinusoidal import embed_time
from ddsm_ext.runner.layers import Layers
from ddsm_ext.runner.program import Buffer, Plan, Program
from ddsm_ext.runner.weights import WatchedWeights

_EMBEDDINGS_KEPT = 4096


@dataclass(frozen=True)
class _Step:
    """A program and the buffers through which a caller feeds and reads it."""

    program: Program
    x: Buffer
    embedding: Buffer
    y: Buffer


class PlanSteps:
    """Compiles a step into a plan at its first use and again when a weight has changed.

    All plans share one piece of memory.
    """

    dtypes = (torch.float32, torch.bfloat16)

    def __init__(self, net: SlimmableUNet) -> None:
        self._arena = torch.empty(0, dtype=torch.uint8)
        self._steps: dict[StepKey, _Step] = {}
        self._plans: dict[StepKey, Plan] = {}
        self._weights = WatchedWeights(net)
        self._embeddings: dict[float, Tensor] = {}

    def reason_against(self, net: SlimmableUNet) -> str | None:
        """See `Steps`."""
        for name, parameter in net.named_parameters():
            # A convolution's weight is rearranged in any case, but watched as one piece of memory.
            dense = parameter.dim() == 4 and parameter.is_contiguous(
                memory_format=torch.channels_last
            )
            if not (dense or parameter.is_contiguous()):
                return f"{name} is not contiguous"
        return None

    def renew(self, net: SlimmableUNet) -> None:
        """See `Steps`."""
        self._weights = WatchedWeights(net)

    def prepare(self, net: SlimmableUNet, key: StepKey) -> None:
        """See `Steps`."""
        self._refresh()
        self._step(net, key)

    def run(self, net: SlimmableUNet, key: StepKey, x: Tensor, t: Tensor) -> Tensor:
        """See `Steps`."""
        self._refresh()
        step, plan = self._step(net, key), self._bound(key)
        shape = (x.shape[0], x.shape[2], x.shape[3], x.shape[1])
        plan.view(step.x, x.dtype, shape).copy_(x.permute(0, 2, 3, 1))
        ch = net.config.ch
        plan.view(step.embedding, torch.float32, (len(x), ch)).copy_(self._embedding(net, t))
        plan.run()
        y = plan.view(step.y, x.dtype, shape).clone()  # [N, H, W, C]
        return y.permute(0, 3, 1, 2)

    def activation_bytes(self, net: SlimmableUNet, key: StepKey) -> int:
        """See `Steps`."""
        self._refresh()
        return self._step(net, key).program.arena_bytes

    def held_bytes(self) -> int:
        """See `Steps`."""
        return self._arena.numel()

    def _refresh(self) -> None:
        """Forget everything made from weights that have changed."""
        if self._weights.changed():
            self._steps.clear()
            self._plans.clear()
            self._embeddings.clear()

    def _step(self, net: SlimmableUNet, key: StepKey) -> _Step:
        if key not in self._steps:
            self._steps[key] = _compile(net, key)
        return self._steps[key]

    def _bound(self, key: StepKey) -> Plan:
        program = self._steps[key].program
        if program.arena_bytes > self._arena.numel():
            needed = max(step.program.arena_bytes for step in self._steps.values())
            with torch.inference_mode(False):
                self._arena = torch.empty(needed, dtype=torch.uint8)
            self._plans.clear()
        if key not in self._plans:
            self._plans[key] = program.bind(self._arena)
        return self._plans[key]

    def _embedding(self, net: SlimmableUNet, t: Tensor) -> Tensor:
        """Sinusoidal embedding [N, ch] or, for one t in all rows as in sampling, [1, ch]."""
        if len(t) > 1 and t.stride(0) != 0:
            return _embed(net, t)
        value = t[0].item()
        if value not in self._embeddings:
            if len(self._embeddings) >= _EMBEDDINGS_KEPT:
                self._embeddings.clear()
            self._embeddings[value] = _embed(net, t[:1])
        return self._embeddings[value]


def _embed(net: SlimmableUNet, t: Tensor) -> Tensor:
    return embed_time(t, net.config.ch, net.time_embedding.table, torch.float32)


def _compile(net: SlimmableUNet, key: StepKey) -> _Step:
    program, channels = Program(), net.config.image_channels
    layers = Layers(program, key.images, key.dtype)
    x = layers.activation(channels, key.image_height, key.image_width)
    embedding = layers.floats(key.images * net.config.ch)
    y = layers.activation(channels, key.image_height, key.image_width)
    program.pinned += [x.buffer, embedding, y.buffer]
    StepWalk(net, layers, key.width)(x, embedding, y=y)
    return _Step(program, x.buffer, embedding, y.buffer)
