"""Words in unusual places: compiled step, modules and dense export of small networks agree."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from graph.descriptions import Described, begin, body, end, halved_at_the_end, two_blocks
from torch import Tensor

from ddsm_ext.graph import Graph, Node
from ddsm_ext.models.network import SlimmableNetwork
from ddsm_ext.runtime import StepRunner

Word = Callable[[Graph, Node, Node], Node]


def built(describe: Callable[[Graph], object]) -> SlimmableNetwork:
    generator = torch.Generator().manual_seed(0)
    net = SlimmableNetwork(Described(describe), generator=generator).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return net


def distance(y: Tensor, exact: Tensor) -> float:
    return float((y - exact).abs().max() / exact.abs().max())


@torch.no_grad()
def check(net: SlimmableNetwork, *, compiled: bool = True) -> None:
    exact = copy.deepcopy(net).double()
    small = copy.deepcopy(net).bfloat16()
    near = copy.deepcopy(small).double()
    runner, t = StepRunner(net), torch.tensor([1.0, 5.5])
    generator = torch.Generator().manual_seed(3)
    for width in (1.0, 0.5, 0.3, 0.25):
        for n, height in ((2, 8), (1, 16)):
            x = torch.randn(n, 3, height, 8, generator=generator)
            expected = exact(x.double(), t[:n], width)
            dense = exact.export_subnet(width)(x.double(), t[:n])
            assert distance(dense, expected) < 1e-12
            assert distance(net.run_modules(x, t[:n], width), expected) < 2e-5
            assert distance(runner(x, t[:n], width), expected) < 2e-5
            x = x.bfloat16()
            expected = near(x.double(), t[:n], width)
            rounded = distance(small.run_modules(x, t[:n], width), expected)
            assert distance(small(x, t[:n], width), expected) < max(0.05, 2 * rounded)
    assert (runner.reason_against(torch.float32, x.device) is None) == compiled


def residual_also_read(g: Graph, h: Node, time: Node) -> Node:
    up = g.resample("up", g.conv("smaller", h, 8, stride=2), "up")
    return g.conv("b", (g.conv("a", h, 8, residual=up), up), 8, residual=up)


def residual_of_itself(g: Graph, h: Node, time: Node) -> Node:
    up = g.resample("up", g.conv("smaller", h, 8, stride=2), "up")
    return g.conv("a", up, 8, residual=up)


def residual_of_two(g: Graph, h: Node, time: Node) -> Node:
    up = g.resample("up", g.conv("smaller", h, 8, stride=2), "up")
    return g.conv("b", g.conv("a", h, 8, 1, residual=up), 8, residual=up)


def residual_enlarged_twice(g: Graph, h: Node, time: Node) -> Node:
    quarter = g.conv("quarter", g.conv("smaller", h, 8, stride=2), 8, stride=2)
    up = g.resample("up2", g.resample("up", quarter, "up"), "up")
    return g.conv("a", h, 8, residual=up)


def shortcut_of_dropout(g: Graph, h: Node, time: Node) -> Node:
    dropped = g.dropout("drop", g.norm("norm", h, silu=True), 0.1)
    return g.conv("a", h, 8, residual=g.conv("shortcut", dropped, 8, 1))


def shortcut_read_twice(g: Graph, h: Node, time: Node) -> Node:
    shortcut = g.conv("shortcut", h, 8, 1)
    return g.conv("b", g.conv("a", shortcut, 8, residual=shortcut), 8, residual=shortcut)


def norm_read_twice(g: Graph, h: Node, time: Node) -> Node:
    n = g.norm("norm", h, silu=True)
    return g.conv("b", (g.conv("a", n, 8), g.conv("c", n, 8, 1)), 8)


def conv_read_by_two_norms(g: Graph, h: Node, time: Node) -> Node:
    a = g.conv("a", h, 8)
    first = g.conv("b", g.norm("norm1", a, silu=True), 8)
    film = g.linear("film", time, 8, parts=("scale", "shift"), silu=True)
    return g.conv("c", g.norm("norm2", a, modulate=film, eps=1e-3), 8, residual=first)


def modulated_twice(g: Graph, h: Node, time: Node) -> Node:
    film = g.linear("film", time, 8, parts=("scale", "shift"))
    rows = [g.linear(name, time, 8, silu=True) for name in ("row1", "row2")]
    a = g.conv("a", g.norm("norm1", h, modulate=film), 8, shift=rows[1])
    b = g.conv("b", g.norm("norm2", h, modulate=film, silu=True), 8, residual=a, shift=rows[0])
    return g.conv("c", b, 8, shift=rows[1])


def shifted_rows(g: Graph, h: Node, time: Node) -> Node:
    row = g.linear("row2", time, 8, shift=g.linear("row1", time, 8, shift=time), silu=True)
    return g.conv("a", h, 8, shift=row)


def second_embedding(g: Graph, h: Node, time: Node) -> Node:
    again = g.sinusoid("again", g.inputs["t"], 8, halves=True)
    return g.conv("a", h, 8, shift=g.linear("row", again, 8))


def attention_over_fewer_pixels(g: Graph, h: Node, time: Node) -> Node:
    qkv = g.conv(
        "attention", g.norm("norm", h), 8, 3, stride=2, parts=("q", "k", "v"), role="qkv", head=2
    )
    return g.conv("out", g.attention("products", qkv), 8, 1, resample="up", residual=h)


def attention_of_a_concat(g: Graph, h: Node, time: Node) -> Node:
    n = g.norm("norm", (h, h), silu=True)
    qkv = g.conv("attention", n, 8, 1, resample="down", parts=("q", "k", "v"), role="qkv")
    return g.conv("out", g.resample("up", g.attention("products", qkv), "up"), 8, 1)


def resampled_both_ways(g: Graph, h: Node, time: Node) -> Node:
    down = g.conv("a", g.norm("norm", (h, h), silu=True), 8, resample="down")
    return g.conv("b", down, 8, 5, resample="up", residual=h)


def dropped_twice(g: Graph, h: Node, time: Node) -> Node:
    n = g.dropout("drop1", g.norm("norm", h), 0.1)
    return g.conv("a", g.dropout("drop2", n, 0.1), 8, residual=g.dropout("drop3", h, 0.1))


COMPILED = [
    residual_also_read, residual_of_itself, residual_of_two, residual_enlarged_twice,
    shortcut_of_dropout, shortcut_read_twice, norm_read_twice, conv_read_by_two_norms,
    modulated_twice, shifted_rows, second_embedding, attention_over_fewer_pixels,
    attention_of_a_concat, resampled_both_ways, dropped_twice,
]  # fmt: skip


@pytest.mark.parametrize("word", COMPILED)
def test_compiled(word: Word) -> None:
    check(built(body(word)))


def prediction_resampled(g: Graph) -> None:
    h, _ = begin(g)
    g.resample("up", g.conv("smaller", h, 3, stride=2, role="fixed"), "up")


def prediction_beside_the_images(g: Graph) -> None:
    h, _ = begin(g)
    g.conv("tail", g.norm("norm", h), 3, role="fixed", residual=g.inputs["x"])


@pytest.mark.parametrize(
    "describe", [prediction_resampled, prediction_beside_the_images, halved_at_the_end]
)
def test_other_descriptions(describe: Callable[[Graph], None]) -> None:
    check(built(describe))


def norm_resampled(g: Graph, h: Node, time: Node) -> Node:
    down = g.resample("down", g.norm("norm", h, silu=True), "down")
    return g.conv("a", down, 8, resample="up")


def norm_of_a_norm(g: Graph, h: Node, time: Node) -> Node:
    return g.conv("a", g.norm("norm2", g.norm("norm1", h)), 8)


def two_norms_side_by_side(g: Graph, h: Node, time: Node) -> Node:
    return g.conv("a", (g.norm("norm1", h), g.norm("norm2", h, silu=True)), 8)


def norm_behind_another(g: Graph, h: Node, time: Node) -> Node:
    return g.conv("a", (h, g.norm("norm", h, silu=True)), 8)


def norm_added(g: Graph, h: Node, time: Node) -> Node:
    return g.conv("a", h, 8, residual=g.norm("norm", h, silu=True))


def large_kernel(g: Graph, h: Node, time: Node) -> Node:
    return g.conv("a", h, 8, 7)


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        (norm_resampled, "down: the CPU runtime has norms before single convolutions alone"),
        (norm_of_a_norm, "norm2: the CPU runtime has norms before single convolutions alone"),
        (two_norms_side_by_side, "a: the CPU runtime has norms before single"),
        (norm_behind_another, "a: the CPU runtime has norms before single"),
        (norm_added, "a: the CPU runtime has norms before single"),
        (large_kernel, "a: the CPU runtime has no 7x7 kernels"),
    ],
)
def test_refused_by_name_and_run_as_modules(word: Word, reason: str) -> None:
    net = built(body(word))
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([1.0, 5.5])
    with pytest.warns(UserWarning, match=reason), torch.no_grad():
        net(x, t, 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check(net, compiled=False)


def test_an_error_names_every_node_on_its_way_once() -> None:
    net = built(two_blocks)

    def fail(*_: object) -> None:
        raise RuntimeError("no norm")

    net.blocks[1].norm.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="no norm") as caught:
        net(torch.randn(2, 3, 8, 8), torch.tensor(1), 0.5)
    assert caught.value.__notes__ == ["in blocks.1.norm", "in blocks.1"]


@pytest.mark.parametrize("name", ["forward", "config", "layer", "training"])
def test_names_that_modules_have(name: str) -> None:
    def describe(g: Graph) -> None:
        end(g, g.conv(name, begin(g)[0], 8))

    with pytest.raises(ValueError, match=f"^{name}: modules have a {name} already; need another"):
        SlimmableNetwork(Described(describe))
