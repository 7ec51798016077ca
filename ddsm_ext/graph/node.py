"""`Node`: one operation of a described network. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ddsm_ext.graph.slicing import Role

Resampling = Literal["up", "down"]


@dataclass(frozen=True)
class Side:
    """Channels of a value: allocated count and the rule that slims it.

    `head`: the channels of an attention head, of which whole ones are kept; None: one head of all.
    """

    c_max: int
    role: Role = "conv"
    head: int | None = None


@dataclass(frozen=True, eq=False)
class Node:
    """One operation; nodes are compared by identity.

    Attributes:
        op: the word that made it, the name of the method that a backend computes it with.
        name: path of its module in state dicts; of an operation without parameters a name for
            errors and tables.
        index: its place in `Graph.nodes`.
        reads: its inputs; two are the unjoined concat of a skip.
        out: channels of the result, of each part where there are several.
        size: side of the result in pixels at the config's image size; None: one row an image.
        parts: names of layers side by side below `name`, which read the same input and whose
            results are a tuple; (): the layer is `name` itself.
        kernel, stride: of a convolution, whose padding keeps the size at stride 1.
        resample: "up", the input enlarged 2x (nearest neighbour) first; "down", halved (means of
            2x2) first.
        silu: SiLU on the result.
        gain: factor on a layer's usual initial weights.
        shift: one row an image, added to the result (before SiLU).
        residual: of the result's form, added to it.
        modulate: a node of two parts, scale and shift: a norm's result becomes
            result * (1 + scale) + shift before SiLU.
        eps: added to a norm's variance.
        rows: of a table (embeddings by label, frozen time embeddings).
        halves: a time embedding is [all cosines, all sines]; False: sine and cosine in turn.
        p: probability of dropout.
    """

    op: str
    name: str
    index: int
    reads: tuple[Node, ...]
    out: Side
    size: int | None
    parts: tuple[str, ...] = ()
    kernel: int = 1
    stride: int = 1
    resample: Resampling | None = None
    silu: bool = False
    gain: float = 1.0
    shift: Node | None = None
    residual: Node | None = None
    modulate: Node | None = None
    eps: float = 1e-5
    rows: int = 0
    halves: bool = False
    p: float = 0.0

    @property
    def operands(self) -> tuple[Node, ...]:
        """All nodes whose values it takes."""
        more = (self.shift, self.residual, self.modulate)
        return (*self.reads, *(node for node in more if node is not None))

    @property
    def pixels(self) -> int:
        """Pixels, or rows, of an image's result."""
        return 1 if self.size is None else self.size**2

    @property
    def normed(self) -> bool:
        """True for a norm, with dropout or without: what reads it may apply it."""
        return self.op == "norm" or (self.op == "dropout" and self.reads[0].normed)

    @property
    def sources(self) -> tuple[Node, ...]:
        """What it reads, in concatenation order: norm and dropout leave a concat unjoined."""
        return tuple(
            source
            for read in self.reads
            for source in (read.sources if read.op in ("norm", "dropout") else (read,))
        )

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Module paths of its layers, one a part."""
        return tuple(f"{self.name}.{part}" for part in self.parts) or (self.name,)

    def __str__(self) -> str:
        return f"{self.name} ({self.op})"

    __repr__ = __str__
