"""Checks of what a network is called with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ddsm_ext.graph.graph import Graph
from ddsm_ext.graph.node import Node
from ddsm_ext.ops.embedding import embed_time
from ddsm_ext.settings import Refusal, TypeRefusal


def check_inputs(
    owner: str,
    graph: Graph,
    x: Tensor,
    t: Tensor,
    y: Tensor | None,
    weight: Tensor,
    augment: Tensor | None = None,
    context: Tensor | None = None,
    *,
    several: bool = False,
) -> dict[str, Any]:
    """Check a network's arguments; return its inputs by name, with t (and y) as [N].

    Float32 images are widened for a float64 network, augment takes the weights' dtype and context
    that of the images; nothing else is converted. Tokens are pixels, [N, channels, T, 1].

    Args:
        owner: whose they are, for errors.
        graph: the network.
        x: images [N, C, H, W].
        t: timesteps [N], or one for all.
        y: labels [N] of a class-conditional network; None: none.
        weight: one of the network's.
        augment: [N, channels] of how each image was augmented; None, of any network: it was not.
        context: [N, T, channels] tokens of a network that attends to them.
        several: whether y may hold several labels of each image, [k N] in blocks of all images.

    Raises:
        TypeError, ValueError: one sentence with the argument, what it is and what is needed.
    """
    optional = {"y": y, "augment": augment, "context": context}
    given = {name: tensor for name, tensor in optional.items() if tensor is not None}
    _check_tensors(owner, {"x": x, "t": t, **given}, weight)
    _check_images(owner, graph, x)
    if t.is_complex() or t.dtype == torch.bool:
        raise TypeRefusal(f"{owner}: t is {t.dtype}; need integer or floating-point timesteps")
    if t.dim() > 1 or (t.dim() == 1 and t.shape[0] != x.shape[0]):
        raise Refusal(
            f"{owner}: t has shape {list(t.shape)}, x holds {x.shape[0]} images; "
            "need one timestep an image"
        )
    if ("y" in graph.inputs) != (y is not None):
        have, need = ("no labels", "y") if y is None else ("labels y", "none")
        kind = "class-conditional" if y is None else "unconditional"
        raise Refusal(f"{owner}: got {have}, the network is {kind}; need {need}")
    if y is not None and (y.dtype != torch.int64 or not _fits(y, x.shape[0], several)):
        need = "one int64 label an image" + (", or several" if several else "")
        raise Refusal(
            f"{owner}: y is {y.dtype} of shape {list(y.shape)}, x holds {x.shape[0]} images; "
            f"need {need}"
        )
    if augment is not None:
        _check_augment(owner, graph, augment, x.shape[0])
        augment = augment.to(weight.dtype)
    _check_context(owner, graph, context, x.shape[0])
    if x.dtype == torch.float32 and weight.dtype == torch.float64:
        x = x.double()
    inputs: dict[str, Any] = {**named_inputs(x, t, y, context)}
    return {**inputs, "augment": augment} if "augment" in graph.inputs else inputs


def _fits(y: Tensor, images: int, several: bool) -> bool:
    if y.dim() != 1 or not several or images == 0:
        return y.shape == (images,)
    return len(y) >= images and len(y) % images == 0


def _check_tensors(owner: str, given: Mapping[str, Tensor], weight: Tensor) -> None:
    for name, tensor in given.items():
        if not isinstance(tensor, Tensor):
            raise TypeRefusal(f"{owner}: {name} is {type(tensor).__name__}; need a torch.Tensor")
        if tensor.device != weight.device:
            raise Refusal(
                f"{owner}: {name} is on {tensor.device}, the weights are on {weight.device}; "
                "need one device"
            )


def named_inputs(
    x: Tensor, t: Tensor, y: Tensor | None, context: Tensor | None = None
) -> dict[str, Tensor]:
    """Return checked arguments by name, with t (and y) as [N], context as [N, channels, T, 1]."""
    more = {} if y is None else {"y": y}
    if context is not None:
        more["context"] = context.to(x.dtype).contiguous().transpose(1, 2)[..., None]
    return {"x": x, "t": t if t.dim() else t.expand(x.shape[0]), **more}


def in_blocks(values: Tensor, count: int) -> Tensor:
    """Return [n, ...] as blocks of itself, [count, ...] in all; itself where n is `count`.

    So is what belongs to each image put beside what belongs to each of its labels.
    """
    if len(values) == count:
        return values
    return torch.cat([values] * (count // len(values)))


def embed_node(node: Node, t: Tensor, frozen: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return the embedding of timesteps [N] that a node stands for, [N, dim] of `dtype`.

    frozen: its table of rows, or its frequencies, where it has them.
    """
    table, frequencies = (None, frozen) if node.fourier else (frozen, None)
    return embed_time(
        t, node.out.c_max, table, dtype, halves=node.halves, swapped=node.swapped,
        freq_shift=node.freq_shift, frequencies=frequencies,
    )  # fmt: skip


def _check_augment(owner: str, graph: Graph, augment: Tensor, images: int) -> None:
    if "augment" not in graph.inputs:
        raise Refusal(
            f"{owner}: got augment, the network has no such input; need none, or a network whose "
            "config has augment_channels"
        )
    channels = graph.inputs["augment"].out.c_max
    if augment.shape != (images, channels) or not augment.is_floating_point():
        raise Refusal(
            f"{owner}: augment is {augment.dtype} of shape {list(augment.shape)}; "
            f"need floating-point [{images}, {channels}]"
        )


def _check_context(owner: str, graph: Graph, context: Tensor | None, images: int) -> None:
    if context is None and "context" not in graph.inputs:
        return
    if (context is None) or ("context" not in graph.inputs):
        got, need = ("no context", "one") if context is None else ("a context", "none")
        raise Refusal(f"{owner}: got {got}, need {need}: the network attends to {need}")
    channels = graph.inputs["context"].out.c_max
    fits = context.dim() == 3 and context.shape[::2] == (images, channels) and context.shape[1] > 0
    if not fits or not context.is_floating_point():
        raise Refusal(
            f"{owner}: context is {context.dtype} of shape {list(context.shape)}; "
            f"need floating-point [{images}, T, {channels}]"
        )


def _check_images(owner: str, graph: Graph, x: Tensor) -> None:
    if not x.is_floating_point():
        raise TypeRefusal(f"{owner}: x is {x.dtype}; need floating-point images")
    channels, step = graph.inputs["x"].out.c_max, graph.size_step
    if x.dim() != 4 or x.shape[1] != channels:
        raise Refusal(f"{owner}: x has shape {list(x.shape)}; need [N, {channels}, H, W]")
    if x.shape[2] % step or x.shape[3] % step:
        raise Refusal(f"{owner}: x is {x.shape[2]}x{x.shape[3]} pixels; need multiples of {step}")
