"""Layers of a slimmable network as calls of a `Program`: convolutions, norms, attention."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ddsm_ext import _library
from ddsm_ext.ops._panels import DIRECT, DIRECT_BF16, ConvShape, choose_algorithm, conv_panels
from ddsm_ext.runner.program import Buffer, Program

# In the order of the kernels' numbers (DType).
_DTYPES = (torch.float32, torch.bfloat16)
_FLOAT_BYTES, _DOUBLE_BYTES = 4, 8


def dtype_number(dtype: torch.dtype) -> int:
    """Return the kernels' number of float32 or bfloat16."""
    return _DTYPES.index(dtype)


@dataclass(frozen=True)
class Activation:
    """[N, c, height, width] channels_last in a buffer, with the moments of its pixel blocks."""

    buffer: Buffer
    c: int
    height: int
    width: int
    moments: Buffer | None = None
    block_pixels: int = 0

    @property
    def pixels(self) -> int:
        """Pixels of an image."""
        return self.height * self.width


@dataclass(frozen=True)
class Norm:
    """A group norm whose statistics are known: what the reader of its input applies.

    `rows` holds [N, 3, channels]: x becomes act((x - rows[0]) * rows[1] + rows[2]).
    """

    rows: Buffer
    silu: bool


@dataclass(frozen=True)
class Linear:
    """Weight, bias and active outputs of a linear layer."""

    weight: Tensor
    bias: Tensor
    c_out: int


@dataclass(frozen=True)
class ConvWeight:
    """Weights and biases of a convolution, side by side; `skip_offset` as in `SlicedConv2d`."""

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    stride: int = 1
    upsample: bool = False
    skip_offset: int | None = None


