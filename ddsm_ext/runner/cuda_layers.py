"""Layers of a slimmable network on CUDA, run at once: what a graph captures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ddsm_ext.ops._fused import Shortcut, conv2d_fused, group_norm_apply, linear_fused
from ddsm_ext.ops.attention import sliced_attention
from ddsm_ext.runner.layers import ConvWeight, Linear


@dataclass(frozen=True)
class Activation:
    """[N, c, height, width] channels_last, with the moments that its convolution left."""

    tensor: Tensor
    moments: Tensor | None = None

    @property
    def c(self) -> int:
        """Channels."""
        return self.tensor.shape[1]


@dataclass(frozen=True)
class Norm:
    """Sources of a convolution, normalised."""

    tensors: tuple[Tensor, ...]


class CudaLayers:
    """Runs the layers that `runner.layers.Layers` appends to a program, with the same arguments.

    Parameters are read where they are. A norm is a pass of its own over its sources; everything
    else is part of a convolution.

    Every launch may begin while the one before it ends. That holds where these layers follow one
    launch that overlaps none, on one stream, with only attention's kernels between them: each then
    waits for the one before before it touches an activation, so that none ends before all before it
    have; what it asks for earlier are weights, which no kernel of a step writes, and whatever wrote
    them had ended when the first launch began.

    Args:
        tickets: `make_tickets`'s, which nothing else uses while these layers run; None: the
            convolutions clear memory of their own where they split sums.
    """

    def __init__(self, tickets: Tensor | None = None) -> None:
        self._tickets = tickets

    def linears(
        self, x: Tensor, c_in: int, linears: Sequence[Linear], *, silu: bool = False
    ) -> tuple[Tensor, ...]:
        """Map [N, c_in] to [N, c_out] by each of the layers, and SiLU, in one launch."""
        return linear_fused(
            x,
            [linear.weight for linear in linears],
            [linear.bias for linear in linears],
            [linear.c_out for linear in linears],
            silu=silu,
            overlaps=True,
        )

    def norm(
        self,
        sources: tuple[Activation, ...],
        weight: Tensor,
        bias: Tensor,
        groups: int,
        *,
        skip_offset: int | None = None,
        silu: bool = False,
        eps: float = 1e-5,
    ) -> Norm:
        """Normalise one source or the unjoined concat of two."""
        return Norm(
            group_norm_apply(
                [source.tensor for source in sources],
                [source.moments for source in sources],
                weight,
                bias,
                groups,
                c2_offset=sources[0].c if skip_offset is None else skip_offset,
                eps=eps,
                silu=silu,
                overlaps=True,
            )
        )

    def conv2d(
        self,
        sources: tuple[Activation, ...],
        conv: ConvWeight,
        c_out: int,
        *,
        norm: Norm | None = None,
        image_bias: Tensor | None = None,
        residual: Activation | None = None,
        shortcut: tuple[tuple[Activation, ...], ConvWeight] | None = None,
        moments: bool = False,
    ) -> Activation:
        """Convolve ("same" padding) one source or the unjoined concat of two, or their norm."""
        y, found = conv2d_fused(
            norm.tensors if norm else [source.tensor for source in sources],
            conv.weights,
            conv.biases,
            c_out,
            c_in2_offset=_second_offset(sources, conv),
            stride=conv.stride,
            upsample=conv.upsample,
            shift=image_bias,
            residual=residual.tensor if residual else None,
            shortcut=_shortcut(*shortcut) if shortcut else None,
            moments=moments,
            tickets=self._tickets,
            overlaps=True,
        )
        return Activation(y, found)

    def attention(self, qkv: Activation, heads: int) -> Activation:
        """Attend over all pixels; qkv is [N, 3 c, height, width]: queries, keys, values."""
        n, c3, height, width = qkv.tensor.shape
        c = c3 // 3
        # A view, as the memory of a channels_last tensor is [N, H, W, C].
        parts = qkv.tensor.permute(0, 2, 3, 1).view(n, height * width, 3, heads, c // heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)  # [N, heads, T, d] each
        y = sliced_attention(q, k, v).transpose(1, 2)  # [N, T, heads, d]
        return Activation(y.reshape(n, height, width, c).permute(0, 3, 1, 2))


def _second_offset(sources: tuple[Activation, ...], conv: ConvWeight) -> int:
    """Return the first weight input channel of a second source."""
    return sources[0].c if conv.skip_offset is None else conv.skip_offset


def _shortcut(sources: tuple[Activation, ...], conv: ConvWeight) -> Shortcut:
    (weight,), (bias,) = conv.weights, conv.biases
    tensors = [source.tensor for source in sources]
    return Shortcut(tensors, weight, bias, _second_offset(sources, conv))
