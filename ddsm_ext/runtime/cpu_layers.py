"""Layers of a slimmable network as calls of a `Program`: convolutions, norms, attention."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ddsm_ext import _library
from ddsm_ext.ops._packed import DIRECT, DIRECT_BF16, ConvProblem, choose_algorithm
from ddsm_ext.runtime.operands import (
    Activation,
    ConvWeight,
    JoinedWeights,
    Linear,
    Norm,
    conv2d_images,
    dtype_number,
    plan_conv2d,
)
from ddsm_ext.runtime.program import Buffer, Place, Program, Struct
from ddsm_ext.settings import Refusal

_FLOAT_BYTES, _DOUBLE_BYTES = 4, 8
# Pixels of a block of `Layers.moments`: short enough for float32 sums.
_MOMENT_PIXELS = 64


class Layers:
    """Appends layers to a program, all for one batch size and dtype.

    Args:
        program: where the calls go.
        images: batch size N.
        dtype: float32 or bfloat16, of activations; arithmetic is float32.
        choose: (instruction set, convolution) -> its algorithm.
        joined: where joined weights are kept for other programs; None: for this one alone.
    """

    def __init__(
        self,
        program: Program,
        images: int,
        dtype: torch.dtype,
        choose: Callable[[str, ConvProblem], int] = choose_algorithm,
        joined: JoinedWeights | None = None,
    ) -> None:
        self.program = program
        self.images = images
        self.dtype = dtype
        self._choose = choose
        self._joined = JoinedWeights() if joined is None else joined

    def activation(self, c: int, height: int, width: int) -> Activation:
        """Return a new activation without moments."""
        nbytes = self.images * height * width * c * self.dtype.itemsize
        return Activation(Buffer(nbytes), c, height, width)

    def floats(self, count: int) -> Buffer:
        """Return a new buffer of `count` float32 values."""
        return Buffer(count * _FLOAT_BYTES)

    def linears(
        self,
        x: Buffer,
        c_in: int,
        linears: Sequence[Linear],
        *,
        shift: Buffer | None = None,
        silu: bool = False,
    ) -> list[Buffer]:
        """Map float32 [N, c_in] to float32 [N, c_out] by each of the layers, and SiLU.

        Args:
            x: what all of them read.
            c_in: its columns.
            linears: the layers; one alone beside a shift.
            shift: float32 [N, c_out] to add before SiLU.
            silu: apply SiLU to the results.
        """
        results = [self.floats(self.images * one.c_out) for one in linears]
        layers = [
            Struct(
                "LinearForwardArgs",
                {
                    "x": x,
                    "rows": self.images,
                    "c_in": c_in,
                    "x_row_stride": c_in,
                    "weight": one.weight,
                    "weight_dtype": dtype_number(one.weight.dtype),
                    "weight_stride": one.weight.stride(0),
                    "bias": one.bias,
                    "shift": shift,
                    "y": y,
                    "y_dtype": dtype_number(torch.float32),
                    "c_out": one.c_out,
                },
            )
            for one, y in zip(linears, results, strict=True)
        ]
        self.program.add("LinearsForwardArgs", layers=layers)
        if not silu:
            return results
        return [self.silu(y, one.c_out) for one, y in zip(linears, results, strict=True)]

    def silu(self, x: Buffer, c: int) -> Buffer:
        """Apply SiLU to float32 [N, c]."""
        y = self.floats(self.images * c)
        self._apply([_apply_source(x, c, y, c)], 1, 1, None, True, torch.float32, torch.float32)
        return y

    def resample(
        self,
        x: Activation,
        *,
        up: bool,
        taps: int = 2,
        ring: bool = False,
        residual: Activation | None = None,
        scale: float = 1.0,
    ) -> Activation:
        """Enlarge or halve by 2, add a residual, multiply: as `ops.resample`.

        Raises:
            ValueError: an odd height or width is to be halved, or a residual of another size added.
        """
        height, width = (side - ring for side in x.resampled("up" if up else "down"))
        if residual is not None and (residual.height, residual.width) != (height, width):
            raise Refusal(
                f"Layers.resample: the residual has {residual.height}x{residual.width} pixels; "
                f"need {height}x{width}"
            )
        y = self.activation(x.c, height, width)
        self.program.add(
            "ResampleArgs",
            x=x.buffer,
            dtype=dtype_number(self.dtype),
            images=self.images,
            height=x.height,
            width=x.width,
            channels=x.c,
            n_stride=x.pixels * x.c,
            h_stride=x.width * x.c,
            w_stride=x.c,
            up=up,
            gain=scale,
            taps=taps,
            ring=ring,
            residual=None if residual is None else residual.buffer,
            y=y.buffer,
        )
        return y

    def moments(self, x: Activation) -> Activation:
        """Return x with its moments, which a norm of it needs and most producers leave."""
        if x.moments is not None:
            return x
        moments = self._moments_buffer(x.pixels, _MOMENT_PIXELS, x.c)
        self.program.add(
            "GroupNormMomentsArgs",
            x=x.buffer,
            dtype=dtype_number(self.dtype),
            images=self.images,
            pixels=x.pixels,
            channels=x.c,
            x_pixel_stride=x.c,
            block_pixels=_MOMENT_PIXELS,
            moments=moments,
        )
        return replace(x, moments=moments, block_pixels=_MOMENT_PIXELS)

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
        scale: Buffer | None = None,
        shift: Buffer | None = None,
    ) -> Norm:
        """Work out a group norm over one source or the unjoined concat of two.

        Args:
            sources: one or two inputs of one size; `moments` is asked for those without.
            weight: gamma, [c_max].
            bias: beta, [c_max].
            groups: number of groups over all channels.
            skip_offset: where the second source's part of weight and bias begins; None: behind the
                first's.
            silu: apply SiLU last.
            eps: added to the variance.
            scale: float32 [N, channels of all sources]: the result is times 1 + scale; None: none.
            shift: float32, likewise, added then.
        """
        c = sum(source.c for source in sources)
        rows = self.floats(self.images * 3 * c)
        offsets = (0, sources[0].c if skip_offset is None else skip_offset)
        parts = [
            Struct(
                "GroupNormMergeSource",
                {
                    "channels": source.c,
                    "param_offset": offset,
                    "moments": source.moments,
                    "block_pixels": source.block_pixels,
                },
            )
            for source, offset in zip(map(self.moments, sources), offsets, strict=False)
        ]
        self.program.add(
            "GroupNormMergeArgs",
            images=self.images,
            pixels=sources[0].pixels,
            sources=parts,
            groups=groups,
            eps=eps,
            weight=weight,
            bias=bias,
            param_dtype=dtype_number(weight.dtype),
            scale=scale,
            shift=shift,
            modulation_stride=c,
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
        shift: Buffer | None = None,
        residual: Activation | None = None,
        shortcut: tuple[tuple[Activation, ...], ConvWeight] | None = None,
        scale: float = 1.0,
        moments: bool = False,
    ) -> Activation:
        """Convolve ("same" padding) one source or the unjoined concat of two.

        Args:
            sources: one or two inputs of one size.
            conv: the weight; several weights of it make their outputs side by side.
            c_out: active outputs of each weight.
            norm: group norm of the sources, applied before they are resampled.
            shift: float32 [N, c_out] to add.
            residual: output-like tensor to add, or one of half the output's size to enlarge first.
            shortcut: sources of the output's size and a 1x1 convolution of them to add; not beside
                a residual.
            scale: factor on the result with all that is added.
            moments: whether a norm will read the output.

        Raises:
            ValueError: an odd height or width is to be halved, or a residual of another size added.
        """
        if shortcut is not None:
            residual = self.conv2d(*shortcut, c_out)
        if conv.filters:
            sources, norm = self._filtered(sources, norm, up=conv.resample == "up"), None
            conv = replace(conv, resample=None)
        shape, algorithm = plan_conv2d(self.images, self.dtype, sources, conv, c_out, self._choose)
        size = (shape.fields["out_height"], shape.fields["out_width"])
        if residual is not None:
            residual = self._residual(residual, size, algorithm)
        images, norm = self._images(sources, conv, algorithm, norm)
        block_pixels = _library.native.conv2d_moment_pixels(shape.sketch(), algorithm)
        result = replace(
            self.activation(len(conv.weights) * c_out, *size),
            moments=self._moments_buffer(math.prod(size), block_pixels, c_out) if moments else None,
            block_pixels=block_pixels,
        )
        self.program.add(
            "Conv2dForwardArgs",
            shape=shape,
            sources=images,
            **conv.fields(algorithm, self._joined),
            norm=norm.rows if norm else None,
            norm_silu=norm.silu if norm else False,
            shift=shift,
            residual=residual.buffer if residual else None,
            residual_scale=1 if residual is None else size[0] // residual.height,
            gain=scale,
            y=result.buffer,
            y_dtype=dtype_number(self.dtype),
            c_out=c_out,
            moments=result.moments,
        )
        return result

    def _filtered(
        self, sources: tuple[Activation, ...], norm: Norm | None, *, up: bool
    ) -> tuple[Activation, ...]:
        """Return the sources normalised, then resampled by 4 taps: a pass each."""
        if norm is not None:
            first = sources[0]
            apart = [self.activation(s.c, s.height, s.width) for s in sources]
            parts = [
                _apply_source(x.buffer, x.c, y.buffer, y.c)
                for x, y in zip(sources, apart, strict=True)
            ]
            self._apply(
                parts, first.height, first.width, norm.rows, norm.silu, self.dtype, self.dtype
            )
            sources = tuple(apart)
        return tuple(self.resample(source, up=up, taps=4) for source in sources)

    def _residual(self, x: Activation, size: tuple[int, int], algorithm: int) -> Activation:
        """Return x as a kernel adds it to an output of this size."""
        if (x.height, x.width) == size:
            return x
        if x.resampled("up") != size:
            raise Refusal(
                f"Layers.conv2d: the residual has {x.height}x{x.width} pixels; "
                f"need {size[0]}x{size[1]}, or half of both"
            )
        # A Winograd kernel enlarges on the way.
        return self.resample(x, up=True) if algorithm in (DIRECT, DIRECT_BF16) else x

    def _images(
        self, sources: tuple[Activation, ...], conv: ConvWeight, algorithm: int, norm: Norm | None
    ) -> tuple[list[Struct], Norm | None]:
        """Return what the kernel reads (a Conv2dImage a source), and the norm left to it."""
        c, c_in = sources[0].c, sum(source.c for source in sources)
        places: list[tuple[Buffer | Place, int]] = [(s.buffer, s.c) for s in sources]
        resample = "down" if conv.resample == "down" else None
        read = torch.float32 if algorithm == DIRECT else self.dtype
        # A Winograd kernel normalises on the way.
        apart = norm is not None and algorithm in (DIRECT, DIRECT_BF16)
        if resample or read != self.dtype or apart:
            joined = self.joined(sources, norm, read, resample)
            # Where the sources were joined, the second begins behind the first.
            places, norm = [(joined, c_in), (joined.at(c * read.itemsize), c_in)], None
        return conv2d_images(sources, places, resample, conv.skip_offset), norm

    def joined(
        self,
        sources: tuple[Activation, ...],
        norm: Norm | None,
        dtype: torch.dtype,
        resample: str | None = None,
    ) -> Buffer:
        """Return [N, height, width, c of all sources] of `dtype`, normalised, then resampled."""
        first, c_in = sources[0], sum(source.c for source in sources)
        height, width = first.resampled(resample)
        y = Buffer(self.images * height * width * c_in * dtype.itemsize)
        offsets = (0, first.c * dtype.itemsize)
        parts = [
            _apply_source(source.buffer, source.c, y.at(offset), c_in)
            for source, offset in zip(sources, offsets, strict=False)
        ]
        rows, silu = (norm.rows, norm.silu) if norm else (None, False)
        self._apply(parts, first.height, first.width, rows, silu, self.dtype, dtype, resample)
        return y

    def attention(self, qkv: Activation, heads: int) -> Activation:
        """Attend over all pixels; qkv is [N, 3 c, height, width]: queries, keys, values."""
        c, tokens = qkv.c // 3, qkv.pixels
        y = self.activation(c, qkv.height, qkv.width)
        d, row = c // heads, 3 * c

        def tensor(data: Buffer | Place, stride: int) -> Struct:
            fields = {"n_stride": tokens * stride, "head_stride": d, "t_stride": stride}
            return Struct("AttentionTensor", {"data": data, **fields})

        # [images, tokens, (q, k, v), heads, d]
        q, k, v = (tensor(qkv.buffer.at(i * c * self.dtype.itemsize), row) for i in range(3))
        fields = {
            "dtype": dtype_number(self.dtype),
            "n": self.images,
            "heads": heads,
            "t_q": tokens,
            "t_k": tokens,
            "d": d,
            "scale": d**-0.5,
            "slots": 1,
            "q": q,
            "k": k,
            "v": v,
            "out": tensor(y.buffer, c),
            "lse": None,  # only a backward reads it
            "scratch": None,
        }
        sketch = Struct("AttentionArgs", fields)
        fields["slots"] = _library.native.attention_slots(sketch.sketch())
        fields["scratch"] = Buffer(_library.native.attention_scratch_bytes(sketch.sketch()))
        self.program.add("AttentionArgs", **fields)
        return y

    def _moments_buffer(self, pixels: int, block_pixels: int, c: int) -> Buffer:
        return Buffer(self.images * -(-pixels // block_pixels) * 2 * c * _DOUBLE_BYTES)

    def _apply(
        self,
        sources: list[Struct],
        height: int,
        width: int,
        norm: Buffer | None,
        silu: bool,
        dtype: torch.dtype,
        y_dtype: torch.dtype,
        resample: str | None = None,
    ) -> None:
        self.program.add(
            "GroupNormApplyArgs",
            images=self.images,
            height=height,
            width=width,
            sources=sources,
            dtype=dtype_number(dtype),
            y_dtype=dtype_number(y_dtype),
            norm=norm,
            silu=silu,
            resample=getattr(_library.native.Resample, resample or "none"),
        )


def _apply_source(x: Buffer, c: int, y: Buffer | Place, y_pixel_stride: int) -> Struct:
    fields = {"x": x, "channels": c, "x_pixel_stride": c}
    return Struct("GroupNormApplySource", {**fields, "y": y, "y_pixel_stride": y_pixel_stride})
