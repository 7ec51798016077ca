"""Words, paths, lifetimes and refusals of descriptions."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from graph.descriptions import Described, Description, begin, body, end, two_blocks

from ddsm_ext.graph import Graph, Node, activation_bytes, run
from ddsm_ext.graph.node import Scope


def graph_of(describe: Description) -> Graph:
    graph = Described(describe).graph
    assert graph.scope is not None
    return graph


def refused(describe: Description) -> str:
    with pytest.raises(ValueError, match="; need ") as caught:
        graph_of(describe)
    return str(caught.value)


def test_blocks_are_the_paths_of_names() -> None:
    scope = graph_of(two_blocks).scope
    assert [step.name for step in scope.steps] == ["time", "head", "blocks.0", "blocks.1", "tail"]
    first, second = scope.steps[2:4]
    assert isinstance(first, Scope)
    assert isinstance(second, Scope)
    assert [step.name for step in first.steps] == [
        "blocks.0.norm", "blocks.0.time", "blocks.0.conv",
    ]  # fmt: skip
    assert [node.name for node in second.reads] == ["blocks.0.conv", "time.linear"]
    assert second.result.name == "blocks.1.conv"


def test_a_value_lives_until_its_last_reader() -> None:
    graph = graph_of(two_blocks)
    alive: list[set[str]] = []

    class Backend:
        def __getattr__(self, op: str) -> Callable[..., str]:
            def compute(node: Node, value: dict[int, str]) -> str:
                assert all(value[operand.index] == operand.name for operand in node.operands)
                alive.append(set(value.values()))
                return node.name

            return compute

    value = {node.index: node.name for node in graph.inputs.values()}
    run(graph.walk, Backend(), value)
    assert set(value.values()) == {"tail.conv"}
    assert alive[-1] == {"tail.norm"}
    at = [step.name for _, step, *_ in graph.walk].index("blocks.1.norm")
    assert alive[at] == {"time.linear", "blocks.0.conv"}


def test_bytes_of_a_chain_of_one_size() -> None:
    def chain(g: Graph) -> None:
        x = g.input("x", 4, image=True)
        g.conv("b", g.conv("a", x, 4), 4, role="fixed")

    config = Described(chain)
    image = 4 * 8 * 8 * 4
    assert activation_bytes(config, 1.0, 2, training=True) == 2 * 3 * image
    assert activation_bytes(config, 1.0, 2, training=False) == 2 * 2 * image


def test_counts_of_concats_and_heads() -> None:
    def describe(g: Graph) -> None:
        h, _ = begin(g)
        wide = g.conv("wide", h, 24)
        n = g.norm("norm", (h, wide))
        qkv = g.conv("attention", n, 16, 1, parts=("q", "k", "v"), role="qkv", head=8)
        end(g, g.conv("out", g.attention("products", qkv), 8, 1))

    config = Described(describe)
    names = [node.name for node in config.graph.nodes]
    for width, expected in (
        (1.0, {"head": 8, "wide": 24, "norm": 32, "attention": 16, "products": 16, "out": 8}),
        (0.75, {"head": 6, "wide": 18, "norm": 24, "attention": 16, "products": 16, "out": 6}),
        (0.5, {"head": 4, "wide": 12, "norm": 16, "attention": 8, "products": 8, "out": 4}),
        (0.01, {"head": 2, "wide": 6, "norm": 8, "attention": 8, "products": 8, "out": 2}),
    ):
        counts = dict(zip(names, config.counts(width), strict=True))
        assert counts["x"] == counts["tail.conv"] == 3
        assert {name: counts[name] for name in expected} == expected


def twice(g: Graph, h: Node, time: Node) -> Node:
    return g.conv("a", g.conv("a", h, 8), 8)


def interleaved(g: Graph, h: Node, time: Node) -> Node:
    return g.conv("a.second", g.conv("b", g.conv("a.first", h, 8), 8), 8)


def read_outside(g: Graph, h: Node, time: Node) -> Node:
    first = g.conv("a.first", h, 8)
    return g.conv("b", (first, g.conv("a.second", first, 8)), 8)


def below_a_layer(g: Graph, h: Node, time: Node) -> Node:
    return g.conv("a.b", g.conv("a", h, 8), 8)


def unread(g: Graph, h: Node, time: Node) -> Node:
    g.conv("lost", h, 8)
    return h


def unread_input(g: Graph, h: Node, time: Node) -> Node:
    g.input("y")
    return h


def of_another_graph(g: Graph, h: Node, time: Node) -> Node:
    other = Graph(8)
    return g.conv("a", begin(other)[0], 8)


def three_sources(g: Graph, h: Node, time: Node) -> Node:
    return g.conv("a", (h, h, h), 8)


def norm_of_two_beside_one(g: Graph, h: Node, time: Node) -> Node:
    return g.conv("a", (g.norm("n", (h, h)), h), 8)


def resampled_concat(g: Graph, h: Node, time: Node) -> Node:
    return g.conv("a", g.resample("r", g.norm("n", (h, h)), "up"), 8, stride=2)


def sizes_differ(g: Graph, h: Node, time: Node) -> Node:
    return g.conv("a", (h, g.conv("half", h, 8, stride=2)), 8)


def residual_of_another_size(g: Graph, h: Node, time: Node) -> Node:
    return g.conv("a", h, 8, residual=g.conv("half", h, 8, stride=2))


def residual_of_other_channels(g: Graph, h: Node, time: Node) -> Node:
    return g.conv("a", h, 8, residual=g.conv("wide", h, 16))


def residual_never_slimmed(g: Graph, h: Node, time: Node) -> Node:
    return g.conv("a", h, 8, residual=g.conv("whole", h, 8, role="fixed"))


def shift_is_an_image(g: Graph, h: Node, time: Node) -> Node:
    return g.conv("a", h, 8, shift=h)


def modulated_by_other_channels(g: Graph, h: Node, time: Node) -> Node:
    film = g.linear("film", time, 16, parts=("scale", "shift"))
    return g.conv("a", g.norm("n", h, modulate=film), 8)


def modulated_by_one_part(g: Graph, h: Node, time: Node) -> Node:
    return g.conv("a", g.norm("n", h, modulate=time), 8)


def parts_beside_a_shift(g: Graph, h: Node, time: Node) -> Node:
    qkv = g.conv("a", h, 8, 1, parts=("q", "k", "v"), shift=time)
    return g.conv("out", g.attention("products", qkv), 8)


def parts_convolved(g: Graph, h: Node, time: Node) -> Node:
    return g.conv("a", g.conv("two", h, 8, parts=("left", "right")), 8)


def attention_of_one_part(g: Graph, h: Node, time: Node) -> Node:
    return g.conv("a", g.attention("products", h), 8)


def heads_do_not_divide(g: Graph, h: Node, time: Node) -> Node:
    qkv = g.conv("a", h, 8, 1, parts=("q", "k", "v"), head=3)
    return g.conv("out", g.attention("products", qkv), 8)


def groups_do_not_divide(g: Graph, h: Node, time: Node) -> Node:
    return g.conv("b", g.conv("a", h, 10), 8)


def linear_of_an_image(g: Graph, h: Node, time: Node) -> Node:
    return g.conv("a", h, 8, shift=g.linear("row", h, 8))


def conv_of_a_row(g: Graph, h: Node, time: Node) -> Node:
    return g.conv("a", time, 8)


def odd_size(g: Graph, h: Node, time: Node) -> Node:
    for i in range(4):
        h = g.conv(f"down.{i}", h, 8, stride=2)
    return h


def even_kernel(g: Graph, h: Node, time: Node) -> Node:
    return g.conv("a", h, 8, 4)


def stride_of_four(g: Graph, h: Node, time: Node) -> Node:
    return g.conv("a", h, 8, stride=4)


def unknown_resampling(g: Graph, h: Node, time: Node) -> Node:
    return g.conv("a", h, 8, resample="sideways")  # type: ignore[arg-type]


def no_name(g: Graph, h: Node, time: Node) -> Node:
    return g.conv("a..b", h, 8)


def table_alone(g: Graph, h: Node, time: Node) -> Node:
    row = g.sinusoid("alone.table", g.inputs["t"], 8)
    return g.conv("a", h, 8, shift=g.linear("row", row, 8))


def smaller_result(g: Graph, h: Node, time: Node) -> Node:
    return g.conv("half", h, 8, stride=2)


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        (twice, "a: is described twice; need another name"),
        (interleaved, "a: its nodes do not follow each other"),
        (read_outside, "a: a.first, a.second leave it; need its last node alone"),
        (below_a_layer, "a.b: stands below a, a layer"),
        (unread, "lost: nothing reads it"),
        (unread_input, "y: nothing reads it"),
        (of_another_graph, "a: reads head (conv) of another graph"),
        (three_sources, "a: reads 3 nodes; need one or two"),
        (norm_of_two_beside_one, "a: reads n (norm), a concat, unjoined"),
        (resampled_concat, "r: reads n (norm), a concat, unjoined"),
        (sizes_differ, "a: reads images of 8 and 4 pixels a side; need one size"),
        (residual_of_another_size, "a: its residual is half (conv); need an image of 8 pixels"),
        (residual_of_other_channels, "a: its residual has 16 channels, it has 8 channels"),
        (residual_never_slimmed, "a: its residual has 8 channels at every width, it has 8"),
        (shift_is_an_image, "a: its shift is head (conv); need one row an image"),
        (modulated_by_other_channels, "n: its modulate has 16 channels, it has 8 channels"),
        (modulated_by_one_part, "n: modulated by time.linear (linear); need a node of two parts"),
        (parts_beside_a_shift, "a: has a shift and parts; need one part beside it"),
        (parts_convolved, "a: reads two (conv), of several parts; need a node of one"),
        (attention_of_one_part, "products: reads head (conv); need a node of three parts"),
        (heads_do_not_divide, "a: has heads of 3 channels; need a divisor of 8"),
        (groups_do_not_divide, "a: has 10 channels; need a multiple of the 4 groups"),
        (linear_of_an_image, "row: reads head (conv), an image; need one row an image"),
        (conv_of_a_row, "a: reads time.linear (linear), one row an image; need an image"),
        (odd_size, "down.3: its input has 1 pixels a side; need an even number"),
        (even_kernel, "a: kernel is 4; need an odd number"),
        (stride_of_four, "a: stride is 4; need 1 or 2"),
        (unknown_resampling, "a: resample is 'sideways'; need None, 'up' or 'down'"),
        (no_name, "conv: its name is 'a..b'; need a module path"),
        (table_alone, "alone.table: is a table by itself; need a name beside a layer's"),
        (smaller_result, "tail.conv: is the prediction and has 4x4 pixels; need 8x8"),
    ],
)
def test_refused_in_one_sentence(word: Callable[..., Node], sentence: str) -> None:
    found = refused(body(word))
    assert found.startswith(sentence)
    assert "\n" not in found
    assert found.count(";") == 1


def no_image(g: Graph) -> None:
    g.conv("a", g.input("x"), 3, role="fixed")


def no_channels(g: Graph) -> None:
    g.conv("a", g.input("x", 0, image=True), 3, role="fixed")


def other_input(g: Graph) -> None:
    h, _ = begin(g)
    g.conv("a", (h, g.input("text", 3, image=True)), 3, role="fixed")


def slimmed_prediction(g: Graph) -> None:
    g.conv("a", g.input("x", 3, image=True), 4)


def norm_last(g: Graph) -> None:
    g.norm("a", begin(g)[0])


def without_layers(g: Graph) -> None:
    g.resample("up", g.resample("down", g.input("x", 3, image=True), "down"), "up")


@pytest.mark.parametrize(
    ("describe", "sentence"),
    [
        (no_image, "a: reads x (input), one row an image; need an image"),
        (no_channels, "x: has 0 channels; need at least 1"),
        (other_input, "text: is an input; need x, t, y, augment or context"),
        (slimmed_prediction, "a: is the prediction and slimmed by widths; need the role 'fixed'"),
        (norm_last, "a: is the prediction and a norm; need a convolution"),
        (without_layers, "up: is the last node of a network without layers; need one layer"),
    ],
)
def test_no_network(describe: Description, sentence: str) -> None:
    found = refused(describe)
    assert found.startswith(sentence)
    assert "\n" not in found
    assert found.count(";") == 1


def test_counts_that_a_width_makes_differ() -> None:
    """Roles that round otherwise give what is added other channels."""

    def describe(g: Graph) -> None:
        x, t = g.input("x", 3, image=True), g.input("t")
        film = g.linear("film", g.sinusoid("table", t, 8), 32, parts=("scale", "shift"))
        g.conv("tail", g.norm("norm", g.conv("head", x, 32), modulate=film), 3, role="fixed")

    config = Described(describe, groups=8, norm="fixed_groups")
    assert config.counts(0.5)
    with pytest.raises(ValueError, match=r"norm: width 0.75 gives it 24 channels and 32 to film"):
        config.counts(0.75)


def test_an_error_names_its_node() -> None:
    graph = graph_of(two_blocks)

    class Backend:
        def __getattr__(self, op: str) -> Callable[..., None]:
            def compute(node: Node, value: dict[int, None]) -> None:
                if node.name == "blocks.1.norm":
                    raise RuntimeError("no norm")

            return compute

    with pytest.raises(RuntimeError) as caught:
        run(graph.walk, Backend(), {node.index: None for node in graph.inputs.values()})
    assert caught.value.__notes__ == ["in blocks.1.norm"]
