"""The shapes with which a step calls each op, by arithmetic. No torch."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from ddsm_ext.graph.config import NetworkConfig
from ddsm_ext.graph.graph import Counts
from ddsm_ext.graph.node import PRODUCTS, Activation, Node
from ddsm_ext.settings import Refusal


@dataclass(frozen=True)
class Shape:
    """What an op is called with; `size` is the side of the result in pixels."""

    @property
    def macs(self) -> int:
        """MACs an image, bias not counted; 0 where nothing is multiplied."""
        return self._counted()[0]

    @property
    def activations(self) -> int:
        """Elements of an image's inputs, each read once, and of its output."""
        return self._counted()[1]

    @property
    def parameters(self) -> int:
        """Active elements of what is trained and read whatever the images are."""
        return self._counted()[2]

    @abstractmethod
    def _counted(self) -> tuple[int, int, int]:
        """MACs, activations and parameters."""


@dataclass(frozen=True)
class ConvShape(Shape):
    """A convolution: active and allocated channels, `c_in2` of a second source (0: none).

    `ring`: it is taken one pixel around the image, too. `pad_end`: it has one row and column of
    zeros less before the image.
    """

    c_in: int
    c_in2: int
    c_out: int
    c_in_max: int
    c_out_max: int
    kernel: int
    stride: int
    upsample: bool
    size: int
    ring: bool = False
    pad_end: bool = False

    def _counted(self) -> tuple[int, int, int]:
        c_in, pixels = self.c_in + self.c_in2, self.size**2
        weights = self.c_out * c_in * self.kernel**2
        activations = c_in * self.in_size**2 + self.c_out * pixels
        return weights * pixels, activations, weights + self.c_out

    @property
    def in_size(self) -> int:
        """Side of the input in pixels."""
        size = self.size - (2 if self.ring else 0)
        return size // 2 if self.upsample else size * self.stride

    def __str__(self) -> str:
        c_in = f"{self.c_in}+{self.c_in2}" if self.c_in2 else str(self.c_in)
        extra = " /2" if self.stride == 2 else " x2" if self.upsample else ""
        extra += (" ring" if self.ring else "") + (" pad_end" if self.pad_end else "")
        return f"{c_in}->{self.c_out} {self.kernel}x{self.kernel} @{self.size}{extra}"


@dataclass(frozen=True)
class LinearShape(Shape):
    """A linear layer on `rows` rows an image; of `blocks`, with an activation."""

    c_in: int
    c_out: int
    c_in_max: int
    c_out_max: int
    rows: int = 1
    blocks: int = 1
    activation: Activation | None = None

    def _counted(self) -> tuple[int, int, int]:
        c_out = self.blocks * self.c_out
        results = self.c_out if self.activation == "geglu" else c_out
        macs = self.rows * self.c_in * c_out
        return macs, self.rows * (self.c_in + results), c_out * (self.c_in + 1)

    def __str__(self) -> str:
        rows = f" @{self.rows}" if self.rows > 1 else ""
        blocks = f"{self.blocks}x" if self.blocks > 1 else ""
        act = f" {self.activation}" if self.activation else ""
        return f"{self.c_in}->{blocks}{self.c_out}{rows}{act}"


@dataclass(frozen=True)
class NormShape(Shape):
    """A group norm over one or two sources (`c2` = 0: one), with or without SiLU.

    `modulated`: each image has a scale and a shift of its own besides. Scale and shift, one's own
    or not, count two MACs an element.
    """

    c: int
    c2: int
    c_max: int
    groups: int
    size: int
    silu: bool
    modulated: bool = False

    def _counted(self) -> tuple[int, int, int]:
        c, pixels = self.c + self.c2, self.size**2
        return (4 if self.modulated else 2) * c * pixels, 2 * c * (pixels + self.modulated), 2 * c

    def __str__(self) -> str:
        c = f"{self.c}+{self.c2}" if self.c2 else str(self.c)
        extra = (" modulated" if self.modulated else "") + (" silu" if self.silu else "")
        return f"{c} /{self.groups} @{self.size}{extra}"


@dataclass(frozen=True)
class LayerNormShape(Shape):
    """A layer norm of `rows` rows an image; scale and shift count two MACs an element."""

    c: int
    c_max: int
    rows: int
    modulated: bool = False

    def _counted(self) -> tuple[int, int, int]:
        more = 2 * self.c * self.modulated
        return (4 if self.modulated else 2) * self.c * self.rows, 2 * self.c * self.rows + more, (
            2 * self.c
        )

    def __str__(self) -> str:
        return f"{self.c} @{self.rows}" + (" modulated" if self.modulated else "")


@dataclass(frozen=True)
class AttentionShape(Shape):
    """Attention of `tokens` pixels in `heads` heads of `head_size` channels.

    `keys`: what they attend to; None: each other.
    """

    heads: int
    tokens: int
    head_size: int
    keys: int | None = None

    def _counted(self) -> tuple[int, int, int]:
        queries = self.heads * self.tokens * self.head_size
        keys = self.tokens if self.keys is None else self.keys
        return 2 * queries * keys, 2 * queries + 2 * self.heads * keys * self.head_size, 0

    def __str__(self) -> str:
        keys = "" if self.keys is None else f" to {self.keys}"
        return f"{self.heads}x{self.tokens}x{self.head_size}{keys}"


