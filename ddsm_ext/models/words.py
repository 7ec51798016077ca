"""The words of a description by the layers of a network's modules, for training and evaluation."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from ddsm_ext.graph.graph import Counts
from ddsm_ext.graph.node import Node, Scope, Values
from ddsm_ext.models.block import Block, any_weight, pixels_of, tokens_of, two_sources
from ddsm_ext.models.dense import added
from ddsm_ext.ops.attention import sliced_attention
from ddsm_ext.ops.packed_attention import packed_attention
from ddsm_ext.ops.resample import resample
from ddsm_ext.runtime.inputs import embed_node, in_blocks


class SlimmableWords:
    """Computes nodes with the layers of a block; values are tensors, or tuples of them.

    Args:
        owner: the block.
        counts: active channels of all nodes.
        accumulate_grad: backward adds weight gradients to `p.grad` itself.
    """

    def __init__(self, owner: Block, counts: Counts, accumulate_grad: bool) -> None:
        self.owner = owner
        self.counts = counts
        self.accumulate_grad = accumulate_grad

    def block(self, scope: Scope, value: Values) -> Any:
        """Run an inner block."""
        inputs = [value[node.index] for node in scope.reads]
        block = self.owner.module_of(scope)
        return block(*inputs, counts=self.counts, accumulate_grad=self.accumulate_grad)

    def sinusoid(self, node: Node, value: Values) -> Tensor:
        """Embed timesteps."""
        t, dtype = value[node.reads[0].index], any_weight(self.owner).dtype
        return embed_node(node, t, self.owner.frozen_of(node), dtype)  # [N, dim]

    def embed(self, node: Node, value: Values) -> Tensor:
        """Look labels up."""
        layer, labels = self.owner.module_of(node), value[node.reads[0].index]
        rows = layer(labels, self.counts[node.index], accumulate_grad=self.accumulate_grad)
        return rows if node.shift is None else _sum(rows, value[node.shift.index])  # [N, c]

    def linear(self, node: Node, value: Values) -> Any:
        """Linear layers."""
        x, c_out = value[node.reads[0].index], self.counts[node.index]
        if x is None:  # an input that was not given
            assert node.shift is not None
            return value[node.shift.index]
        more = {"accumulate_grad": self.accumulate_grad}
        results = [layer(x, c_out, **more) for layer in self.owner.modules_of(node)]
        if node.shift is not None:
            results = [_sum(y, value[node.shift.index]) for y in results]
        if node.silu:
            results = [F.silu(y) for y in results]
        return tuple(results) if node.parts else results[0]  # [N, c_out]

    def conv(self, node: Node, value: Values) -> Any:
        """Convolutions."""
        x, x2 = _two_sources(node, value)
        if node.resample and not node.enlarges:
            up, taps = node.resample == "up", node.taps
            x = resample(x, up, taps=taps)
            x2 = None if x2 is None else resample(x2, up, taps=taps)
        c_out, accumulate = self.counts[node.index], self.accumulate_grad
        if node.parts:
            layers = self.owner.modules_of(node)
            return tuple([layer(x, c_out, x2=x2, accumulate_grad=accumulate) for layer in layers])
        y = self.owner.module_of(node)(x, c_out, x2=x2, accumulate_grad=accumulate)
        if node.shift is not None:
            shift = value[node.shift.index]
            if shift.dtype != y.dtype:  # the weights', which may be float32 beside 16-bit x
                shift = shift.to(y.dtype)
            y = _sum(y, shift[:, :, None, None])
        residual = None
        if node.residual is not None:
            y, residual = _alike(y, value[node.residual.index])
        return added(y, residual, node.scale)

    def norm(self, node: Node, value: Values) -> Any:
        """Group norms."""
        x, x2 = _two_sources(node, value)
        layer, accumulate = self.owner.module_of(node), self.accumulate_grad
        if node.modulate is None:
            return layer(x, x2, accumulate_grad=accumulate)
        scale, shift = (part.to(x.dtype) for part in value[node.modulate.index])
        x, scale = _alike(x, scale)
        x2 = None if x2 is None else in_blocks(x2, len(x))
        shift = in_blocks(shift, len(x))
        return layer(x, x2, scale=scale, shift=shift, accumulate_grad=accumulate)

    def pointwise(self, node: Node, value: Values) -> Tensor:
        """Linear layers on every pixel."""
        x, residual = value[node.reads[0].index], None
        if node.residual is not None:
            x, residual = _alike(x, value[node.residual.index])
        gate = None
        if node.gate is not None:
            gate = in_blocks(value[node.gate.index].to(x.dtype), len(x))
        y = self.owner.module_of(node)(
            tokens_of(x),
            self.counts[node.index],
            gate=gate,
            residual=None if residual is None else tokens_of(residual),
            accumulate_grad=self.accumulate_grad,
        )
        if node.shift is not None:
            y = _sum(y, value[node.shift.index].to(y.dtype)[:, None])
        return pixels_of(y, x)  # [N, blocks * c_out, H, W]

    def layer_norm(self, node: Node, value: Values) -> Tensor:
        """Layer norms."""
        x, layer = value[node.reads[0].index], self.owner.module_of(node)
        return pixels_of(layer(tokens_of(x), accumulate_grad=self.accumulate_grad), x)

    def attention(self, node: Node, value: Values) -> Tensor:
        """Self-attention."""
        qkv, heads = value[node.reads[0].index], self._heads(node)
        if node.reads[0].parts:
            return _attended(heads, *qkv)
        return pixels_of(packed_attention(tokens_of(qkv).unflatten(2, (3, -1)), heads), qkv)

    def cross_attention(self, node: Node, value: Values) -> Tensor:
        """Attention to a context."""
        assert node.context is not None
        q, kv = _alike(value[node.reads[0].index], value[node.context.index])
        context = tokens_of(kv).unflatten(2, (2, -1))  # [N, T, 2, c]
        return pixels_of(packed_attention(tokens_of(q), self._heads(node), context), q)

    def _heads(self, node: Node) -> int:
        c = self.counts[node.index]
        return c // (node.out.head or c)

    def resample(self, node: Node, value: Values) -> Tensor:
        """Enlarge or halve."""
        x, residual = value[node.reads[0].index], None
        if node.residual is not None:
            x, residual = _alike(x, value[node.residual.index])
        return resample(
            x, node.resample == "up", taps=node.taps, ring=node.ring, residual=residual,
            scale=node.scale,
        )  # fmt: skip

    def dropout(self, node: Node, value: Values) -> Any:
        """Dropout."""
        x, x2 = two_sources(node, value)
        y = F.dropout(x, node.p, self.owner.training)
        return y if x2 is None else (y, F.dropout(x2, node.p, self.owner.training))


def _attended(heads: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of [N, c, H, W] each."""
    # Views, as the memory of a channels_last tensor is [N, H, W, C].
    n, c, height, width = q.shape
    split = (n, height * width, heads, c // heads)
    rows = (part.permute(0, 2, 3, 1).reshape(split) for part in (q, k, v))
    y = sliced_attention(*(row.transpose(1, 2) for row in rows)).transpose(1, 2)  # [N, T, heads, d]
    return pixels_of(y.flatten(2), q)  # no copy: the op's memory order


def _alike(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both as of as many images: what is of each image beside what is of each of its labels."""
    if a.shape[0] == b.shape[0]:
        return a, b
    count = max(a.shape[0], b.shape[0])
    return in_blocks(a, count), in_blocks(b, count)


def _sum(a: Tensor, b: Tensor) -> Tensor:
    a, b = _alike(a, b)
    return a + b


def _two_sources(node: Node, value: Values) -> tuple[Tensor, Tensor | None]:
    x, x2 = two_sources(node, value)
    return (x, x2) if x2 is None else _alike(x, x2)
