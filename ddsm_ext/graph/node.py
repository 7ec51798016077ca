"""`Node`: one operation of a network; nodes in order, as a tree of blocks, computed. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ddsm_ext.graph.slicing import Role
from ddsm_ext.settings import Refusal

Resampling = Literal["up", "down"]
Activation = Literal["gelu", "gelu_tanh", "geglu"]
# Words of layers with parameters.
LAYERS = ("conv", "linear", "pointwise", "norm", "layer_norm", "embed")
# Those that multiply by a weight matrix.
PRODUCTS = ("conv", "linear", "pointwise")


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
        size: side of the result in pixels at the config's image size; None: one row an image, or
            `tokens`.
        tokens: rows of an image of a context, as counts take them; None: it is none.
        parts: names of layers side by side below `name`, which read the same input and whose
            results are a tuple; (): the layer is `name` itself.
        kernel, stride: of a convolution, whose padding keeps the size at stride 1.
        resample: "up", the input enlarged 2x first; "down", halved first.
        taps: of the filter that resamples, in each direction: 2 are [1, 1] / 2, nearest neighbours
            up and means of 2x2 down; 4 are [1, 3, 3, 1] / 8 around it, with zeros beyond the image.
        ring: of a convolution: it is taken one pixel around the image, too, with zeros beyond; of a
            filter that halves: its input has that ring, and nothing is beyond.
        pad_end: of a convolution of stride 2: one row and column of zeros less before the image, so
            that a 3x3 window meets zeros behind it alone.
        silu: SiLU on the result.
        gain: factor on a layer's usual initial weights.
        shift: one row an image, added to the result (before SiLU).
        residual: of the result's form, added to it.
        scale: factor on the result with all that is added.
        modulate: a node of two parts, scale and shift: a norm's result becomes
            result * (1 + scale) + shift before SiLU.
        context: keys and values of two blocks, to which queries attend.
        blocks: weights in one parameter, of which a width takes a prefix each; their results lie
            side by side.
        activation: on a product's result before the residual: None, "gelu" (by erf), "gelu_tanh",
            or "geglu", which makes one of two blocks: the first times the gelu of the second.
        gate: one row an image, times what the activation gives.
        idle: it has parameters and nothing reads it: it is never computed.
        eps: added to a norm's variance.
        groups: of a norm at full width, a multiple of the config's; 0: the config's.
        bias: a linear layer has one.
        rows: of a table (embeddings by label, frozen time embeddings).
        halves: a time embedding is [all cosines, all sines]; False: sine and cosine in turn.
        swapped: of halves: the sines first.
        freq_shift: a time embedding's frequencies are 10000^(-i / (dim / 2 - freq_shift)).
        fourier: standard deviation of a time embedding's random frozen frequencies; 0: it has the
            above.
        p: probability of dropout.
    """

    op: str
    name: str
    index: int
    reads: tuple[Node, ...]
    out: Side
    size: int | None
    tokens: int | None = None
    parts: tuple[str, ...] = ()
    kernel: int = 1
    stride: int = 1
    resample: Resampling | None = None
    taps: int = 2
    ring: bool = False
    pad_end: bool = False
    silu: bool = False
    gain: float = 1.0
    shift: Node | None = None
    residual: Node | None = None
    scale: float = 1.0
    modulate: Node | None = None
    context: Node | None = None
    blocks: int = 1
    activation: Activation | None = None
    gate: Node | None = None
    idle: bool = False
    eps: float = 1e-5
    groups: int = 0
    bias: bool = True
    rows: int = 0
    halves: bool = False
    swapped: bool = False
    freq_shift: float = 0.0
    fourier: float = 0.0
    p: float = 0.0

    @property
    def operands(self) -> tuple[Node, ...]:
        """All nodes whose values it takes."""
        more = (self.shift, self.residual, self.modulate, self.context, self.gate)
        return (*self.reads, *(node for node in more if node is not None))

    @property
    def is_row(self) -> bool:
        """True for one row an image."""
        return self.size is None and self.tokens is None

    @property
    def pixels(self) -> int:
        """Pixels, tokens, or the one row, of an image's result."""
        return self.tokens or 1 if self.size is None else self.size**2

    @property
    def weights(self) -> int:
        """Weights [c_out, c_in] that lie in its parameters, side by side."""
        return self.blocks * (len(self.parts) or 1)

    @property
    def results(self) -> int:
        """Values of `out` channels each that it makes."""
        return 1 if self.activation == "geglu" else self.weights

    @property
    def normed(self) -> bool:
        """True for a norm, with dropout or without: what reads it may apply it."""
        return self.op == "norm" or (self.op == "dropout" and self.reads[0].normed)

    @property
    def enlarges(self) -> bool:
        """True where nearest neighbours enlarge its input, which what reads it may do itself."""
        return self.resample == "up" and self.taps == 2

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


