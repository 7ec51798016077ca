"""`NetworkConfig`: settings that describe a network. No torch."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from functools import lru_cache
from typing import ClassVar

from ddsm_ext.graph.check import check_nodes
from ddsm_ext.graph.graph import Counts, Graph
from ddsm_ext.graph.slicing import Slicing
from ddsm_ext.settings import Settings, is_int


class NetworkConfig(Settings):
    """Base of the frozen dataclasses that describe a family of networks.

    A subclass has the fields below and more of its own, and `describe`; `__post_init__` checks what
    all families share, and calls `describe`, so that a network that cannot be built is refused.

    Attributes:
        image_size: side of the square images in pixels.
        image_channels: channels of the images.
        groups: group count of every norm at full width.
        widths: widths to train and search, descending; any other usable width runs too.
    """

    image_size: int
    image_channels: int
    groups: int
    widths: tuple[float, ...]
    # Layers of a block in the order in which they are made and listed; () is that of execution.
    # It says which random numbers a seed gives each, and is the order of an optimiser's state.
    layer_order: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def describe(self) -> Graph:
        """Return the network; called once a config."""

    @property
    def slicing(self) -> Slicing:
        """How a width slims it."""
        return Slicing(self.groups)

    @property
    def graph(self) -> Graph:
        """The network.

        Raises:
            ValueError: what `describe` returns is none, in one sentence that names the node.
        """
        return _graph(self)

    def counts(self, width: float) -> Counts:
        """Active channels of every node at `width`; see `Graph.counts`."""
        return _counts(self, width)

    def check_width(self, width: float) -> float:
        """Return `width` as a float after checking that this network can run at it.

        Raises:
            TypeError, ValueError: one sentence with the width, the channels it gives, what is
                needed and near usable widths.
        """
        return self.graph.check_width(self.slicing, width)

    def __post_init__(self) -> None:
        for name in ("image_size", "image_channels", "groups"):
            self._check_int(name, 1)
        graph = self.describe()  # not the cached one: widths may not be hashable yet
        for node in graph.nodes:
            for source in node.reads if node.op == "norm" else ():
                self._check(
                    "groups",
                    source.out.c_max % self.groups == 0,
                    f"a divisor of the {source.out.c_max} channels of {source.name}",
                )
        object.__setattr__(self, "widths", self._checked_widths(graph))

    def _check_int(self, name: str, least: int) -> None:
        value, need = getattr(self, name), f"an integer >= {least}"
        self._check_type(name, isinstance(value, int) and not isinstance(value, bool), need)
        self._check(name, is_int(value, least), need)

    def _check_ints(self, name: str, least: int) -> None:
        """A tuple or list of integers, which becomes a tuple."""
        values = getattr(self, name)
        self._check_type(name, isinstance(values, tuple | list), "a sequence of integers")
        for value in values:
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(
                    f"{type(self).__name__}: {name} is {value!r}; need an integer >= {least}"
                )
            if value < least:
                raise ValueError(
                    f"{type(self).__name__}: {name} is {value}; need an integer >= {least}"
                )
        object.__setattr__(self, name, tuple(values))

    def _check_levels(self, ch_mult: tuple[int, ...], attn: tuple[int, ...]) -> None:
        """`ch_mult` with a level a multiple, `attn` naming some of them, and a size for all."""
        name, levels = type(self).__name__, len(ch_mult)
        if not levels:
            raise ValueError(f"{name}: ch_mult is empty; need one multiple a level")
        if attn and max(attn) >= levels:
            raise ValueError(
                f"{name}: attn names level {max(attn)}, ch_mult has {levels} levels; "
                f"need levels from 0 to {levels - 1}"
            )
        step = 2 ** (levels - 1)
        if self.image_size % step:
            raise ValueError(
                f"{name}: image_size is {self.image_size} with {levels} levels; "
                f"need a multiple of {step}"
            )

    def _check_heads(self, channels: Iterable[int]) -> None:
        """`head_channels`, None or a divisor of the channels of each attention layer."""
        heads = getattr(self, "head_channels", None)
        if heads is None:
            return
        self._check_int("head_channels", 1)
        for c_max in sorted(channels):
            if c_max % heads:
                raise ValueError(
                    f"{type(self).__name__}: head_channels is {heads}, an attention layer has "
                    f"{c_max} channels; need a divisor of {c_max}"
                )

    def _check_probability(self, name: str) -> None:
        value = getattr(self, name)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        self._check_type(name, number, "a number")
        self._check(name, 0.0 <= value < 1.0, f"0 <= {name} < 1")

    def _checked_widths(self, graph: Graph) -> tuple[float, ...]:
        name, values = type(self).__name__, self.widths
        if isinstance(values, str | bytes) or not hasattr(values, "__iter__"):
            raise TypeError(f"{name}: widths is {values!r}; need a sequence of numbers")
        widths = tuple(graph.check_width(self.slicing, width) for width in values)
        if not widths:
            raise ValueError(f"{name}: widths is empty; need at least one width")
        if len(set(widths)) < len(widths):
            raise ValueError(f"{name}: widths {widths} repeats a width; need each one once")
        return tuple(sorted(widths, reverse=True))


@lru_cache(maxsize=64)
def _graph(config: NetworkConfig) -> Graph:
    graph = config.describe()
    check_nodes(graph.nodes, graph.image_size, config.slicing)
    graph.keep_sizes()
    return graph


@lru_cache(maxsize=1024)
def _counts(config: NetworkConfig, width: float) -> Counts:
    counts = config.graph.counts(config.slicing, width)
    for node in config.graph.nodes:
        for operand in (node.shift, node.residual, node.modulate):
            if operand is not None and counts[operand.index] != counts[node.index]:
                raise ValueError(
                    f"{node.name}: width {width:g} gives it {counts[node.index]} channels and "
                    f"{counts[operand.index]} to {operand}; need as many"
                )
    return counts
