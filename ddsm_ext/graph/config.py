"""`NetworkConfig`: settings that describe a network. No torch."""

from __future__ import annotations

import math
from abc import abstractmethod
from functools import lru_cache
from typing import ClassVar

from ddsm_ext.graph.check import check_nodes
from ddsm_ext.graph.count import layers
from ddsm_ext.graph.graph import Counts, Graph
from ddsm_ext.graph.slicing import Slicing
from ddsm_ext.settings import LARGEST_IMAGE, Refusal, Settings
from ddsm_ext.width import sorted_widths

MOST_WEIGHTS = 2**40  # 4 TB of float32
MOST_CHANNELS = 4096  # of an image


class NetworkConfig(Settings):
    """Base of the frozen dataclasses that describe a family of networks.

    A subclass has the fields below and more of its own, and `describe`; `__post_init__` checks what
    all families share, and calls `describe`, so that a network that cannot be built is refused.

    Attributes:
        image_size: side of the square images in pixels.
        image_channels: channels of the images.
        groups: slices of which a width keeps some; the group count of every norm at full width
            that has no own one.
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

    @property
    def label_count(self) -> int:
        """Classes 0 .. label_count - 1 of its labels; 0: it takes none."""
        return 0

    @property
    def null_label(self) -> int | None:
        """The label that stands for none, after those of the classes; None: there is none."""
        return None

    @property
    def augment_count(self) -> int:
        """Numbers that it may be told of how an image was augmented; 0: none."""
        return 0

    @property
    def predicts_variance(self) -> bool:
        """Whether its output has as many channels again as the image, for the variance."""
        return False

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

    def runs_at(self, width: float) -> bool:
        """True where `check_width` has nothing against `width`."""
        try:
            self.check_width(width)
        except Refusal:
            return False
        return True

    def __post_init__(self) -> None:
        self._check_int("image_size", 1, LARGEST_IMAGE)
        self._check_int("image_channels", 1, MOST_CHANNELS)
        self._check_int("groups", 1)
        graph = self.describe()  # not the cached one: widths may not be hashable yet
        weights = sum(math.prod(layer.weight_shape) for layer in layers(graph))
        if weights > MOST_WEIGHTS:
            raise Refusal(
                f"{type(self).__name__}: describes {weights:.3e} weights; need at most "
                f"{MOST_WEIGHTS:.3e}, as of fewer channels or blocks"
            )
        for node in graph.nodes:
            for source in node.reads if node.op == "norm" else ():
                self._check(
                    "groups",
                    source.out.c_max % self.groups == 0,
                    f"a divisor of the {source.out.c_max} channels of {source.name}",
                )
            if node.groups:
                fits = node.groups % self.groups == 0
                self._check("groups", fits, f"a divisor of the {node.groups} of {node.name}")
                if node.out.c_max % node.groups:
                    raise Refusal(
                        f"{node.name}: has {node.groups} groups; need a divisor of its "
                        f"{node.out.c_max} channels"
                    )
        widths = sorted_widths(
            type(self).__name__, self.widths, lambda width: graph.check_width(self.slicing, width)
        )
        object.__setattr__(self, "widths", widths)


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
        for operand in (node.shift, node.gate, node.residual, node.modulate, node.context):
            if operand is not None and counts[operand.index] != counts[node.index]:
                raise Refusal(
                    f"{node.name}: width {width:g} gives it {counts[node.index]} channels and "
                    f"{counts[operand.index]} to {operand}; need as many"
                )
    return counts