class Layers:
    """Appends layers to a program, all for one batch size and dtype.

    Args:
        program: where the calls go.
        images: batch size N.
        dtype: float32 or bfloat16, of activations; arithmetic is float32.
    """

    def __init__(self, program: Program, images: int, dtype: torch.dtype) -> None:
        self.program = program
        self.images = images
        self.dtype = dtype

    def activation(self, c: int, height: int, width: int) -> Activation:
        """Return a new activation without moments."""
        nbytes = self.images * height * width * c * self.dtype.itemsize
        return Activation(Buffer(nbytes), c, height, width)

    def floats(self, count: int) -> Buffer:
        """Return a new buffer of `count` float32 values."""
        return Buffer(count * _FLOAT_BYTES)

    def linear(self, x: Buffer, c_in: int, weight: Tensor, bias: Tensor, c_out: int) -> Buffer:
        """Map float32 [N, c_in] to float32 [N, c_out]."""
        y = self.floats(self.images * c_out)
        self.program.add(
            "linear",
            x=x,
            rows=self.images,
            c_in=c_in,
            weight=weight,
            weight_dtype=dtype_number(weight.dtype),
            weight_stride=weight.stride(0),
            bias=bias,
            y=y,
            c_out=c_out,
        )
        return y

    def linears(
        self, x: Buffer, c_in: int, linears: Sequence[Linear], *, silu: bool = False
    ) -> Iterator[Buffer]:
        """Map float32 [N, c_in] to float32 [N, c_out] by each of the layers, and SiLU.

        A layer is appended when its result is asked for: the caches hold it until it is read.
        """
        for one in linears:
            y = self.linear(x, c_in, one.weight, one.bias, one.c_out)
            yield self.silu(y, one.c_out) if silu else y

    def silu(self, x: Buffer, c: int) -> Buffer:
        """Apply SiLU to float32 [N, c]."""
        y = self.floats(self.images * c)
        self._apply(x, None, 1, c, 0, None, True, torch.float32, y)
        return y

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
        """Work out a group norm over one source or the unjoined concat of two."""
        c = sum(source.c for source in sources)
        rows = self.floats(self.images * 3 * c)
        first, second = sources[0], sources[1] if len(sources) > 1 else None
        self.program.add(
            "norm_merge",
            images=self.images,
            pixels=first.pixels,
            c=first.c,
            moments=first.moments,
            block_pixels=first.block_pixels,
            c2=second.c if second else 0,
            c2_offset=first.c if skip_offset is None else skip_offset,
            moments2=second.moments if second else None,
            block_pixels2=second.block_pixels if second else 0,
            groups=groups,
            eps=eps,
            weight=weight,
            bias=bias,
            param_dtype=dtype_number(weight.dtype),
            norm=rows,
        )
        return Norm(rows, silu)

    def conv2d(
        self,
        sources: tuple[Activation, ...],
        conv: ConvWeight,
        c_out: int,
        *,
        norm: Norm | None = None,
        image_bias: Buffer | None = None,
        residual: Activation | None = None,
        shortcut: tuple[tuple[Activation, ...], ConvWeight] | None = None,
        moments: bool = False,
        y: Activation | None = None,
    ) -> Activation:
        """Convolve ("same" padding) one source or the unjoined concat of two.

        Args:
            sources: one or two inputs of one size.
            conv: the weight; several weights of it make their outputs side by side.
            c_out: active outputs of each weight.
            norm: group norm of the sources, applied on the way.
            image_bias: float32 [N, c_out] to add.
            residual: output-like tensor to add.
            shortcut: sources of the output's size and a 1x1 convolution of them to add; not
                beside a residual.
            moments: whether a norm will read the output.
            y: where to write; None: a new activation.
        """
        if shortcut is not None:
            residual = self.conv2d(*shortcut, c_out)
        weight, parts = conv.weights[0], len(conv.weights)
        kernel, scale = weight.shape[2], 2 if conv.upsample else 1
        height = (sources[0].height * scale + conv.stride - 1) // conv.stride
        width = (sources[0].width * scale + conv.stride - 1) // conv.stride
        c_in = sum(source.c for source in sources)
        bf16 = self.dtype == weight.dtype == torch.bfloat16
        algorithm = DIRECT
        if parts == 1 or kernel == 1:  # else Winograd, which takes one weight, might be chosen
            pixels = (self.images, height, width)
            problem = ConvShape(*pixels, c_in, parts * c_out, kernel, conv.stride, scale, bf16)
            algorithm = choose_algorithm(_library.native.active_isa(), problem)
        shape = {
            "images": self.images,
            "height": sources[0].height,
            "width": sources[0].width,
            "out_height": height,
            "out_width": width,
            "stride": conv.stride,
            "padding": kernel // 2,
            "scale": scale,
        }
        c, c2 = sources[0].c, sources[1].c if len(sources) > 1 else 0
        x: list[Buffer | None] = [sources[0].buffer, sources[1].buffer if c2 else None]
        strides, x2_shift = [c, c2], 0
        # What the kernel reads; a Winograd one normalises on the way.
        read = torch.float32 if algorithm == DIRECT else self.dtype
        if read != self.dtype or (algorithm in (DIRECT, DIRECT_BF16) and norm is not None):
            joined = self.joined(sources, norm, read)
            x, strides, norm = [joined, joined if c2 else None], [c_in] * 2, None
            x2_shift = c * read.itemsize
        block_pixels = _library.native.conv2d_moment_pixels(shape, algorithm)
        moment_bytes = self.images * -(-height * width // block_pixels) * 2 * c_out * _DOUBLE_BYTES
        result = replace(
            y or self.activation(parts * c_out, height, width),
            moments=Buffer(moment_bytes) if moments else None,
            block_pixels=block_pixels,
        )
        self.program.add(
            "conv2d",
            **shape,
            x=x[0],
            x_stride=strides[0],
            c_in=c,
            x2=x[1],
            x2_stride=strides[1],
            x2_shift=x2_shift,
            c_in2=c2,
            c_in2_offset=c if conv.skip_offset is None else conv.skip_offset,
            kernel=kernel,
            algo=algorithm,
            panels=_panels(conv, algorithm),
            c_out_max=weight.shape[0],
            c_in_max=weight.shape[1],
            weight_dtype=dtype_number(weight.dtype),
            bias=_joined_biases(conv),
            norm=norm.rows if norm else None,
            norm_silu=norm.silu if norm else False,
            image_bias=image_bias,
            residual=residual.buffer if residual else None,
            y=result.buffer,
            dtype=dtype_number(self.dtype),
            c_out=c_out,
            parts=parts,
            moments=result.moments,
        )
        return result

    def joined(
        self, sources: tuple[Activation, ...], norm: Norm | None, dtype: torch.dtype
    ) -> Buffer:
        """Return [N, height, width, c of all sources] of `dtype`, normalised."""
        pixels, c = sources[0].pixels, sum(source.c for source in sources)
        y = Buffer(self.images * pixels * c * dtype.itemsize)
        second = sources[1] if len(sources) > 1 else None
        self._apply(
            sources[0].buffer,
            second.buffer if second else None,
            pixels,
            sources[0].c,
            second.c if second else 0,
            norm.rows if norm else None,
            norm.silu if norm else False,
            self.dtype,
            y,
            dtype,
        )
        return y

    def attention(self, qkv: Activation, heads: int) -> Activation:
        """Attend over all pixels; qkv is [N, 3 c, height, width]: queries, keys, values."""
        c, tokens = qkv.c // 3, qkv.pixels
        y = self.activation(c, qkv.height, qkv.width)
        head_channels = c // heads
        # Above half a million multiply-adds a slot a further thread pays.
        macs = self.images * heads * tokens * tokens * head_channels
        shape = {
            "dtype": dtype_number(self.dtype),
            "images": self.images,
            "heads": heads,
            "tokens": tokens,
            "head_channels": head_channels,
            "scale": head_channels**-0.5,
            "slots": max(1, min(torch.get_num_threads(), macs >> 19)),
        }
        self.program.add(
            "attention",
            **shape,
            element_bytes=self.dtype.itemsize,
            qkv=qkv.buffer,
            y=y.buffer,
            lse=self.floats(self.images * heads * tokens),
            scratch=Buffer(_library.native.attention_scratch_bytes(shape)),
        )
        return y

    def _apply(
        self,
        x: Buffer,
        x2: Buffer | None,
        pixels: int,
        c: int,
        c2: int,
        norm: Buffer | None,
        silu: bool,
        dtype: torch.dtype,
        y: Buffer,
        y_dtype: torch.dtype = torch.float32,
    ) -> None:
        self.program.add(
            "norm_apply",
            x=x,
            x2=x2,
            dtype=dtype_number(dtype),
            images=self.images,
            pixels=pixels,
            c=c,
            c2=c2,
            norm=norm,
            silu=silu,
            y=y,
            y_dtype=dtype_number(y_dtype),
        )


def _joined_biases(conv: ConvWeight) -> Tensor:
    """Biases [parts, c_out_max]."""
    return conv.biases[0] if len(conv.biases) == 1 else torch.cat(conv.biases).detach()


def _panels(conv: ConvWeight, algorithm: int) -> Tensor:
    parts = [conv_panels(w, algorithm, upsample=conv.upsample) for w in conv.weights]
    return parts[0] if len(parts) == 1 else torch.cat(parts)