Values = dict[int, Any]


@dataclass(frozen=True)
class Scope:
    """Nodes below one module path as a block: what it takes from outside, and its one result."""

    name: str
    steps: tuple[Node | Scope, ...]
    reads: tuple[Node, ...]
    result: Node
    index: int  # of the result: where a walk leaves it
    op: str = "block"
    idle: bool = False

    @property
    def operands(self) -> tuple[Node, ...]:
        """`reads`."""
        return self.reads


Step = Node | Scope
# Steps in order: word, step, index of the result, and the values that no later step takes.
Walk = tuple[tuple[str, Step, int, tuple[int, ...]], ...]


def make_walk(steps: Iterable[Step], result: Node) -> Walk:
    """Return the steps to compute with what dies after each; the result does not."""
    steps = tuple(step for step in steps if not step.idle)
    last = {node.index: at for at, step in enumerate(steps) for node in step.operands}
    last.pop(result.index, None)
    dies: list[list[int]] = [[] for _ in steps]
    for index, at in last.items():
        dies[at].append(index)
    return tuple(
        (step.op, step, step.index, tuple(dead)) for step, dead in zip(steps, dies, strict=True)
    )


def make_scope(path: str, nodes: list[Node], readers: Mapping[Node, tuple[Node, ...]]) -> Scope:
    """Gather nodes as a tree; lists of blocks (the `down` of `down.0`) are no scopes of their own.

    Args:
        path: the module path that the nodes share; "": the network.
        nodes: all that lie below it, in order.
        readers: the nodes that take each node's value.

    Raises:
        ValueError: nodes of a path do not follow each other, or others than the last leave it.
    """
    steps: dict[str, Step] = {}
    at = 0
    while at < len(nodes):
        inner = _inner_path(path, nodes[at])
        end = at + 1
        while inner and end < len(nodes) and _inner_path(path, nodes[end]) == inner:
            end += 1
        name = inner or nodes[at].name
        if name in steps:
            raise Refusal(f"{name}: its nodes do not follow each other; need them in one row")
        steps[name] = make_scope(inner, nodes[at:end], readers) if inner else nodes[at]
        at = end
    inside = set(nodes)
    reads = dict.fromkeys(
        o for node in nodes if not node.idle for o in node.operands if o not in inside
    )
    busy = [n for n in nodes if not n.idle]
    left = [n for n in busy if not readers[n] or not inside.issuperset(readers[n])]
    if left != nodes[-1:]:
        names = ", ".join(node.name for node in left)
        raise Refusal(f"{path or 'the network'}: {names} leave it; need its last node alone")
    return Scope(path, tuple(steps.values()), tuple(reads), nodes[-1], nodes[-1].index)


def _inner_path(path: str, node: Node) -> str:
    """The next scope on the way from `path` to the node's layers; "": the node stands in `path`."""
    if node.name == path:
        return ""
    below = node.name.removeprefix(path + "." if path else "").split(".")
    depth = len(below) if node.parts else len(below) - 1
    taken = 2 if len(below) > 1 and below[1].isdigit() else 1
    return ".".join(filter(None, (path, *below[:taken]))) if taken <= depth else ""


def run(walk: Walk, backend: Any, value: Values) -> None:
    """Compute each step by the backend's method of its word.

    Args:
        walk: the steps.
        backend: called as `backend.<op>(node, value)` for each step.
        value: node index -> value, with the inputs at first and the result at the end; a value is
            forgotten once nothing needs it.

    Raises:
        Exception: a backend's, with a note that names the node.
    """
    for op, step, index, dead in walk:
        try:
            value[index] = getattr(backend, op)(step, value)
        except Exception as error:
            note = f"in {step.name}"
            if note not in getattr(error, "__notes__", ()):
                error.add_note(note)
            raise
        for gone in dead:
            del value[gone]
