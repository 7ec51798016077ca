"""Weights of several of our layers that are the rows of one weight elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ddsm_ext.graph.count import Layer


@dataclass(frozen=True)
class FusedLayer:
    """A layer of other code and ours whose weights are its rows.

    Attributes:
        name: its path.
        layers: ours in the order of its rows.
        repeats: how often that order comes: once (one block a layer), once a head, once a row.
    """

    name: str
    layers: tuple[Layer, ...]
    repeats: int = 1

    def shape(self, suffix: str) -> tuple[int, ...]:
        """Shape of its parameter; blocks lie below each other."""
        node, shape = self.layers[0].node, self.layers[0].shape(suffix)
        rows, *more = shape if node.blocks == 1 else (shape[0] * shape[1], *shape[2:])
        return (rows * len(self.layers), *more)

    def split(self, tensor: Tensor) -> list[Tensor]:
        """Return the rows of each of our layers."""
        blocks = tensor.unflatten(0, (self.repeats, len(self.layers), -1)).unbind(1)
        return [block.flatten(0, 1) for block in blocks]

    def joined(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return its parameter: `split` reversed."""
        if len(tensors) == 1:
            (tensor,) = tensors
            return tensor if self.layers[0].node.blocks == 1 else tensor.flatten(0, 1)
        blocks = [tensor.unflatten(0, (self.repeats, -1)) for tensor in tensors]
        return torch.stack(blocks, dim=1).flatten(0, 2)
