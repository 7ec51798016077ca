"""Small descriptions for tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ddsm_ext.graph import Graph, NetworkConfig, Node, Slicing

Description = Callable[[Graph], object]


@dataclass(frozen=True)
class Described(NetworkConfig):
    """What `append` appends."""

    append: Description
    image_size: int = 8
    image_channels: int = 3
    groups: int = 4
    norm: str = "channels_per_group"
    widths: tuple[float, ...] = (1.0,)

    @property
    def slicing(self) -> Slicing:
        return Slicing(self.groups, self.norm)

    def describe(self) -> Graph:
        g = Graph(self.image_size)
        self.append(g)
        return g


def begin(g: Graph) -> tuple[Node, Node]:
    """An image of 8 channels and a row of 8."""
    x, t = g.input("x", 3, image=True), g.input("t")
    time = g.linear("time.linear", g.sinusoid("time.table", t, 8), 8, silu=True)
    return g.conv("head", x, 8, shift=time), time


def end(g: Graph, h: Node) -> None:
    g.conv("tail.conv", g.norm("tail.norm", h, silu=True), 3, role="fixed")


def body(word: Callable[[Graph, Node, Node], Node]) -> Description:
    """A network whose middle is a word's, from an image and a row of 8 channels."""

    def describe(g: Graph) -> None:
        end(g, word(g, *begin(g)))

    return describe


def halved_at_the_end(g: Graph) -> None:
    """Convolutions of stride 2 with zeros behind the image alone, one of them of two sources."""
    h, _ = begin(g)
    half = g.conv("first", h, 8, stride=2, pad_end=True)
    norm = g.norm("norm", (half, g.conv("other", h, 8, stride=2)), silu=True)
    quarter = g.conv("second", norm, 8, stride=2, pad_end=True)
    up = g.resample("up2", g.resample("up1", quarter, "up"), "up")
    end(g, g.conv("back", up, 8, residual=h))


def two_blocks(g: Graph) -> None:
    h, time = begin(g)
    for i in range(2):
        name, skip = f"blocks.{i}", h
        h = g.norm(f"{name}.norm", h, silu=True)
        h = g.conv(f"{name}.conv", h, 8, shift=g.linear(f"{name}.time", time, 8), residual=skip)
    end(g, h)
