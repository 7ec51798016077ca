"""Layers, multiply-accumulates, parameters and bytes of a network by arithmetic. No torch.

Units: MACs an image and denoising step (FLOPs are twice that). Convolutions, linear layers and, on
request, the two products of attention and the elementwise work that ptflops counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ddsm_ext.graph.graph import Counts, Graph
from ddsm_ext.graph.node import LAYERS, PRODUCTS, Node
from ddsm_ext.graph.slicing import Slicing

if TYPE_CHECKING:
    from ddsm_ext.graph.config import NetworkConfig


@dataclass(frozen=True)
class Layer:
    """One layer with parameters: the node that it belongs to, and its module path."""

    name: str
    node: Node

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Allocated shape of the weight."""
        node, out = self.node, self.node.out.c_max
        if node.op in ("norm", "layer_norm"):
            return (out,)
        if node.op == "embed":
            return (node.rows, out)
        shape = (out, sum(source.out.c_max for source in node.sources))
        if node.op == "conv":
            return (*shape, node.kernel, node.kernel)
        return shape if node.blocks == 1 else (node.blocks, *shape)

    @property
    def bias_shape(self) -> tuple[int, ...]:
        """Allocated shape of the bias."""
        out = self.node.out.c_max
        return (out,) if self.node.blocks == 1 else (self.node.blocks, out)

    def shape(self, suffix: str) -> tuple[int, ...]:
        """Allocated shape of a parameter."""
        return self.weight_shape if suffix == "weight" else self.bias_shape

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Its parameters' names below its own."""
        bias = self.node.op != "embed" and self.node.bias
        return ("weight", "bias") if bias else ("weight",)


def layers(graph: Graph) -> tuple[Layer, ...]:
    """Every layer with parameters in execution order."""
    return tuple(
        Layer(name, node) for node in graph.nodes if node.op in LAYERS for name in node.layer_names
    )


def c_in(node: Node, counts: Counts) -> int:
    """Active input channels of a node."""
    return sum(counts[source.index] for source in node.sources)


def columns(node: Node, counts: Counts, slicing: Slicing) -> list[slice]:
    """A layer's active inputs: one prefix or, where concats are sliced so, one a source."""
    active = [counts[source.index] for source in node.sources]
    if slicing.concat == "prefix":
        return [slice(0, sum(active))]
    starts = [sum(s.out.c_max for s in node.sources[:i]) for i in range(len(active))]
    return [slice(start, start + c) for start, c in zip(starts, active, strict=True)]


def layer_macs(
    config: NetworkConfig,
    width: float,
    *,
    attention_products: bool = True,
    elementwise: bool = False,
) -> dict[str, int]:
    """MACs an image and step of every layer of the network at `width`, by name.

    Args:
        config: the network.
        width: 0 < width <= 1, usable by `config`.
        attention_products: also count Q K^T and the product with V, named `<block>.qk` and
            `<block>.av`.
        elementwise: also count one MAC for each bias addition and two for each normalised element,
            as ptflops does; the DDSM paper's own figures (no attention products) were made that
            way.

    Raises:
        TypeError, ValueError: the width cannot be used.
    """
    counts = config.counts(width)
    return {
        name: macs
        for node in config.graph.nodes
        for name, macs in _node_macs(node, counts, attention_products, elementwise)
        if macs
    }


def _node_macs(
    node: Node, counts: Counts, attention_products: bool, elementwise: bool
) -> Iterator[tuple[str, int]]:
    c_out = counts[node.index]
    if node.idle:
        return
    if node.op in PRODUCTS:
        bias = elementwise and node.bias
        each = c_out * (c_in(node, counts) * node.kernel**2 + bias) * node.pixels
        for name in node.layer_names:
            yield name, each * node.blocks
    elif node.op in ("norm", "layer_norm"):
        yield node.name, 2 * c_out * node.pixels * elementwise
    elif node.op in ("attention", "cross_attention") and attention_products:
        block, keys = node.name.rpartition(".")[0], (node.context or node).pixels
        for product in ("qk", "av"):
            yield f"{block}.{product}", node.pixels * keys * c_out


def macs(
    config: NetworkConfig,
    width: float,
    *,
    attention_products: bool = True,
    elementwise: bool = False,
) -> int:
    """MACs an image and denoising step of the network at `width`; arguments of `layer_macs`.

    Raises:
        TypeError, ValueError: the width cannot be used.
    """
    counted = layer_macs(
        config, width, attention_products=attention_products, elementwise=elementwise
    )
    return sum(counted.values())


def parameter_count(config: NetworkConfig, width: float = 1.0) -> int:
    """Parameters at `width`: the supernet's at 1, an exported subnet's below.

    A frozen time table is counted where the config keeps one, as in the published 35.87 M.

    Raises:
        TypeError, ValueError: the width cannot be used.
    """
    counts = config.counts(width)
    return sum(_parameters(node, counts) for node in config.graph.nodes)


def _parameters(node: Node, counts: Counts) -> int:
    c_out = counts[node.index]
    if node.op in PRODUCTS:
        return node.weights * c_out * (c_in(node, counts) * node.kernel**2 + node.bias)
    if node.op in ("norm", "layer_norm"):
        return 2 * c_out
    return node.rows * c_out  # embeddings by label, a frozen time table


def activation_bytes(
    config: NetworkConfig, width: float, batch: int, *, training: bool, element_bytes: int = 4
) -> int:
    """Bytes of activations of a batch: kept for the backward pass, or the most alive at once.

    Args:
        config: the network.
        width: 0 < width <= 1, usable by `config`.
        batch: images.
        training: count every node's result; False: only those that a later node still reads.
        element_bytes: of an activation's element.
    """
    counts, graph = config.counts(width), config.graph
    elements = [counts[node.index] * node.pixels * node.results for node in graph.nodes]
    if training:
        busy = [node for node in graph.nodes if not node.idle]
        before = [node for node in busy if node.activation]  # what it is taken of is kept, too
        kept = sum(elements[node.index] for node in busy) + sum(
            counts[node.index] * node.pixels * node.weights for node in before
        )
        return batch * element_bytes * kept
    alive = sum(elements[node.index] for node in graph.inputs.values())
    most = alive
    for _, step, _, dead in graph.walk:
        alive += elements[step.index]
        most = max(most, alive)
        alive -= sum(elements[index] for index in dead)
    return batch * element_bytes * most
