"""A network as the reference code runs it: plain PyTorch that slices every weight in every call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ddsm_ext.graph.count import Layer, columns, layers
from ddsm_ext.graph.graph import Counts
from ddsm_ext.graph.node import Node, Values, run
from ddsm_ext.models.dense import PlainWords
from ddsm_ext.models.network import SlimmableNetwork
from ddsm_ext.ops.embedding import embed_time

Call = Callable[[Tensor], Tensor]


class SlicingNetwork:
    """A baseline called as (x, t, width): slices, NCHW, `torch.cat`, bmm attention.

    Args:
        net: the network whose parameters are used, not copied.
    """

    def __init__(self, net: SlimmableNetwork) -> None:
        self._graph, self._config = net.graph, net.config
        self._tensors = net.state_dict(keep_vars=True)
        self._calls: dict[float, dict[Node, list[Call]]] = {}

    def __call__(self, x: Tensor, t: Tensor, width: float, y: Tensor | None = None) -> Tensor:
        """Predict from images x [N, C, H, W] at integer timesteps t [N] and, perhaps, labels y [N].

        Returns:
            [N, C', H, W].
        """
        if width not in self._calls:
            self._calls[width] = self._calls_at(width)
        given = {"x": x, "t": t, "y": y}
        value: Values = {node.index: given[name] for name, node in self._graph.inputs.items()}
        run(self._graph.walk, _Words(self._calls[width].__getitem__), value)
        return value[self._graph.output.index]

    def _calls_at(self, width: float) -> dict[Node, list[Call]]:
        """What computes each part of a node that has layers."""
        counts = self._config.counts(width)
        calls: dict[Node, list[Call]] = {}
        for layer in layers(self._graph):
            calls.setdefault(layer.node, []).append(self._call_of(layer, counts))
        for node in self._graph.nodes:
            if node.op == "sinusoid":
                calls[node] = [self._embedding(node)]
        return calls

    def _call_of(self, layer: Layer, counts: Counts) -> Call:
        node, c_out = layer.node, counts[layer.node.index]
        weight = self._tensors[f"{layer.name}.weight"]
        if node.op == "embed":
            return lambda y: F.embedding(y, weight[:, :c_out])
        bias = self._tensors[f"{layer.name}.bias"]
        prefixes = columns(node, counts, self._config.slicing)
        if node.op == "norm":
            groups = self._config.slicing.group_count(node.out.c_max, c_out)
            return lambda x: F.group_norm(
                x, groups, _sliced(weight, prefixes, 0), _sliced(bias, prefixes, 0), node.eps
            )
        parts = [(slice(c_out), part) for part in prefixes]
        if node.op == "linear":
            return lambda x: F.linear(x, _sliced(weight, parts, 1), bias[:c_out])
        stride, padding = node.stride, node.kernel // 2
        return lambda x: F.conv2d(x, _sliced(weight, parts, 1), bias[:c_out], stride, padding)

    def _embedding(self, node: Node) -> Call:
        if node.rows:
            table = self._tensors[node.name]
            return lambda t: F.embedding(t, table)
        dtype = self._tensors[layers(self._graph)[0].name + ".weight"].dtype
        return lambda t: embed_time(t, node.out.c_max, None, dtype, halves=node.halves)


def _sliced(tensor: Tensor, parts: Sequence[Any], dim: int) -> Tensor:
    if len(parts) == 1:
        return tensor[parts[0]]
    return torch.cat([tensor[part] for part in parts], dim)


class _Words(PlainWords):
    def attention(self, node: Node, value: Values) -> Tensor:
        parts = value[node.reads[0].index]
        n, c, height, width = parts[0].shape
        d = node.out.head or c
        q, k, v = (part.reshape(n * c // d, d, height * width) for part in parts)
        scores = torch.bmm(q.transpose(1, 2), k) * d**-0.5  # [N heads, T, T]
        y = torch.bmm(v, scores.softmax(dim=-1).transpose(1, 2))  # [N heads, d, T]
        return y.view(n, c, height, width)
