"""Refuses descriptions that are no network, in one sentence that names the node. No torch."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from ddsm_ext.graph.node import LAYERS, Node
from ddsm_ext.graph.slicing import Slicing
from ddsm_ext.settings import Refusal

_NAME = re.compile(r"[A-Za-z_]\w*(\.\w+)*", re.ASCII)
# What reads one input, and an image.
_ONE = ("sinusoid", "embed", "linear", "pointwise", "layer_norm", "attention", "cross_attention",
        "resample", "dropout")  # fmt: skip
_OF_ROWS = ("sinusoid", "embed", "linear")


def check_nodes(nodes: Sequence[Node], image_size: int, slicing: Slicing) -> None:
    """Check a network's nodes.

    Args:
        nodes: in order of execution; the last is the prediction.
        image_size: side of the images in pixels.
        slicing: how widths slim it.

    Raises:
        ValueError: one sentence with the node's name, what is wrong and what is needed.
    """
    for index, node in enumerate(nodes):
        for operand in node.operands:
            if operand.index >= index or nodes[operand.index] is not operand:
                raise _wrong(node, f"reads {operand} of another graph", "nodes of its own")
        _check_name(node)
        _check_kind(node)
        _check_reads(node)
        _check_context(node)
        _check_added(node)
        full = slicing.active(node.out.c_max, 1.0, node.out.role, node.out.head)
        if node.op not in ("input", "norm") and full != node.out.c_max:
            need = f"a multiple of the {slicing.groups} groups"
            raise _wrong(node, f"has {node.out.c_max} channels", need)
    _check_layers(nodes)
    _check_ends(nodes, image_size)


def _wrong(node: Node, what: str, need: str) -> Refusal:
    return Refusal(f"{node.name}: {what}; need {need}")


def _check_name(node: Node) -> None:
    if not _NAME.fullmatch(node.name):
        raise Refusal(
            f"{node.op}: its name is {node.name!r}; need a module path such as 'down.0.conv'"
        )


def _check_kind(node: Node) -> None:
    """A node's own settings."""
    if node.op == "input" and node.name not in ("x", "t", "y", "augment", "context"):
        raise _wrong(node, "is an input", "x, t, y, augment or context")
    if node.op == "input" and (node.name == "x") != (node.size is not None):
        kind = "one number an image" if node.size is None else "images"
        raise _wrong(node, f"is {kind}", "x to be images, t and y numbers")
    if node.op == "input" and (node.name == "context") != (node.tokens is not None):
        raise _wrong(node, f"has tokens {node.tokens}", "the count of a context, of no other input")
    if node.tokens is not None and node.tokens < 1:
        raise _wrong(node, f"has {node.tokens} tokens", "at least 1")
    if node.op == "input" and node.name in ("x", "augment", "context") and node.out.c_max < 1:
        raise _wrong(node, "has 0 channels", "at least 1")
    if node.activation not in (None, "gelu", "gelu_tanh", "geglu"):
        raise _wrong(node, f"its activation is {node.activation!r}", "gelu, gelu_tanh or geglu")
    changed = node.activation is not None or node.gate is not None
    if node.shift is not None and changed:
        raise _wrong(node, "has a shift beside an activation or a gate", "none")
    if (node.activation == "geglu") > (node.blocks == 2) or node.blocks < 1:
        raise _wrong(node, f"has {node.blocks} blocks", "at least 1, for a geglu 2")
    if node.resample not in (None, "up", "down"):
        raise _wrong(node, f"resample is {node.resample!r}", "None, 'up' or 'down'")
    if node.taps not in (2, 4):
        raise _wrong(node, f"its filter has {node.taps} taps", "2 or 4")
    if node.op == "conv" and node.ring and (node.stride, node.resample) != (1, None):
        raise _wrong(node, "has a ring", "stride 1 and no resample beside it")
    if node.op == "resample" and node.ring and (node.resample, node.taps) != ("down", 4):
        raise _wrong(node, "reads a ring around the image", "a filter of 4 taps that halves")
    if node.pad_end and (node.stride != 2 or node.kernel < 3):
        have = f"pads its end with a {node.kernel}x{node.kernel} kernel at stride {node.stride}"
        raise _wrong(node, have, "3x3 or more at stride 2")
    if node.stride not in (1, 2):
        raise _wrong(node, f"stride is {node.stride}", "1 or 2")
    if node.kernel < 1 or node.kernel % 2 == 0:
        raise _wrong(node, f"kernel is {node.kernel}", "an odd number")
    if node.op == "sinusoid":
        _check_sinusoid(node)
    if node.op == "embed" and node.rows < 1:
        raise _wrong(node, f"has {node.rows} rows", "at least 1")
    head = node.out.head
    if head is not None and (head < 1 or node.out.c_max % head):
        raise _wrong(node, f"has heads of {head} channels", f"a divisor of {node.out.c_max}")


