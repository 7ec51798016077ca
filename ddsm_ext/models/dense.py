"""`DenseNetwork`: one width of a network as plain torch layers, without this project's ops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddsm_ext.graph.config import NetworkConfig
from ddsm_ext.graph.count import Layer, c_in
from ddsm_ext.graph.graph import Counts
from ddsm_ext.graph.node import Node, Scope, Values
from ddsm_ext.models.block import Block, any_weight, pixels_of, tokens_of
from ddsm_ext.ops.activation import plain_activation
from ddsm_ext.ops.resample import resample_ref
from ddsm_ext.runtime.inputs import check_inputs, embed_node


class PlainWords:
    """Computes nodes in plain torch, with concats joined; values are tensors, or tuples of parts.

    One object serves one walk.

    Args:
        layers: returns what computes each part of a node.
        training: whether dropout drops.
    """

    def __init__(self, layers: Callable[[Node], Sequence[Any]], training: bool = False) -> None:
        self._layers = layers
        self._training = training
        # The last concat, which a block's first norm and its shortcut both read.
        self._concat: tuple[tuple[int, ...], Any] = (), None

    def _joined(self, node: Node, value: Values) -> Any:
        if len(node.reads) == 1:
            return value[node.reads[0].index]
        indices = tuple(read.index for read in node.reads)
        if self._concat[0] != indices:
            self._concat = (), None
            joined = torch.cat([value[index] for index in indices], dim=1)  # [N, c, H, W]
            self._concat = indices, joined
        return self._concat[1]

    def sinusoid(self, node: Node, value: Values) -> Tensor:
        """Embed timesteps."""
        (embed,) = self._layers(node)
        return embed(value[node.reads[0].index])  # [N, dim]

    def embed(self, node: Node, value: Values) -> Tensor:
        """Look labels up."""
        (table,) = self._layers(node)
        rows = table(value[node.reads[0].index])  # [N, c]
        return rows if node.shift is None else rows + value[node.shift.index]

    def linear(self, node: Node, value: Values) -> Any:
        """Linear layers."""
        x = value[node.reads[0].index]
        if x is None:  # an input that was not given
            assert node.shift is not None
            return value[node.shift.index]
        results = [layer(x) for layer in self._layers(node)]
        if node.shift is not None:
            results = [y + value[node.shift.index] for y in results]
        if node.silu:
            results = [F.silu(y) for y in results]
        return tuple(results) if node.parts else results[0]  # [N, c_out]

    def conv(self, node: Node, value: Values) -> Any:
        """Convolutions."""
        x = resampled(self._joined(node, value), node.resample, node.taps)
        if node.pad_end:
            x = F.pad(x, (0, 1, 0, 1))
        results = [layer(x) for layer in self._layers(node)]
        if node.parts:
            return tuple(results)
        (y,) = results  # [N, c_out, H, W]
        if node.shift is not None:
            y = y + value[node.shift.index][:, :, None, None]
        return added(y, None if node.residual is None else value[node.residual.index], node.scale)

    def norm(self, node: Node, value: Values) -> Tensor:
        """Group norms."""
        (layer,) = self._layers(node)
        x = self._joined(node, value)
        if torch.is_grad_enabled() and not x.requires_grad:
            # With such an input in channels_last, torch 2.13's backward reads memory beyond it.
            y = layer(x.flatten(2)).reshape(x.shape)
        else:
            y = layer(x)
        if node.modulate is not None:
            scale, shift = (part[:, :, None, None] for part in value[node.modulate.index])
            y = y * (1 + scale) + shift
        return F.silu(y) if node.silu else y

    def pointwise(self, node: Node, value: Values) -> Tensor:
        """Linear layers on every pixel."""
        (layer,) = self._layers(node)
        x = value[node.reads[0].index]
        y = layer(tokens_of(x))  # [N, T, blocks * c_out]
        if node.shift is not None:
            y = y + value[node.shift.index][:, None]
        y = plain_activation(y, node.activation)
        if node.gate is not None:
            y = y * value[node.gate.index][:, None]
        y = pixels_of(y, x)
        return y if node.residual is None else y + value[node.residual.index]

    def layer_norm(self, node: Node, value: Values) -> Tensor:
        """Layer norms."""
        (layer,) = self._layers(node)
        x = value[node.reads[0].index]
        return pixels_of(layer(tokens_of(x)), x)

    def attention(self, node: Node, value: Values) -> Tensor:
        """Self-attention."""
        qkv = value[node.reads[0].index]
        return self.attend(node, *(qkv if node.reads[0].parts else qkv.chunk(3, 1)))

    def cross_attention(self, node: Node, value: Values) -> Tensor:
        """Attention to a context."""
        assert node.context is not None
        return self.attend(node, value[node.reads[0].index], *value[node.context.index].chunk(2, 1))

    def attend(self, node: Node, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of [N, c, H, W] each; k and v may have other pixels."""
        head = node.out.head or q.shape[1]
        parts = (part.unflatten(1, (-1, head)).flatten(3).transpose(2, 3) for part in (q, k, v))
        y = F.scaled_dot_product_attention(*parts).transpose(2, 3)  # [N, heads, d, T]
        return y.reshape(q.shape)

    def resample(self, node: Node, value: Values) -> Tensor:
        """Enlarge or halve."""
        y = resampled(value[node.reads[0].index], node.resample, node.taps, ring=node.ring)
        return added(y, None if node.residual is None else value[node.residual.index], node.scale)

    def dropout(self, node: Node, value: Values) -> Tensor:
        """Dropout."""
        return F.dropout(value[node.reads[0].index], node.p, self._training)


