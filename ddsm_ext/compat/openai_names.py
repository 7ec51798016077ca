"""Names of the U-Nets of guided-diffusion and latent-diffusion, whose `UNetModel`s are kin.

q, k and v of an attention, and scale and shift of a block, are the rows of one weight in these; of
a transformer q, k and v are apart, and ours are blocks of one weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor

from ddsm_ext.compat.fused import FusedLayer
from ddsm_ext.graph.count import layers
from ddsm_ext.graph.node import Node
from ddsm_ext.models.adm import ADMConfig

_WHOLE = {
    "time_embedding.linear1": "time_embed.0",
    "time_embedding.linear2": "time_embed.2",
    "label_embedding": "label_emb",
    "head": "input_blocks.0.0",
    "tail.norm": "out.0",
    "tail.conv": "out.2",
}
_IN_BLOCK = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "shortcut": "skip_connection",
    "norm": "norm",
    "out": "proj_out",
    "project_in": "proj_in",
    "project_out": "proj_out",
}
_IN_TRANSFORMER = {
    "norm1": ("norm1",),
    "norm2": ("norm2",),
    "norm3": ("norm3",),
    "attn1.qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
    "attn1.out": ("attn1.to_out.0",),
    "attn2.q": ("attn2.to_q",),
    "attn2.k": ("attn2.to_k",),
    "attn2.v": ("attn2.to_v",),
    "attn2.kv": ("attn2.to_k", "attn2.to_v"),
    "attn2.out": ("attn2.to_out.0",),
    "ff.project": ("ff.net.0.proj",),
    "ff.out": ("ff.net.2",),
}
_RESAMPLING = {"input_blocks": "op", "output_blocks": "conv"}  # plain convolutions


@dataclass(frozen=True)
class Entry(FusedLayer):
    """Layers of the reference and ours of the same rows; q, k, v once a head in the legacy order.

    Attributes:
        names: all of theirs, in the order of the rows; `name` is the first.
    """

    names: tuple[str, ...] = field(kw_only=True)

    def shape(self, suffix: str) -> tuple[int, ...]:
        """Shape of each one's parameter; pixels are one dimension in attention there."""
        rows, *more = super().shape(suffix)
        node, parent = self.layers[0].node, self.name.rpartition(".")[2]
        conv1d = parent == "qkv" or (parent == "proj_out" and node.name.endswith(".out"))
        shape = (rows // len(self.names), *more)
        return shape[:-1] if conv1d and suffix == "weight" else shape

    def shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Name and shape of every parameter of theirs."""
        for suffix in self.layers[0].suffixes:
            yield from ((f"{name}.{suffix}", self.shape(suffix)) for name in self.names)

    def ours(self, theirs: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Our parameters of theirs."""
        for suffix in self.layers[0].suffixes:
            rows = [theirs[f"{name}.{suffix}"] for name in self.names]
            whole = rows[0] if len(rows) == 1 else torch.cat(rows)
            for layer, tensor in zip(self.layers, self.split(whole), strict=True):
                yield f"{layer.name}.{suffix}", tensor.reshape(layer.shape(suffix))

    def theirs(self, ours: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Their parameters of ours, which they share memory with where they are one of them."""
        for suffix in self.layers[0].suffixes:
            whole = self.joined([ours[f"{layer.name}.{suffix}"] for layer in self.layers])
            parts = whole.reshape(len(self.names), *self.shape(suffix))
            for name, part in zip(self.names, parts, strict=True):
                yield f"{name}.{suffix}", part


def entries(config: ADMConfig, *, new_order: bool = False, label: str = "label_emb") -> list[Entry]:
    """Return every layer of the reference with parameters, in our order of execution.

    Args:
        config: the network.
        new_order: q, k and v come once, not once a head.
        label: their name of the table of classes.
    """
    blocks, found = _block_names(config), []
    for node, ours in groupby(layers(config.graph), key=lambda layer: layer.node):
        names, repeats = _names(node, blocks, label), 1
        if names[0].endswith(".qkv") and not new_order:
            repeats = node.out.c_max // (node.out.head or node.out.c_max)
        found.append(Entry(names[0], tuple(ours), repeats, names=names))
    return found


def _names(node: Node, blocks: Mapping[str, str], label: str) -> tuple[str, ...]:
    # A joining block has a shortcut there, too: its inputs always outnumber its outputs.
    if node.name == "label_embedding":
        return (label,)
    if node.name in _WHOLE:
        return (_WHOLE[node.name],)
    if node.name in blocks:
        return (f"{blocks[node.name]}.qkv",)
    attention, _, inside = node.name.partition(".blocks.")
    if inside:
        index, _, layer = inside.partition(".")
        place = f"{blocks[attention]}.transformer_blocks.{index}"
        return tuple(f"{place}.{name}" for name in _IN_TRANSFORMER[layer])
    path, _, inner = node.name.rpartition(".")
    block = blocks[path]
    return (f"{block}.{_IN_BLOCK.get(inner) or _RESAMPLING[block.partition('.')[0]]}",)


def _block_names(config: ADMConfig) -> dict[str, str]:
    """Paths of our blocks and attentions -> the reference's."""
    names = {"middle.0": "middle_block.0", "middle.0.attention": "middle_block.1",
             "middle.1": "middle_block.2"}  # fmt: skip
    blocks = config.num_res_blocks + 1  # a level, the one that resamples included
    for i in range(len(config.ch_mult) * blocks - 1):
        names[f"down.{i}"] = f"input_blocks.{i + 1}.0"
        names[f"down.{i}.attention"] = f"input_blocks.{i + 1}.1"
    ours = theirs = 0
    for level in reversed(range(len(config.ch_mult))):
        for _ in range(blocks):
            names[f"up.{ours}"] = f"output_blocks.{theirs}.0"
            names[f"up.{ours}.attention"] = f"output_blocks.{theirs}.1"
            ours, theirs = ours + 1, theirs + 1
        if level:  # on the way up it is the last part of the block before
            last = 2 if level in config.attn else 1
            names[f"up.{ours}"] = f"output_blocks.{theirs - 1}.{last}"
            ours += 1
    return names
