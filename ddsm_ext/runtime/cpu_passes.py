"""Passes over the pixels of activations as calls of a `Program`: resampling, moments, norms."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ddsm_ext import _library
from ddsm_ext.runtime.operands import Activation, Norm, dtype_number
from ddsm_ext.runtime.program import Buffer, Place, Program, Struct
from ddsm_ext.settings import Refusal

_FLOAT_BYTES, _DOUBLE_BYTES = 4, 8
# Pixels of a block of `Passes.moments`: short enough for float32 sums.
_MOMENT_PIXELS = 64


class Passes:
    """Appends passes to a program, all for one batch size and dtype; `cpu_layers.Layers` adds more.

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

    def repeated(self, x: Activation, count: int) -> Activation:
        """Return `count` blocks of x, each with all of its images, without moments."""
        nbytes = self.images * x.pixels * x.c * self.dtype.itemsize
        y = Buffer(count * nbytes)
        for block in range(count):
            place = _apply_source(x.buffer, x.c, y.at(block * nbytes), x.c)
            self._apply([place], x.height, x.width, None, False, self.dtype, self.dtype)
        return Activation(y, x.c, x.height, x.width)

    def first_rows(self, rows: Buffer, count: int) -> Buffer:
        """Return the rows of the first of `count` blocks, which begin where all do."""
        return rows

    def moments(self, x: Activation) -> Activation:
        """Return x with its moments, which a norm of it needs and most producers leave."""
        if x.moments is not None:
            return x
        moments = self.moments_buffer(x.pixels, _MOMENT_PIXELS, x.c)
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

    def layer_norm(
        self,
        x: Activation,
        weight: Tensor | None,
        bias: Tensor | None,
        *,
        eps: float,
        scale: Buffer | None = None,
        shift: Buffer | None = None,
    ) -> Activation:
        """Normalise the channels of each pixel.

        Args:
            x: the input.
            weight: gamma, [c_max]; None: 1.
            bias: beta, [c_max]; None where weight is.
            eps: added to the variance.
            scale: float32 [N, x.c]: the result is times 1 + scale; None: none.
            shift: float32, likewise, added then; None where scale is.
        """
        y = self.activation(x.c, x.height, x.width)
        # Without scale and shift all images are one.
        images = 1 if scale is None else self.images
        fields = {
            "x": x.buffer,
            "dtype": dtype_number(self.dtype),
            "images": images,
            "rows": self.images * x.pixels // images,
            "channels": x.c,
            "weight": weight,
            "bias": bias,
            "param_dtype": dtype_number(torch.float32 if weight is None else weight.dtype),
            "eps": eps,
            "scale": scale,
            "shift": shift,
            "y": y.buffer,
            "scratch": None,
        }
        sketch = Struct("LayerNormArgs", fields)
        fields["scratch"] = Buffer(_library.native.layer_norm_scratch_bytes(sketch.sketch()))
        self.program.add("LayerNormArgs", **fields)
        return y

    def filtered(
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

    def moments_buffer(self, pixels: int, block_pixels: int, c: int) -> Buffer:
        """Return a new buffer for the moments of c channels, by blocks of an image's pixels."""
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