def added(y: Tensor, residual: Tensor | None, scale: float) -> Tensor:
    """Return (y + residual) times scale."""
    if residual is not None:
        y = y + residual
    return y if scale == 1.0 else y * scale


def resampled(x: Tensor, resample: str | None, taps: int = 2, *, ring: bool = False) -> Tensor:
    """Return images enlarged 2x ("up"), halved ("down") or as they are.

    taps: 2, nearest neighbours and means of 2x2; 4, the filter [1, 3, 3, 1] / 8 each way.
    ring: x has a ring around the image.
    """
    if resample is None:
        return x
    if taps == 4:
        return resample_ref(x, resample == "up", taps=4, ring=ring)
    if resample == "up":
        return F.interpolate(x, scale_factor=2, mode="nearest")  # [N, c, 2 H, 2 W]
    return F.avg_pool2d(x, 2)


class _Words(PlainWords):
    def __init__(self, owner: Block) -> None:
        super().__init__(owner.modules_of, owner.training)
        self._owner = owner

    def block(self, scope: Scope, value: Values) -> Any:
        block = self._owner.module_of(scope)
        return block(*(value[node.index] for node in scope.reads))

    def sinusoid(self, node: Node, value: Values) -> Tensor:
        t, dtype = value[node.reads[0].index], any_weight(self._owner).dtype
        return embed_node(node, t, self._owner.frozen_of(node), dtype)  # [N, dim]


class DenseBlock(Block):
    """A block of one width."""

    def __init__(self, config: NetworkConfig, scope: Scope, counts: Counts, **kind: Any) -> None:
        super().__init__(
            scope,
            lambda step: _made(config, step, counts, kind),
            config.layer_order,
            device=kind.get("device"),
        )

    def forward(self, *inputs: Any) -> Any:
        """Run the nodes on the values of those in `Scope.reads`."""
        return self._compute(inputs, _Words(self))


def _made(
    config: NetworkConfig, step: Scope | Layer, counts: Counts, kind: dict[str, Any]
) -> nn.Module:
    if isinstance(step, Scope):
        return DenseBlock(config, step, counts, **kind)
    node = step.node
    inputs, c = c_in(node, counts), counts[node.index]
    if node.op == "embed":
        return nn.Embedding(node.rows, c, **kind)
    if node.op in ("linear", "pointwise"):
        return nn.Linear(inputs, node.blocks * c, bias=node.bias, **kind)
    if node.op == "layer_norm":
        return nn.LayerNorm(c, eps=node.eps, **kind)
    if node.op == "norm":
        groups = config.slicing.group_count(node.out.c_max, c, node.groups)
        return nn.GroupNorm(groups, c, eps=node.eps, **kind)
    padding = node.kernel // 2 + node.ring - node.pad_end
    return nn.Conv2d(inputs, c, node.kernel, stride=node.stride, padding=padding, **kind)


class DenseNetwork(DenseBlock):
    """The network of one width, called as (x, t) or (x, t, y); its parameters have the same names.

    Args:
        config: the supernet's config.
        width: 0 < width <= 1, usable by the config.
        kind: device and dtype of the parameters; where missing, torch's defaults.

    Raises:
        TypeError, ValueError: the width cannot be used.
    """

    def __init__(self, config: NetworkConfig, width: float, **kind: Any) -> None:
        width = config.check_width(width)
        super().__init__(config, config.graph.scope, config.counts(width), **kind)
        self.config = config
        self.graph = config.graph
        self.width = width
        self._inputs = tuple(node.name for node in config.graph.scope.reads)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor | None = None,
        augment: Tensor | None = None,
        context: Tensor | None = None,
    ) -> Tensor:
        """Predict from noisy images x [N, C, H, W] at timesteps t [N]; returns [N, C', H, W].

        y: [N] int64 labels, of a class-conditional network.
        augment: [N, channels], of a network that is told how images were augmented; None: not.
        context: [N, T, channels] tokens, of a network that attends to any.
        """
        inputs = check_inputs(
            "DenseNetwork", self.graph, x, t, y, any_weight(self), augment, context
        )
        return super().forward(*(inputs[name] for name in self._inputs))
