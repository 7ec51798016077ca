"""Layers of a slimmable network on CUDA, run at once: what a graph captures."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ddsm_ext.ops._fused import conv2d_fused, group_norm_apply
from ddsm_ext.ops.attention import sliced_attention
from ddsm_ext.ops.linear import sliced_linear
from ddsm_ext.runner.layers import ConvWeight


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

    Args:
        dtype: of activations: float32, bfloat16 or float16.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def linear(self, x: Tensor, c_in: int, weight: Tensor, bias: Tensor, c_out: int) -> Tensor:
        """Map [N, c_in] to [N, c_out] in the weights' dtype."""
        return sliced_linear(x, weight, bias, c_out)

    def silu(self, x: Tensor, c: int) -> Tensor:
        """Apply SiLU to [N, c]."""
        return F.silu(x)

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
        moments: bool = False,
    ) -> Activation:
        """Convolve ("same" padding) one source or the unjoined concat of two, or their norm."""
        y, found = conv2d_fused(
            norm.tensors if norm else [source.tensor for source in sources],
            conv.weights,
            conv.biases,
            c_out,
            c_in2_offset=sources[0].c if conv.skip_offset is None else conv.skip_offset,
            stride=conv.stride,
            upsample=conv.upsample,
            shift=None if image_bias is None else image_bias.to(self.dtype),
            residual=residual.tensor if residual else None,
            moments=moments,
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
