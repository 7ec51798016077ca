"""Layers of a slimmable network on CUDA, run at once: what a graph captures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor, channels_last

from ddsm_ext.ops._fused import (
    Shortcut,
    conv2d_fused,
    group_norm_apply,
    layer_norm,
    linear_fused,
    resample,
)
from ddsm_ext.ops.attention import sliced_attention
from ddsm_ext.runtime.operands import ConvWeight, Linear


@dataclass(frozen=True)
class Activation:
    """[N, c, height, width] channels_last, with the moments that its convolution left."""

    tensor: Tensor
    moments: Tensor | None = None

    @property
    def c(self) -> int:
        """Channels."""
        return self.tensor.shape[1]


# A group norm of a convolution's sources, run by the convolution as `norm(down=...)`.
Norm = Callable[..., tuple[Tensor, ...]]


class CudaLayers:
    """Runs the layers that `cpu_layers.Layers` appends to a program, with the same arguments.

    Parameters are read where they are. A norm is a pass of its own over its sources, which also
    halves them if its convolution wants that; everything else is part of a convolution.

    Every launch may begin while the one before it ends. That holds where these layers follow one
    launch that overlaps none, on one stream, with only torch's kernels between them (attention's,
    the look-up of a label's row): each then waits for the one before before it touches an
    activation, so that none ends before all before it have; what it asks for earlier are weights,
    which no kernel of a step writes, and whatever wrote them had ended when the first launch began.

    Args:
        tickets: `make_tickets`'s, which nothing else uses while these layers run; None: the
            convolutions clear memory of their own where they split sums.
    """

    def __init__(self, tickets: Tensor | None = None) -> None:
        self._tickets = tickets

    def linears(
        self,
        x: Tensor,
        c_in: int,
        linears: Sequence[Linear],
        *,
        shift: Tensor | None = None,
        silu: bool = False,
    ) -> tuple[Tensor, ...]:
        """Map [N, c_in] to [N, c_out] by each of the layers, and SiLU, in one launch.

        shift: [N, c_out] added before SiLU, beside one layer only.
        """
        return linear_fused(
            x,
            [linear.weight for linear in linears],
            [linear.bias for linear in linears if linear.bias is not None],
            [linear.c_out for linear in linears],
            shift=shift,
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
        scale: Tensor | None = None,
        shift: Tensor | None = None,
    ) -> Norm:
        """Return what normalises one source or the unjoined concat of two.

        scale, shift: [N, channels of the sources], both or neither: SiLU is applied to
        norm * (1 + scale) + shift.
        """
        return partial(
            group_norm_apply,
            [source.tensor for source in sources],
            [source.moments for source in sources],
            weight,
            bias,
            groups,
            c2_offset=_second_offset(sources, skip_offset),
            eps=eps,
            silu=silu,
            scale=scale,
            shift=shift,
            overlaps=True,
        )

    def conv2d(
        self,
        sources: tuple[Activation, ...],
        conv: ConvWeight,
        c_out: int,
        *,
        norm: Norm | None = None,
        shift: Tensor | None = None,
        residual: Activation | None = None,
        shortcut: tuple[tuple[Activation, ...], ConvWeight] | None = None,
        scale: float = 1.0,
        moments: bool = False,
        activation: str | None = None,
        gate: Tensor | None = None,
    ) -> Activation:
        """Convolve ("same" padding) one source or the unjoined concat of two, or their norm.

        A residual of half the output's size is enlarged first; sources of a shortcut have the
        output's size. scale: factor on the result with all that is added. activation: of the sum
        with shift and shortcut, "gelu", "gelu_tanh", or of two weights or blocks "geglu". gate:
        [N, channels], times that, before the residual is added.
        """
        inputs = _inputs(sources, conv, norm)
        if residual is not None and residual.tensor.shape[2:] != _size(inputs[0], conv):
            residual = self.resample(residual, up=True)
        y, found = conv2d_fused(
            inputs,
            _blocks(conv.weights, 3),
            _blocks(conv.biases, 2),
            c_out,
            c_in2_offset=_second_offset(sources, conv.skip_offset),
            stride=conv.stride,
            upsample=conv.enlarges,
            shift=shift,
            residual=None if residual is None else residual.tensor,
            shortcut=_shortcut(*shortcut) if shortcut else None,
            scale=scale,
            ring=conv.ring,
            pad_end=conv.pad_end,
            moments=moments,
            tickets=self._tickets,
            overlaps=True,
            activation=activation,
            gate=gate,
        )
        return Activation(y, found)

    def resample(
        self,
        x: Activation,
        up: bool,
        *,
        taps: int = 2,
        ring: bool = False,
        residual: Activation | None = None,
        scale: float = 1.0,
    ) -> Activation:
        """Enlarge or halve by 2, add a residual, multiply."""
        added = None if residual is None else residual.tensor
        y = resample(
            x.tensor, up, taps=taps, ring=ring, residual=added, scale=scale, overlaps=True
        )
        return Activation(y)

    def layer_norm(
        self,
        x: Activation,
        weight: Tensor | None,
        bias: Tensor | None,
        *,
        eps: float,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
    ) -> Activation:
        """Normalise the channels of each pixel.

        scale, shift: [N, channels], both or neither: the result is the norm * (1 + scale) + shift.
        """
        pixels = x.tensor.permute(0, 2, 3, 1)  # [N, height, width, c]
        y = layer_norm(pixels, weight, bias, eps=eps, scale=scale, shift=shift, overlaps=True)
        return Activation(y.permute(0, 3, 1, 2))

    def repeated(self, x: Activation, count: int) -> Activation:
        """Return `count` blocks of x, each with all of its images, without moments."""
        return Activation(x.tensor.repeat(count, 1, 1, 1).contiguous(memory_format=channels_last))

    def first_rows(self, rows: Tensor, count: int) -> Tensor:
        """Return the rows of the first of `count` blocks."""
        return rows[: len(rows) // count]

    def attention(self, qkv: Activation, heads: int) -> Activation:
        """Attend over all pixels; qkv is [N, 3 c, height, width]: queries, keys, values."""
        return _attended(qkv, *_heads_of(qkv, 3, heads))

    def cross_attention(self, q: Activation, kv: Activation, heads: int) -> Activation:
        """Attend to a context; q is [N, c, height, width], kv [N, 2 c, tokens, 1]: keys, values."""
        return _attended(q, *_heads_of(q, 1, heads), *_heads_of(kv, 2, heads))


def _heads_of(x: Activation, blocks: int, heads: int) -> Tensor:
    """Return blocks of channels as [blocks, N, heads, T, d]."""
    n, c, height, width = x.tensor.shape
    # A view, as the memory of a channels_last tensor is [N, H, W, C].
    rows = x.tensor.permute(0, 2, 3, 1)
    parts = rows.view(n, height * width, blocks, heads, c // blocks // heads)
    return parts.permute(2, 0, 3, 1, 4)


def _attended(queries: Activation, q: Tensor, k: Tensor, v: Tensor) -> Activation:
    """Attend; the result has the queries' pixels."""
    y = sliced_attention(q, k, v).transpose(1, 2).flatten(2)  # [N, T, c]
    return Activation(y.unflatten(1, queries.tensor.shape[2:]).permute(0, 3, 1, 2))


