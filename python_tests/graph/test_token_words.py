"""Words over pixels and tokens: what they count, and refusals."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from graph.descriptions import Described, begin, body, end
from graph.test_graph import refused

from ddsm_ext.graph import Graph, Node, layer_macs, macs, parameter_count
from ddsm_ext.graph.shapes import AttentionShape, LayerNormShape, LinearShape, op_shapes


def transformer(g: Graph) -> None:
    """Self-attention, cross-attention to five tokens of 6 channels, and a gated geglu."""
    h, time = begin(g)
    tokens = g.input("context", 6, tokens=5)
    gate = g.linear("gate", time, 8)
    qkv = g.pointwise("a.qkv", g.layer_norm("a.norm", h), 8, blocks=3, head=4, bias=False)
    h = g.pointwise("a.out", g.attention("a.products", qkv), 8, residual=h)
    q = g.pointwise("c.q", g.layer_norm("c.norm", h), 8, head=4, bias=False)
    kv = g.pointwise("c.kv", tokens, 8, blocks=2, head=4, bias=False)
    h = g.pointwise("c.out", g.cross_attention("c.products", q, kv), 8, residual=h)
    hidden = g.pointwise("f.in", h, 16, blocks=2, activation="geglu")
    h = g.pointwise("f.out", hidden, 8, gate=gate, residual=h)
    g.pointwise("idle", h, 8, idle=True)
    end(g, h)


def test_macs_parameters_and_shapes() -> None:
    config = Described(transformer)
    counted = layer_macs(config, 1.0)
    assert counted["a.qkv"] == 3 * 8 * 8 * 64
    assert counted["a.qk"] == counted["a.av"] == 64 * 64 * 8
    assert counted["c.kv"] == 2 * 6 * 8 * 5
    assert counted["c.qk"] == counted["c.av"] == 64 * 5 * 8
    assert counted["f.in"] == 2 * 8 * 16 * 64
    assert "idle" not in counted
    assert layer_macs(config, 0.5)["f.in"] == 2 * 4 * 8 * 64
    assert layer_macs(config, 0.5)["c.kv"] == 2 * 6 * 4 * 5  # tokens are never slimmed
    without = Described(lambda g: end(g, begin(g)[0]))
    more = 8 * 9 + (16 + 3 * 64) + 72 + (16 + 64) + 2 * 48 + 72 + 2 * 16 * 9 + 8 * 17 + 72
    assert parameter_count(config) == parameter_count(without) + more
    linears = op_shapes(config, 0.5, "linear")
    assert linears[LinearShape(4, 4, 8, 8, 64, 3)] == 1
    assert linears[LinearShape(4, 8, 8, 16, 64, 2, "geglu")] == 1
    assert linears[LinearShape(6, 4, 6, 8, 5, 2)] == 1
    assert op_shapes(config, 0.5, "layer_norm") == {LayerNormShape(4, 8, 64): 2}
    attentions = {AttentionShape(1, 64, 4): 1, AttentionShape(1, 64, 4, 5): 1}
    assert op_shapes(config, 0.5, "attention") == attentions
    products = sum(count for shape, count in linears.items() for count in [count * shape.macs])
    convolutions = op_shapes(config, 0.5, "conv2d")
    products += sum(count * shape.macs for shape, count in convolutions.items())
    assert macs(config, 0.5) == products + 2 * 64 * 64 * 4 + 2 * 64 * 5 * 4


def test_an_idle_layer_is_no_reader() -> None:
    """Nothing is kept, or computed ahead, for it."""
    graph = Described(transformer).graph
    idle = next(node for node in graph.nodes if node.name == "idle")
    assert all(idle not in readers for readers in graph.readers.values())
    assert all(step is not idle for _, step, _, _ in graph.walk)


def read_idle(g: Graph, h: Node, time: Node) -> Node:
    return g.conv("b", g.pointwise("a", h, 8, idle=True), 8)


def add_idle(g: Graph, h: Node, time: Node) -> Node:
    return g.conv("b", h, 8, residual=g.pointwise("a", h, 8, idle=True))


def pointwise_of_a_row(g: Graph, h: Node, time: Node) -> Node:
    return g.conv("b", h, 8, shift=g.pointwise("a", time, 8))


def pointwise_of_a_norm(g: Graph, h: Node, time: Node) -> Node:
    return g.pointwise("b", g.norm("a", h), 8)


def linear_of_an_image(g: Graph, h: Node, time: Node) -> Node:
    return g.conv("b", h, 8, shift=g.linear("a", h, 8))


def geglu_of_one_block(g: Graph, h: Node, time: Node) -> Node:
    return g.pointwise("a", h, 8, activation="geglu")


def unknown_activation(g: Graph, h: Node, time: Node) -> Node:
    return g.pointwise("a", h, 8, activation="relu")  # type: ignore[arg-type]


def residual_of_blocks(g: Graph, h: Node, time: Node) -> Node:
    qkv = g.pointwise("a", h, 8, blocks=3, residual=h)
    return g.attention("b", qkv)


def shift_before_an_activation(g: Graph, h: Node, time: Node) -> Node:
    return g.pointwise("a", h, 8, activation="gelu", shift=time)


def blocks_read_as_one(g: Graph, h: Node, time: Node) -> Node:
    return g.conv("b", g.pointwise("a", h, 8, blocks=2), 8)


def attention_of_two_blocks(g: Graph, h: Node, time: Node) -> Node:
    return g.attention("b", g.pointwise("a", h, 8, blocks=2))


def cross_attention_to_pixels(g: Graph, h: Node, time: Node) -> Node:
    kv = g.pointwise("kv", h, 8, blocks=2)
    return g.cross_attention("b", g.pointwise("q", h, 8), kv)


def cross_attention_of_other_heads(g: Graph, h: Node, time: Node) -> Node:
    kv = g.pointwise("kv", g.input("context", 6, tokens=5), 8, blocks=2, head=2)
    return g.cross_attention("b", g.pointwise("q", h, 8, head=4), kv)


def convolution_of_a_context(g: Graph, h: Node, time: Node) -> Node:
    return g.conv("b", g.input("context", 6, tokens=5), 8)


def context_without_tokens(g: Graph, h: Node, time: Node) -> Node:
    g.input("context", 6)
    return h


def tokens_of_images(g: Graph, h: Node, time: Node) -> Node:
    g.input("y", tokens=3)
    return h


def gate_of_pixels(g: Graph, h: Node, time: Node) -> Node:
    return g.pointwise("a", h, 8, gate=h)


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        (read_idle, "b: reads a (pointwise), which is idle; need a node that is computed"),
        (add_idle, "b: its residual is a (pointwise), which is idle; need a node that is computed"),
        (pointwise_of_a_row, "a: reads time.linear (linear), one row an image; need an image"),
        (pointwise_of_a_norm, "b: reads a (norm), a group norm; need a convolution of it"),
        (linear_of_an_image, "a: reads head (conv), an image; need one row an image"),
        (geglu_of_one_block, "a: has 1 blocks; need at least 1, for a geglu 2"),
        (unknown_activation, "a: its activation is 'relu'; need gelu, gelu_tanh or geglu"),
        (residual_of_blocks, "a: adds something to 3 blocks; need one result"),
        (shift_before_an_activation, "a: has a shift beside an activation or a gate; need none"),
        (blocks_read_as_one, "b: reads a (pointwise), of several parts; need a node of one"),
        (attention_of_two_blocks, "b: reads a (pointwise); need a node of three parts"),
        (cross_attention_to_pixels, "b: attends to kv (pointwise); need a pointwise layer of a c"),
        (
            cross_attention_of_other_heads,
            "b: its queries have 8 channels in heads of 4, its keys 8 channels in heads of 2; need",
        ),
        (convolution_of_a_context, "b: reads context (input), a context; need an image"),
        (context_without_tokens, "context: has tokens None; need the count of a context, of no"),
        (tokens_of_images, "y: has tokens 3; need the count of a context, of no other input"),
        (gate_of_pixels, "a: its gate is head (conv); need one row an image"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_refused_in_one_sentence(word: Callable[[Graph, Node, Node], Node], sentence: str) -> None:
    assert refused(body(word)).startswith(sentence)
