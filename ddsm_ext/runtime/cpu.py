"""Steps on the CPU: one native call each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ddsm_ext.graph.node import Node
from ddsm_ext.ops._packed import LARGEST_KERNEL
from ddsm_ext.ops._pages import empty_on_huge_pages
from ddsm_ext.ops._weights import WatchedWeights
from ddsm_ext.ops.embedding import sliced_embedding
from ddsm_ext.runtime.backend import Network, StepKey
from ddsm_ext.runtime.cpu_layers import Layers
from ddsm_ext.runtime.inputs import embed_node, in_blocks
from ddsm_ext.runtime.operands import JoinedWeights
from ddsm_ext.runtime.program import Buffer, Plan, Program
from ddsm_ext.runtime.step_cache import StepCache
from ddsm_ext.runtime.words import missing_word, run_words

_EMBEDDINGS_KEPT = 4096
# A step of the CIFAR-10 U-Net takes 0.3 MB beside its weights: two hundred of them.
MOST_STEP_BYTES = 64 << 20


@dataclass(frozen=True)
class _Step:
    """A program and the buffers through which a caller feeds and reads it."""

    program: Program
    x: Buffer
    rows: dict[Node, Buffer]  # embeddings of timesteps and labels, [N, c] float32
    y: Buffer
    context: Buffer | None


@dataclass(frozen=True)
class _Bound:
    """A step's plan, and its buffers as tensors."""

    plan: Plan
    x: Tensor  # [N, H, W, C]
    rows: list[tuple[Node, Tensor]]  # [N, c]
    y: Tensor  # [N, H, W, C']
    context: Tensor | None  # [N, T, C'']


class _Steps(StepCache[_Step]):
    """Compiled steps, and the joined weights that all of them read."""

    def __init__(self, most_bytes: int) -> None:
        super().__init__(most_bytes)
        self.joined = JoinedWeights()

    def clear(self) -> None:
        """Forget everything made from the weights."""
        super().clear()
        self.joined.clear()