@dataclass(frozen=True)
class ResampleShape(Shape):
    """Images enlarged or halved by 2 with a filter of 2 or 4 taps.

    `ring`: the input is one pixel larger on each side. `residual`: one is added.
    """

    c: int
    size: int
    up: bool
    taps: int = 2
    ring: bool = False
    residual: bool = False

    @property
    def in_size(self) -> int:
        """Side of the input in pixels."""
        return self.size // 2 if self.up else 2 * self.size + (2 if self.ring else 0)

    def _counted(self) -> tuple[int, int, int]:
        return 0, self.c * (self.in_size**2 + (1 + self.residual) * self.size**2), 0

    def __str__(self) -> str:
        taps = "" if self.taps == 2 else f" {self.taps} taps"
        extra = (" ring" if self.ring else "") + (" + residual" if self.residual else "")
        return f"{self.c} @{self.size} {'x2' if self.up else '/2'}{taps}{extra}"


@dataclass(frozen=True)
class EmbeddingShape(Shape):
    """One row an image of a table [rows, c_max], of which `c` columns are active."""

    rows: int
    c: int
    c_max: int

    def _counted(self) -> tuple[int, int, int]:
        return 0, 2 * self.c, 0

    def __str__(self) -> str:
        return f"{self.rows}x{self.c}"


OPS = ("conv2d", "linear", "group_norm", "layer_norm", "attention", "resample", "embedding")


def least_bytes(shape: Shape, batch: int, element_bytes: int) -> int:
    """Bytes that any kernel moves: every input and parameter read once, the output written once."""
    return (batch * shape.activations + shape.parameters) * element_bytes


def op_shapes(config: NetworkConfig, width: float, op: str) -> dict[Shape, int]:
    """Return every distinct shape with which a step at `width` calls an op, and how often.

    The calls are those of the modules: a convolution that resamples its input first is one
    "resample" a source and one "conv2d"; one that enlarges it by 2 taps is one "conv2d".

    Args:
        config: the network.
        width: 0 < width <= 1, usable by `config`.
        op: one of OPS.

    Raises:
        TypeError, ValueError: another op, or a width that cannot be used.
    """
    if op not in OPS:
        raise Refusal(f"op_shapes: op is {op!r}; need {', '.join(OPS[:-1])} or {OPS[-1]}")
    counts = config.counts(width)
    calls = (call for node in config.graph.nodes for call in _calls(config, node, counts))
    return dict(Counter(shape for name, shape in calls if name == op))


def _calls(config: NetworkConfig, node: Node, counts: Counts) -> Iterator[tuple[str, Shape]]:
    """The ops that a node calls."""
    c, size, c_max = counts[node.index], node.size or 1, node.out.c_max
    if node.idle:
        return
    if node.op in ("attention", "cross_attention"):
        heads = c // node.out.head if node.out.head else 1
        keys = node.context.pixels if node.context else None
        yield "attention", AttentionShape(heads, node.pixels, c // heads, keys)
    elif node.op == "layer_norm":
        yield "layer_norm", LayerNormShape(c, c_max, node.pixels)
    elif node.op == "resample":
        added = node.residual is not None
        yield "resample", ResampleShape(
            c, size, node.resample == "up", node.taps, node.ring, added
        )
    elif node.op == "embed":
        yield "embedding", EmbeddingShape(node.rows, c, c_max)
    elif node.op in (*PRODUCTS, "norm"):
        inputs = node.sources
        c_in, *rest = (counts[source.index] for source in inputs)
        c_in2, c_in_max = sum(rest), sum(source.out.c_max for source in inputs)
        if node.op == "norm":
            groups = config.slicing.group_count(c_max, c, node.groups)
            modulated = node.modulate is not None
            yield "group_norm", NormShape(c_in, c_in2, c_max, groups, size, node.silu, modulated)
        elif node.op in ("linear", "pointwise"):
            channels = (c_in, c, c_in_max, c_max)
            for _ in node.layer_names:
                yield "linear", LinearShape(*channels, node.pixels, node.blocks, node.activation)
        else:
            yield from _convolutions(node, (c_in, c_in2, c, c_in_max, c_max))


def _convolutions(
    node: Node, channels: tuple[int, int, int, int, int]
) -> Iterator[tuple[str, Shape]]:
    size = node.size or 1
    window = (node.kernel, node.stride, node.enlarges)
    shape = ConvShape(*channels, *window, size, node.ring, node.pad_end)
    if node.resample and not node.enlarges:
        for c in filter(None, channels[:2]):
            yield "resample", ResampleShape(c, shape.in_size, node.resample == "up", node.taps)
    for _ in node.layer_names:
        yield "conv2d", shape
