"""`Graph`: a network as a list of nodes, appended by the words of a description. No torch.

Everything else about the network is read from the list: modules, dense export, plans, captured
steps, counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from ddsm_ext.graph.node import (
    Activation,
    Node,
    Resampling,
    Scope,
    Side,
    Walk,
    make_scope,
    make_walk,
)
from ddsm_ext.graph.slicing import Pair, Role, Slicing
from ddsm_ext.settings import Refusal

Counts = tuple[int, ...]


class Graph:
    """A network's nodes in order of execution; `words` below append to them.

    The last node is the prediction. Names are module paths: all nodes below one path follow each
    other, and only the last of them is read outside.

    Args:
        image_size: side of the images in pixels.
    """

    def __init__(self, image_size: int) -> None:
        self.image_size = image_size
        self.nodes: list[Node] = []
        self.inputs: dict[str, Node] = {}
        self._names: set[str] = set()

    def input(
        self, name: str, channels: int = 0, *, image: bool = False, tokens: int | None = None
    ) -> Node:
        """An argument of the network.

        Args:
            name: "x", images of `channels`; "t", timesteps; "y", labels; "augment", `channels`
                numbers about each image, or None, which adds nothing; "context", tokens of
                `channels` each.
            channels: of an image or token, or numbers.
            image: True for "x".
            tokens: of a context, as counts take them; a call may have any number.
        """
        size, side = self.image_size if image else None, Side(channels, "fixed")
        self.inputs[name] = self.add("input", name, (), side, size, tokens=tokens)
        return self.inputs[name]

    def sinusoid(
        self,
        name: str,
        t: Node,
        dim: int,
        *,
        halves: bool = False,
        swapped: bool = False,
        freq_shift: float = 0.0,
        fourier: float = 0.0,
        table_rows: int = 0,
    ) -> Node:
        """Sinusoidal embedding of timesteps; `table_rows`: frozen rows for its integer steps."""
        return self.add(
            "sinusoid", name, (t,), Side(dim, "fixed"), None, halves=halves, swapped=swapped,
            freq_shift=freq_shift, fourier=fourier, rows=table_rows,
        )  # fmt: skip

    def embed(
        self, name: str, y: Node, rows: int, c: int, *, shift: Node | None = None,
        role: Role = "linear",
    ) -> Node:  # fmt: skip
        """The rows of a table [rows, c] that labels name; `shift`: another embedding, added."""
        return self.add("embed", name, (y,), Side(c, role), None, rows=rows, shift=shift)

    def linear(
        self,
        name: str,
        x: Node,
        c_out: int,
        *,
        silu: bool = False,
        shift: Node | None = None,
        parts: Sequence[str] = (),
        role: Role = "linear",
        head: int | None = None,
        bias: bool = True,
        idle: bool = False,
    ) -> Node:
        """A linear layer on one row an image; of the input "augment" without bias, on a shift."""
        return self.add(
            "linear", name, (x,), Side(c_out, role, head), None,
            silu=silu, shift=shift, parts=tuple(parts), bias=bias, idle=idle,
        )  # fmt: skip

    def pointwise(
        self,
        name: str,
        x: Node,
        c_out: int,
        *,
        blocks: int = 1,
        activation: Activation | None = None,
        shift: Node | None = None,
        gate: Node | None = None,
        residual: Node | None = None,
        role: Role = "conv",
        head: int | None = None,
        bias: bool = True,
        gain: float = 1.0,
        idle: bool = False,
    ) -> Node:
        """A linear layer on every pixel or token: residual + gate * activation(W x + shift)."""
        if blocks > 1 and (shift is not None or residual is not None) and activation != "geglu":
            raise Refusal(f"{name}: adds something to {blocks} blocks; need one result")
        return self.add(
            "pointwise", name, (x,), Side(c_out, role, head), x.size, tokens=x.tokens,
            blocks=blocks, activation=activation, shift=shift, gate=gate, residual=residual,
            bias=bias, gain=gain, idle=idle,
        )  # fmt: skip

    def conv(
        self,
        name: str,
        x: Node | Sequence[Node],
        c_out: int,
        kernel: int = 3,
        *,
        stride: int = 1,
        resample: Resampling | None = None,
        taps: int = 2,
        ring: bool = False,
        pad_end: bool = False,
        shift: Node | None = None,
        residual: Node | None = None,
        scale: float = 1.0,
        parts: Sequence[str] = (),
        role: Role = "conv",
        head: int | None = None,
        gain: float = 1.0,
    ) -> Node:
        """A convolution of one input or of the unjoined concat of two, or of their norm."""
        reads = _sources(x)
        size = _resampled(name, reads[0], resample)
        if size % stride:
            raise Refusal(f"{name}: its input has {size} pixels a side; need an even number")
        return self.add(
            "conv", name, reads, Side(c_out, role, head), size // stride + (2 if ring else 0),
            kernel=kernel, stride=stride, resample=resample, taps=taps, ring=ring, pad_end=pad_end,
            shift=shift, residual=residual, scale=scale, parts=tuple(parts), gain=gain,
        )  # fmt: skip

    def norm(
        self,
        name: str,
        x: Node | Sequence[Node],
        *,
        silu: bool = False,
        modulate: Node | None = None,
        eps: float = 1e-5,
        groups: int = 0,
    ) -> Node:
        """A group norm over one input or the unjoined concat of two, which it leaves unjoined."""
        reads = _sources(x)
        side = Side(sum(node.out.c_max for node in reads), reads[0].out.role)
        if modulate is not None and len(modulate.parts) != 2:
            raise Refusal(f"{name}: modulated by {modulate}; need a node of two parts")
        return self.add("norm", name, reads, side, reads[0].size,
                         silu=silu, modulate=modulate, eps=eps, groups=groups)  # fmt: skip

    def layer_norm(self, name: str, x: Node, *, eps: float = 1e-5, idle: bool = False) -> Node:
        """A layer norm over the channels of every pixel, with scale and shift of its own."""
        return self.add("layer_norm", name, (x,), x.out, x.size, eps=eps, idle=idle)

    def attention(self, name: str, qkv: Node) -> Node:
        """Self-attention over all pixels; `qkv`, of three parts or blocks, says what a head is."""
        if qkv.results == 3:
            return self.add("attention", name, (qkv,), qkv.out, qkv.size)
        raise Refusal(f"{name}: reads {qkv}; need a node of three parts")

    def cross_attention(self, name: str, q: Node, kv: Node) -> Node:
        """Attention of all pixels to a context; `kv` has two blocks, `q` says what a head is."""
        if (q.results, kv.results) != (1, 2):
            raise Refusal(f"{name}: reads {q} and {kv}; need one result, and a node of two blocks")
        return self.add("cross_attention", name, (q,), q.out, q.size, context=kv)

    def resample(
        self,
        name: str,
        x: Node,
        resample: Resampling,
        *,
        taps: int = 2,
        ring: bool = False,
        residual: Node | None = None,
        scale: float = 1.0,
    ) -> Node:
        """Enlarge or halve by 2; see `Node`'s attributes."""
        size = _resampled(name, x, resample) - (1 if ring else 0)
        return self.add(
            "resample", name, (x,), x.out, size,
            resample=resample, taps=taps, ring=ring, residual=residual, scale=scale,
        )  # fmt: skip

    def dropout(self, name: str, x: Node, p: float) -> Node:
        """Dropout in training; without it (p = 0) this is x itself."""
        return self.add("dropout", name, (x,), x.out, x.size, p=p) if p else x

    def add(
        self,
        op: str,
        name: str,
        reads: tuple[Node, ...],
        out: Side,
        size: int | None,
        **more: Any,
    ) -> Node:
        """Append a node; every word ends here. Arguments as `Node`'s attributes.

        A result whose `out` is that of its input has as many active channels as the input.
        """
        node = Node(op, name, len(self.nodes), reads, out, size, **more)
        if name in self._names:
            raise Refusal(f"{name}: is described twice; need another name")
        if node.out.c_max < 0 or (op != "input" and node.out.c_max < 1):
            raise Refusal(f"{name}: has {node.out.c_max} channels; need at least 1")
        self.nodes.append(node)
        self._names.add(name)
        return node

    @property
    def output(self) -> Node:
        """The prediction."""
        return self.nodes[-1]

    @cached_property
    def readers(self) -> Mapping[Node, tuple[Node, ...]]:
        """The nodes that take each node's value, in order."""
        found: dict[Node, list[Node]] = {node: [] for node in self.nodes}
        for node in self.nodes:
            for operand in () if node.idle else node.operands:
                found[operand].append(node)
        return {node: tuple(readers) for node, readers in found.items()}

    def wants_moments(self, node: Node) -> bool:
        """True if a norm reads the node."""
        return any(reader.op == "norm" for reader in self.readers[node])

    def is_shortcut(self, node: Node) -> bool:
        """True for a bare 1x1 convolution that is only the residual of one other."""
        bare = (node.kernel, node.stride, node.resample, node.ring, node.shift, node.residual,
                node.scale, node.parts)  # fmt: skip
        readers = self.readers[node]
        return (
            node.op == "conv"
            and bare == (1, 1, None, False, None, None, 1.0, ())
            and not any(source.normed for source in node.reads)
            and len(readers) == 1
            and readers[0].op == "conv"
            and readers[0].residual is node
            and not readers[0].parts
        )

    def is_enlarged_residual(self, node: Node) -> bool:
        """True for a bare nearest-neighbour enlargement that convolutions add, and nothing else."""
        bare = node.enlarges and (node.residual, node.scale) == (None, 1.0)
        readers = self.readers[node]
        return bare and bool(readers) and all(
            reader.op == "conv" and reader.residual is node and reader.operands.count(node) == 1
            for reader in readers
        )

    @cached_property
    def before_labels(self) -> frozenset[Node]:
        """Images that no label and no context takes part in.

        For several labels of each image they are computed once. What its readers compute on the
        way, a norm or a shortcut, is among them if all of these are.
        """
        found: set[Node] = set()
        for node in self.nodes:
            labels = node.op == "input" and node.name in ("y", "context")
            if not labels and found.issuperset(node.operands):
                found.add(node)
        for node in reversed(self.nodes):
            lazy = node.normed or self.is_shortcut(node) or self.is_enlarged_residual(node)
            if lazy and not found.issuperset(self.readers[node]):
                found.discard(node)
        return frozenset(node for node in found if node.size is not None)

    def siblings(self, node: Node) -> tuple[Node, ...]:
        """The node and its like that read the same input and nothing else."""
        return tuple(
            other
            for other in self.readers[node.reads[0]]
            if other.op == node.op
            and other.operands == node.operands == node.reads
            and (other.silu, other.bias) == (node.silu, node.bias)
        )

    def keep_sizes(self) -> None:
        """Work out now what a network asks in every call; torch.compile enters no lock for it."""
        _ = self.size_step, self._pairs

    @cached_property
    def size_step(self) -> int:
        """What the sides of images must be multiples of."""
        smallest = min(node.size for node in self.nodes if node.size is not None)
        return self.image_size // smallest

    @cached_property
    def walk(self) -> Walk:
        """All nodes but the inputs, as steps of `run`."""
        return make_walk([n for n in self.nodes if n.op != "input"], self.output)

    @cached_property
    def scope(self) -> Scope:
        """The nodes as a tree by module path."""
        return make_scope("", [n for n in self.nodes if n.op != "input"], self.readers)

    def counts(self, slicing: Slicing, width: float) -> Counts:
        """Active channels of every node's value (of each part), by index.

        Raises:
            TypeError, ValueError: the network cannot run at this width.
        """
        width = self.check_width(slicing, width)
        active: dict[Side, int] = {}  # few sides, many nodes
        counts: list[int] = []
        for node in self.nodes:
            if node.op == "norm":
                counts.append(sum(counts[source.index] for source in node.reads))
            elif node.reads and node.out is node.reads[0].out:
                counts.append(counts[node.reads[0].index])
            else:
                out = node.out
                if out not in active:
                    active[out] = slicing.active(out.c_max, width, out.role, out.head)
                counts.append(active[out])
        return tuple(counts)

    def check_width(self, slicing: Slicing, width: float) -> float:
        """Return `width` as a float after checking that the network can run at it.

        Raises:
            TypeError, ValueError: one sentence with the width, the channels it gives, what is
                needed and near usable widths.
        """
        return slicing.check_width(width, self._pairs)

    @cached_property
    def _pairs(self) -> tuple[Pair, ...]:
        """Sides whose counts must fit each other at every width; see `Slicing.check_width`."""
        norms = [(n.out.c_max, "") for node in self.nodes if node.op == "norm" for n in node.reads]
        shifts = [
            (node.out.c_max, node.shift.out.role)
            for node in self.nodes
            if node.op == "conv" and node.shift is not None
        ]
        attentions = [
            (node.out.c_max, node.out.role)
            for node in self.nodes
            if node.op == "attention" and node.out.head is None
        ]
        return (*sorted({*norms, *shifts}), *sorted(set(attentions)))


def _sources(x: Node | Sequence[Node]) -> tuple[Node, ...]:
    return (x,) if isinstance(x, Node) else tuple(x)


def _resampled(name: str, x: Node, resample: Resampling | None) -> int:
    if x.size is None:
        kind = "one row an image" if x.is_row else "a context"
        raise Refusal(f"{name}: reads {x}, {kind}; need an image")
    if resample == "up":
        return 2 * x.size
    if resample == "down" and x.size % 2:
        raise Refusal(f"{name}: its input has {x.size} pixels a side; need an even number")
    return x.size // 2 if resample == "down" else x.size
