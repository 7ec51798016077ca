"""The words of a description on fused layers, the same for the CPU's plans and the GPU's steps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from ddsm_ext.graph.graph import Counts, Graph
from ddsm_ext.graph.node import Node, Values, run
from ddsm_ext.runtime.backend import Network
from ddsm_ext.runtime.operands import ConvWeight, Linear


class StepLayers(Protocol):
    """`cpu_layers.Layers`, which appends to a program, or `cuda_layers.CudaLayers`, which runs.

    Activations, norms and rows are the layers' own kinds of objects.
    """

    def linears(
        self, x: Any, c_in: int, linears: Sequence[Linear], *, silu: bool, shift: Any
    ) -> Iterable[Any]: ...
    def norm(
        self,
        sources: Any,
        weight: Tensor,
        bias: Tensor,
        groups: int,
        *,
        skip_offset: int | None,
        silu: bool,
        eps: float,
        scale: Any,
        shift: Any,
    ) -> Any: ...
    def conv2d(
        self,
        sources: Any,
        conv: ConvWeight,
        c_out: int,
        *,
        norm: Any,
        shift: Any,
        activation: str | None,
        gate: Any,
        residual: Any,
        shortcut: Any,
        scale: float,
        moments: bool,
    ) -> Any: ...
    def layer_norm(
        self, x: Any, weight: Tensor | None, bias: Tensor | None, *, eps: float, scale: Any,
        shift: Any,
    ) -> Any: ...  # fmt: skip
    def attention(self, qkv: Any, heads: int) -> Any: ...
    def cross_attention(self, q: Any, kv: Any, heads: int) -> Any: ...
    def resample(
        self, x: Any, *, up: bool, taps: int, ring: bool, residual: Any, scale: float
    ) -> Any: ...
    def repeated(self, x: Any, count: int) -> Any: ...
    def first_rows(self, rows: Any, count: int) -> Any: ...


@dataclass(frozen=True)
class _Normed:
    """Activations with a norm that their reader applies."""

    sources: tuple[Any, ...]
    norm: Any


@dataclass(frozen=True)
class _Shortcut:
    """A 1x1 convolution that its reader adds."""

    sources: tuple[Any, ...]
    conv: ConvWeight


class StepWords:
    """Calls fused layers: a convolution takes its norm, shift, residual and shortcut along.

    Args:
        net: the network.
        counts: active channels of its nodes.
        layers: what computes.
        rows: values of the nodes that need no layer: embeddings, by index.
        once: what computes images before labels take part, of one block of the images; `layers` are
            of `labels` such blocks. None: there is one block.
        labels: of each image.
    """

    def __init__(
        self,
        net: Network,
        counts: Counts,
        layers: StepLayers,
        rows: Mapping[int, Any],
        once: StepLayers | None = None,
        labels: int = 1,
    ) -> None:
        self._net = net
        self._graph = net.graph
        self._counts = counts
        self._layers = layers
        self._rows = rows
        self._once, self._labels = once, labels
        self._repeated: dict[Node, Any] = {}
        # Of linear layers that read one input: what makes their results in order.
        self._linears: dict[Node, Iterator[Any]] = {}

    def sinusoid(self, node: Node, value: Values) -> Any:
        """Timesteps as the caller embedded them, or None: it has added them to labels."""
        return self._rows.get(node.index)

    embed = sinusoid

    def linear(self, node: Node, value: Values) -> Any:
        """Linear layers; all that read the same rows and nothing else are one call."""
        if node.reads[0].op == "input":  # steps run where images were not augmented
            assert node.shift is not None
            return value[node.shift.index]
        siblings = self._graph.siblings(node)
        if not siblings:  # it has a shift, unlike any other
            siblings = (node,)
        if siblings[0] is node:
            weights = [
                Linear(layer.weight, layer.bias, self._counts[sibling.index])
                for sibling in siblings
                for layer in map(self._net.layer, sibling.layer_names)
            ]
            (x,) = node.reads
            shift = None if node.shift is None else value[node.shift.index]
            results = self._layers.linears(
                value[x.index], self._counts[x.index], weights, silu=node.silu, shift=shift
            )
            self._linears[node] = iter(results)
        results = self._linears[siblings[0]]
        parts = tuple(next(results) for _ in node.layer_names)
        return parts if node.parts else parts[0]

    def norm(self, node: Node, value: Values) -> _Normed:
        """A norm, which goes into the reading of its input."""
        layer = self._net.layer(node.name)
        sources = tuple(self._image(node, read, value) for read in node.reads)
        scale, shift = self._rows_of(node, node.modulate, value) or (None, None)
        norm = self._layers_of(node).norm(
            sources,
            layer.weight,
            layer.bias,
            layer.group_count(self._counts[node.index]),
            skip_offset=layer.skip_offset,
            silu=layer.silu,
            eps=layer.eps,
            scale=scale,
            shift=shift,
        )
        return _Normed(sources, norm)

    def dropout(self, node: Node, value: Values) -> Any:
        """Nothing: steps are for evaluation."""
        return value[node.reads[0].index]

    def conv(self, node: Node, value: Values) -> Any:
        """A convolution with all that is added to it."""
        sources, norm = self._sources(node, value)
        conv = self._conv_weight(node)
        if self._graph.is_shortcut(node):
            return _Shortcut(sources, conv)
        residual = None if node.residual is None else self._image(node, node.residual, value)
        shortcut = residual if isinstance(residual, _Shortcut) else None
        return self._layers_of(node).conv2d(
            sources,
            conv,
            self._counts[node.index],
            norm=norm,
            shift=self._rows_of(node, node.shift, value),
            activation=None,
            gate=None,
            residual=residual if shortcut is None else None,
            shortcut=None if shortcut is None else (shortcut.sources, shortcut.conv),
            scale=node.scale,
            moments=self._graph.wants_moments(node),
        )

    def pointwise(self, node: Node, value: Values) -> Any:
        """A linear layer on every pixel: a 1x1 convolution with all that is done to its result."""
        layer = self._net.layer(node.name)
        return self._layers_of(node).conv2d(
            (self._image(node, node.reads[0], value),),
            ConvWeight((layer.weight,), (layer.bias,)),
            self._counts[node.index],
            norm=None,
            shift=self._rows_of(node, node.shift, value),
            activation=node.activation,
            gate=self._rows_of(node, node.gate, value),
            residual=None if node.residual is None else self._image(node, node.residual, value),
            shortcut=None,
            scale=1.0,
            moments=self._graph.wants_moments(node),
        )

    def layer_norm(self, node: Node, value: Values) -> Any:
        """A layer norm."""
        layer, x = self._net.layer(node.name), self._image(node, node.reads[0], value)
        return self._layers_of(node).layer_norm(
            x, layer.weight, layer.bias, eps=layer.eps, scale=None, shift=None
        )

    def attention(self, node: Node, value: Values) -> Any:
        """Attention over three parts or blocks, which lie side by side."""
        qkv = self._image(node, node.reads[0], value)
        return self._layers_of(node).attention(qkv, self._heads(node))

    def cross_attention(self, node: Node, value: Values) -> Any:
        """Attention to a context, whose keys and values lie side by side."""
        assert node.context is not None
        q, kv = (self._image(node, read, value) for read in (node.reads[0], node.context))
        return self._layers_of(node).cross_attention(q, kv, self._heads(node))

    def _heads(self, node: Node) -> int:
        return self._counts[node.index] // node.out.head if node.out.head else 1

    def resample(self, node: Node, value: Values) -> Any:
        """An image enlarged or halved; what only adds an enlarged one enlarges it on the way."""
        if self._graph.is_enlarged_residual(node):
            return self._image(node, node.reads[0], value)
        residual = None if node.residual is None else self._image(node, node.residual, value)
        return self._layers_of(node).resample(
            self._image(node, node.reads[0], value),
            up=node.resample == "up",
            taps=node.taps,
            ring=node.ring,
            residual=residual,
            scale=node.scale,
        )

    def _layers_of(self, node: Node) -> StepLayers:
        """What computes a node: of one block of the images, or of all."""
        return self._once if self._is_once(node) else self._layers  # type: ignore[return-value]

    def _is_once(self, node: Node) -> bool:
        return self._once is not None and node in self._graph.before_labels

    def _rows_of(self, reader: Node, node: Node | None, value: Values) -> Any:
        """What a node takes of another that has one row an image: rows of one block, or of all."""
        if node is None:
            return None
        rows, layers = value[node.index], self._layers_of(reader)
        if not self._is_once(reader):
            return rows
        if node.parts:
            return tuple(layers.first_rows(part, self._labels) for part in rows)
        return layers.first_rows(rows, self._labels)

    def _image(self, reader: Node, node: Node, value: Values) -> Any:
        """What a node reads of another: repeated where that is of one block, and it of all."""
        before = self._graph.before_labels
        if self._once is None or node not in before or reader in before:
            return value[node.index]
        if node not in self._repeated:
            self._repeated[node] = self._once.repeated(value[node.index], self._labels)
        return self._repeated[node]

    def _sources(self, node: Node, value: Values) -> tuple[tuple[Any, ...], Any]:
        """What a convolution reads, and the norm that it applies to it."""
        values = tuple(self._image(node, read, value) for read in node.reads)
        if isinstance(values[0], _Normed):
            return values[0].sources, values[0].norm
        return values, None

    def _conv_weight(self, node: Node) -> ConvWeight:
        layers = [self._net.layer(name) for name in node.layer_names]
        return ConvWeight(
            tuple(layer.weight for layer in layers),
            tuple(layer.bias for layer in layers),
            node.stride,
            node.resample,
            layers[0].skip_offset,
            node.taps,
            node.ring,
            node.pad_end,
        )


def run_words(
    net: Network,
    width: float,
    layers: StepLayers,
    x: Any,
    rows: Mapping[int, Any],
    once: StepLayers | None = None,
    labels: int = 1,
    context: Any = None,
) -> Any:
    """Run a network on fused layers and return its prediction as they give it.

    Args:
        net: the network.
        width: a width that its config has checked.
        layers: what computes.
        x, context: the images, and the tokens that they attend to, as the layers take them.
        rows, once, labels: as of `StepWords`.
    """
    graph = net.graph
    # Timesteps and labels are in the rows; augment, where the network has it, is absent.
    value: Values = {node.index: None for node in graph.inputs.values()}
    value[graph.inputs["x"].index] = x
    if "context" in graph.inputs:
        value[graph.inputs["context"].index] = context
    words = StepWords(net, net.config.counts(width), layers, rows, once, labels)
    run(graph.walk, words, value)
    return value[graph.output.index]


def missing_word(graph: Graph, device: str) -> str | None:
    """Return which node stands for a word that steps lack, as a sentence; None: there is none."""
    for node in graph.nodes:
        if node.op != "input" and not hasattr(StepWords, node.op):
            return f"{node.name}: the {device} runtime has no {node.op}"
        apart = node.op not in ("conv", "dropout") or len(node.reads) > 1
        taken = (node.residual, *(node.reads if apart else ()))
        if any(read is not None and read.normed for read in taken):
            return f"{node.name}: the {device} runtime has norms before single convolutions alone"
    return None