def _check_sinusoid(node: Node) -> None:
    if node.out.c_max % 2:
        raise _wrong(node, f"has {node.out.c_max} channels", "an even number")
    if (node.swapped or node.freq_shift or node.fourier) and not node.halves:
        raise _wrong(node, "has sines and cosines in turn", "halves beside its other settings")
    if node.fourier < 0 or (node.fourier and (node.rows or node.freq_shift)):
        raise _wrong(node, f"fourier is {node.fourier}", "0, or more and no frequencies by formula")
    if node.freq_shift >= node.out.c_max / 2:
        half = node.out.c_max // 2
        raise _wrong(node, f"freq_shift is {node.freq_shift}", f"less than {half}, half of it")


def _check_reads(node: Node) -> None:
    if node.op == "input":
        return
    sources = node.sources
    if (node.op in _ONE and len(node.reads) != 1) or not 1 <= len(node.reads) <= 2:
        need = "one" if node.op in _ONE else "one or two"
        raise _wrong(node, f"reads {len(node.reads)} nodes", need)
    if len(sources) > 2 or (len(sources) == 2 and node.op == "resample"):
        raise _wrong(node, f"reads {node.reads[0]}, a concat, unjoined", "a convolution of it")
    for read in node.reads:
        if read.results > 1 and node.op != "attention":
            raise _wrong(node, f"reads {read}, of several parts", "a node of one")
        if read.idle:
            raise _wrong(node, f"reads {read}, which is idle", "a node that is computed")
        if read.is_row != (node.op in _OF_ROWS):
            kind, need = ("one row an image", "an image") if read.is_row else (
                "an image", "one row an image")  # fmt: skip
            raise _wrong(node, f"reads {read}, {kind}", need)
        if read.tokens is not None and node.op != "pointwise":
            raise _wrong(node, f"reads {read}, a context", "a pointwise layer of it")
        if read.normed and node.op in ("pointwise", "layer_norm"):
            raise _wrong(node, f"reads {read}, a group norm", "a convolution of it")
        ring = node.op == "resample" and node.ring
        if (read.op == "conv" and read.ring) != ring:
            have, need = ("with", "without") if read.ring else ("without", "with")
            raise _wrong(node, f"reads {read}, {have} a ring", f"a convolution {need} one")
        if read.size != node.reads[0].size:
            have = f"{node.reads[0].size} and {read.size} pixels a side"
            raise _wrong(node, f"reads images of {have}", "one size")
    source = {"sinusoid": "t", "embed": "y"}.get(node.op)
    first = node.reads[0]
    if source and (first.op, first.name) != ("input", source):
        raise _wrong(node, f"reads {first}", f"the input {source}")
    augments = (first.op, first.name) == ("input", "augment")
    if augments and (node.op != "linear" or node.shift is None or node.bias or node.parts):
        raise _wrong(node, f"reads {first}", "a linear layer without bias that has a shift")
    if source is None and first.op == "input" and first.is_row and not augments:
        raise _wrong(node, f"reads {first}", "an embedding of it")
    if node.op == "norm" and any(read.out.head for read in node.reads):
        raise _wrong(node, "reads an input slimmed by heads", "a convolution of it")
    if node.op == "norm" and len({read.out.role == "fixed" for read in node.reads}) > 1:
        raise _wrong(node, "reads a slimmed and a fixed input", "both slimmed or both fixed")