class PlanSteps:
    """Compiles a step into a plan at its first use and again when a weight has changed.

    All plans share one piece of memory and the weights as the kernels read them. What else the
    steps hold is bounded: those not used for longest are dropped, and compiled anew if asked for.

    Args:
        net: the network.
        most_step_bytes: bound of what the steps hold, the shared memory and weights excepted.
    """

    dtypes = (torch.float32, torch.bfloat16)

    def __init__(self, net: Network, most_step_bytes: int = MOST_STEP_BYTES) -> None:
        self._arena = torch.empty(0, dtype=torch.uint8, device="cpu")
        self._steps = _Steps(most_step_bytes)
        self._plans: dict[StepKey, _Bound] = {}
        self._weights = WatchedWeights(net)
        self._embeddings: dict[tuple[int, float], Tensor] = {}

    def reason_against(self, net: Network) -> str | None:
        """See `Steps`."""
        missing = missing_word(net.graph, "CPU")
        if missing is not None:
            return missing
        for node in net.graph.nodes:
            if node.kernel > LARGEST_KERNEL:
                return f"{node.name}: the CPU runtime has no {node.kernel}x{node.kernel} kernels"
        for name, parameter in net.named_parameters():
            # A convolution's weight is rearranged in any case, but watched as one piece of memory.
            dense = parameter.dim() == 4 and parameter.is_contiguous(
                memory_format=torch.channels_last
            )
            if not (dense or parameter.is_contiguous()):
                return f"{name} is not contiguous"
        return None

    def renew(self, net: Network, *, whole: bool = False) -> bool:
        """See `Steps`."""
        changed = self._weights.changed(whole=whole)
        if changed:  # forget everything made from the weights
            self._steps.clear()
            self._plans.clear()
            self._embeddings.clear()
        return changed

    def prepare(self, net: Network, key: StepKey) -> None:
        """See `Steps`."""
        self._step(net, key)

    def run(self, net: Network, key: StepKey, inputs: Mapping[str, Tensor]) -> Tensor:
        """See `Steps`."""
        bound = self._bound(net, key)
        bound.x.copy_(inputs["x"].permute(0, 2, 3, 1))
        for node, rows in bound.rows:
            found = self._rows(net, node, inputs, rows.shape[1])
            rows.copy_(in_blocks(found, len(rows)))
        if bound.context is not None:
            bound.context.copy_(inputs["context"].squeeze(3).transpose(1, 2))
        bound.plan.run()
        return bound.y.clone().permute(0, 3, 1, 2)  # [N, C', H, W]

    def plan(self, net: Network, key: StepKey) -> Plan:
        """Return what `run` runs between its copies, to be measured by itself."""
        return self._bound(net, key).plan

    def activation_bytes(self, net: Network, key: StepKey) -> int:
        """See `Steps`."""
        return self._step(net, key).program.arena_bytes

    def held_bytes(self) -> int:
        """See `Steps`."""
        return self._arena.numel() + self._steps.nbytes() + self._steps.joined.nbytes()

    def _step(self, net: Network, key: StepKey) -> _Step:
        step = self._steps.get(key)
        if step is None:
            step = _compile(net, key, self._steps.joined)
            for dropped in self._steps.put(key, step, step.program.nbytes()):
                self._plans.pop(dropped, None)
        return step

    def _bound(self, net: Network, key: StepKey) -> _Bound:
        step, graph = self._step(net, key), net.graph
        if key in self._plans:
            return self._plans[key]
        if step.program.arena_bytes > self._arena.numel():
            needed = max(step.program.arena_bytes for step in self._steps.values())
            self._arena = empty_on_huge_pages(needed, torch.uint8)
            self._plans.clear()
        counts, pixels = net.config.counts(key.width), (key.image_height, key.image_width)
        # In inference mode they could not be written again outside of it.
        with torch.inference_mode(False):
            plan = step.program.bind(self._arena)

            def view(buffer: Buffer, dtype: torch.dtype, *shape: int, labels: int = 1) -> Tensor:
                return plan.view(buffer, dtype, (key.images * labels, *shape))

            self._plans[key] = _Bound(
                plan,
                view(step.x, key.dtype, *pixels, graph.inputs["x"].out.c_max),
                [
                    (node, view(buffer, torch.float32, counts[node.index], labels=key.labels))
                    for node, buffer in step.rows.items()
                ],
                view(step.y, key.dtype, *pixels, graph.output.out.c_max, labels=key.labels),
                None if step.context is None else view(
                    step.context, key.dtype, key.tokens, graph.inputs["context"].out.c_max
                ),
            )
        return self._plans[key]

    def _rows(self, net: Network, node: Node, inputs: Mapping[str, Tensor], c: int) -> Tensor:
        """Embeddings [N, c] of timesteps or labels or, for one in all rows, [1, c]."""
        given = inputs[node.reads[0].name]
        if node.op == "embed":
            rows = sliced_embedding(net.layer(node.name).weight, given, c)
            if node.shift is None:
                return rows
            return rows + in_blocks(self._rows(net, node.shift, inputs, c), len(rows))
        if given.numel() > 1:
            if given.stride(0) != 0:
                return _embedded(net, node, given)
            given = given[:1]
        key = (node.index, given.item())
        if key not in self._embeddings:
            if len(self._embeddings) >= _EMBEDDINGS_KEPT:
                self._embeddings.clear()
            self._embeddings[key] = _embedded(net, node, given)
        return self._embeddings[key]


def _embedded(net: Network, node: Node, t: Tensor) -> Tensor:
    """Return the embedding of timesteps [N] that a node stands for, [N, dim] float32."""
    return embed_node(node, t, net.get_buffer(node.name), torch.float32)


def _compile(net: Network, key: StepKey, joined: JoinedWeights) -> _Step:
    program, graph, counts = Program(), net.graph, net.config.counts(key.width)
    images = key.images * key.labels
    layers = Layers(program, images, key.dtype, joined=joined)
    once = Layers(program, key.images, key.dtype, joined=joined) if key.labels > 1 else None
    x = (once or layers).activation(
        graph.inputs["x"].out.c_max, key.image_height, key.image_width
    )
    rows = {
        node: layers.floats(images * counts[node.index])
        for node in graph.nodes
        # Not those that others add to themselves: `_rows` does.
        if node.op in ("sinusoid", "embed")
        and not all(reader.op == "embed" for reader in graph.readers[node])
    }
    of_nodes = {node.index: buffer for node, buffer in rows.items()}
    context = None
    if "context" in graph.inputs:
        context = layers.activation(graph.inputs["context"].out.c_max, key.tokens, 1)
    y = run_words(net, key.width, layers, x, of_nodes, once, key.labels, context)
    tokens = None if context is None else context.buffer
    program.pinned += [x.buffer, *rows.values(), y.buffer, *([tokens] if tokens else [])]
    return _Step(program, x.buffer, rows, y.buffer, tokens)