def _blocks(parameters: Sequence[Tensor | None], dims: int) -> list[Tensor]:
    """Return the parameters that are there; of each with so many dimensions, its blocks."""
    given = [parameter for parameter in parameters if parameter is not None]
    return [
        block
        for parameter in given
        for block in (parameter.unbind() if parameter.dim() == dims else (parameter,))
    ]


def _inputs(
    sources: tuple[Activation, ...], conv: ConvWeight, norm: Norm | None
) -> Sequence[Tensor]:
    """Return what a convolution reads: sources or their norm, perhaps halved or filtered."""
    down = conv.resample == "down"
    tensors: Sequence[Tensor] = [source.tensor for source in sources]
    if norm is not None:
        tensors = norm(down=down and not conv.filters)
    if conv.filters:
        return [resample(x, not down, taps=4, overlaps=True) for x in tensors]
    halves = down and norm is None
    return [resample(x, False, overlaps=True) for x in tensors] if halves else tensors


def _size(x: Tensor, conv: ConvWeight) -> tuple[int, int]:
    """Return height and width of what a convolution makes of its input."""
    height, width = x.shape[2:]
    return conv.out_size(height, width)


def _second_offset(sources: tuple[Activation, ...], skip_offset: int | None) -> int:
    """Return where a second source's weights begin."""
    return sources[0].c if skip_offset is None else skip_offset


def _shortcut(sources: tuple[Activation, ...], conv: ConvWeight) -> Shortcut:
    (weight,), (bias,) = conv.weights, conv.biases
    assert bias is not None  # a description's convolutions have one
    tensors = [source.tensor for source in sources]
    return Shortcut(tensors, weight, bias, _second_offset(sources, conv.skip_offset))