def _check_context(node: Node) -> None:
    """`context`, of a cross attention alone."""
    kv = node.context
    if kv is None:
        return
    if kv.tokens is None or kv.idle:
        raise _wrong(node, f"attends to {kv}", "a pointwise layer of a context")
    if (kv.out.c_max, kv.out.role, kv.out.head) != (node.out.c_max, node.out.role, node.out.head):
        have = f"its queries have {_side(node)}, its keys {_side(kv)}"
        raise _wrong(node, have, "as many at every width")


def _check_added(node: Node) -> None:
    """`shift`, `gate`, `residual` and `modulate`."""
    if node.scale != 1.0 and (node.parts or not math.isfinite(node.scale)):
        raise _wrong(node, f"its scale is {node.scale}", "a finite number, and one part beside it")
    added = {"shift": node.shift, "gate": node.gate, "residual": node.residual}
    for role, operand in {**added, "modulate": node.modulate}.items():
        if operand is None:
            continue
        if operand.idle:
            raise _wrong(node, f"its {role} is {operand}, which is idle", "a node that is computed")
        if role != "modulate" and (node.results > 1 or operand.results > 1):
            raise _wrong(node, f"has a {role} and parts", "one part beside it")
        if node.op == "embed" and operand.op not in ("sinusoid", "embed"):
            raise _wrong(node, f"its {role} is {operand}", "an embedding")
        size = node.size if role == "residual" else None
        if operand.size != size or (operand.op == "input" and operand.size is None) or (
            operand.tokens != (node.tokens if role == "residual" else None)
        ):
            need = "one row an image" if size is None else f"an image of {size} pixels a side"
            raise _wrong(node, f"its {role} is {operand}", need)
        if role == "residual" and operand.op in ("norm", "dropout") and len(operand.sources) > 1:
            raise _wrong(
                node, f"its {role} is {operand}, a concat, unjoined", "a convolution of it"
            )
        fits = operand.out.c_max == node.out.c_max and operand.out.head == node.out.head
        if not fits or (operand.out.role == "fixed") != (node.out.role == "fixed"):
            have = f"its {role} has {_side(operand)}, it has {_side(node)}"
            raise _wrong(node, have, "as many at every width")


def _side(node: Node) -> str:
    head = "" if node.out.head is None else f" in heads of {node.out.head}"
    fixed = " at every width" if node.out.role == "fixed" else ""
    return f"{node.out.c_max} channels{head}{fixed}"


def _check_layers(nodes: Sequence[Node]) -> None:
    """Paths of layers and blocks."""
    seen: dict[str, Node] = {}
    for node in nodes:
        for path in node.layer_names if node.op in LAYERS else ():
            if path in seen:
                raise _wrong(node, f"{path} is also a layer of {seen[path]}", "another name")
            seen[path] = node
    for path, node in seen.items():
        pieces = path.split(".")
        for end in range(1, len(pieces)):
            above = ".".join(pieces[:end])
            if above in seen:
                raise _wrong(node, f"stands below {above}, a layer", "another name")
    for node in nodes:
        block, _, own = node.name.rpartition(".")
        beside = any(path.startswith(f"{block}.") for path in seen)
        if node.op == "sinusoid" and (own.isdigit() or (block and not beside)):
            raise _wrong(node, "is a table by itself", "a name beside a layer's, as 'time.table'")
    if not seen:
        raise _wrong(nodes[-1], "is the last node of a network without layers", "one layer")


def _check_ends(nodes: Sequence[Node], image_size: int) -> None:
    """Everything is read, the last node alone is not, and it is a prediction."""
    read = {operand for node in nodes if not node.idle for operand in node.operands}
    for node in nodes[:-1]:
        if node not in read and not node.idle:
            raise _wrong(node, "nothing reads it", "one result, the last node's")
    last = nodes[-1]
    if last.op not in ("conv", "pointwise", "attention", "resample") or last.results > 1:
        raise _wrong(last, f"is the prediction and a {last.op}", "a convolution of one part")
    if last.size != image_size:
        have = f"has {last.size}x{last.size} pixels"
        raise _wrong(last, f"is the prediction and {have}", f"{image_size}x{image_size}")
    if last.out.role != "fixed":
        raise _wrong(last, "is the prediction and slimmed by widths", "the role 'fixed'")
    if not any(node.op == "input" and node.name == "x" for node in nodes):
        raise _wrong(last, "is the prediction of a network without x", "the input x")
