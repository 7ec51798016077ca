"""Layers of a slimmable network as calls of a `Program`: convolutions, norms, attention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ddsm_ext import _library
from ddsm_ext.ops._packed import DIRECT, DIRECT_BF16, ConvProblem, choose_algorithm
from ddsm_ext.ops.activation import activation_number
from ddsm_ext.runtime.cpu_passes import Passes
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


class Layers(Passes):
    """Appends layers to a program, all for one batch size and dtype.

    Args:
        program, images, dtype: as of `Passes`.
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
        super().__init__(program, images, dtype)
        self._choose = choose
        self._joined = JoinedWeights() if joined is None else joined

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
                    "residual": shift,
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
        activation: str | None = None,
        gate: Buffer | None = None,
    ) -> Activation:
        """Convolve ("same" padding) one source or the unjoined concat of two.

        Args:
            sources: one or two inputs of one size.
            conv: the weight; several weights of it make their outputs side by side.
            c_out: active outputs of each weight.
            norm: group norm of the sources, applied before they are resampled.
            shift: float32 [N, c_out] to add.
            activation: as of `ops.activation`, of the sum so far; "geglu" takes one weight of two
                blocks and no shift, and leaves c_out channels.
            gate: float32 [N, channels of the result] to multiply that with.
            residual: output-like tensor to add, or one of half its size to enlarge first.
            shortcut: sources of the output's size and a 1x1 convolution to add; or a residual, an
                activation or a gate.
            scale: factor on the result with all that is added.
            moments: whether a norm will read the output.

        Raises:
            ValueError: an odd height or width is to be halved, a residual of another size added, or
                what cannot be is activated.
        """
        activated = _check_activated(conv, activation, gate, shift, shortcut)
        residual = self.conv2d(*shortcut, c_out) if shortcut else residual
        if conv.filters:
            sources, norm = self.filtered(sources, norm, up=conv.resample == "up"), None
            conv = replace(conv, resample=None)
        shape, algorithm = plan_conv2d(
            self.images, self.dtype, sources, conv, c_out, self._choose, activated=activated
        )
        size = (shape.fields["out_height"], shape.fields["out_width"])
        residual = self._residual(residual, size, algorithm)
        images, norm = self._images(sources, conv, algorithm, norm)
        glu = activation == "geglu"
        result = self.activation(c_out if glu else conv.parts * c_out, *size)
        if moments:
            result = self._with_moments(result, shape, algorithm)
        self.program.add(
            "Conv2dForwardArgs",
            shape=shape,
            sources=images,
            **conv.fields(algorithm, self._joined, glu=glu),
            norm=norm.rows if norm else None,
            norm_silu=norm.silu if norm else False,
            shift=shift,
            activation=activation_number("Layers.conv2d", activation),
            gate=gate,
            residual=residual.buffer if residual else None,
            residual_scale=1 if residual is None else size[0] // residual.height,
            gain=scale,
            y=result.buffer,
            y_dtype=dtype_number(self.dtype),
            c_out=c_out,
            moments=result.moments,
        )
        return result

    def _with_moments(self, y: Activation, shape: Struct, algorithm: int) -> Activation:
        """Return a convolution's result with a buffer for its moments."""
        block_pixels = _library.native.conv2d_moment_pixels(shape.sketch(), algorithm)
        moments = self.moments_buffer(y.pixels, block_pixels, y.c)
        return replace(y, moments=moments, block_pixels=block_pixels)

    def _residual(
        self, x: Activation | None, size: tuple[int, int], algorithm: int
    ) -> Activation | None:
        """Return x, if there is one, as a kernel adds it to an output of this size."""
        if x is None or (x.height, x.width) == size:
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

    def attention(self, qkv: Activation, heads: int) -> Activation:
        """Attend over all pixels; qkv is [N, 3 c, height, width]: queries, keys, values."""
        return self._attend(qkv, qkv, qkv.c // 3, heads)

    def cross_attention(self, q: Activation, kv: Activation, heads: int) -> Activation:
        """Attend to a context; q is [N, c, height, width], kv [N, 2 c, tokens, 1]: keys, values."""
        return self._attend(q, kv, q.c, heads)

    def _attend(self, queries: Activation, others: Activation, c: int, heads: int) -> Activation:
        """Attend; queries are the first c channels, keys and values the others' last 2 c."""
        y = self.activation(c, queries.height, queries.width)
        d = c // heads

        def tensor(of: Activation, channel: int) -> Struct:
            place = of.buffer.at(channel * self.dtype.itemsize)
            fields = {"n_stride": of.pixels * of.c, "head_stride": d, "t_stride": of.c}
            return Struct("AttentionTensor", {"data": place, **fields})

        fields = {
            "dtype": dtype_number(self.dtype),
            "n": self.images,
            "heads": heads,
            "t_q": queries.pixels,
            "t_k": others.pixels,
            "d": d,
            "scale": d**-0.5,
            "slots": 1,
            "q": tensor(queries, 0),
            "k": tensor(others, others.c - 2 * c),
            "v": tensor(others, others.c - c),
            "out": tensor(y, 0),
            "lse": None,  # only a backward reads it
            "scratch": None,
        }
        sketch = Struct("AttentionArgs", fields)
        fields["slots"] = _library.native.attention_slots(sketch.sketch())
        fields["scratch"] = Buffer(_library.native.attention_scratch_bytes(sketch.sketch()))
        self.program.add("AttentionArgs", **fields)
        return y


def _check_activated(
    conv: ConvWeight, activation: str | None, gate: Buffer | None, shift: object, shortcut: object
) -> bool:
    """Return whether there is an activation or a gate; refuse what it is not computed of."""
    activated = activation is not None or gate is not None
    if activated and shortcut is not None:
        raise Refusal("Layers.conv2d: a shortcut beside an activation or a gate; need a residual")
    if activation == "geglu" and (len(conv.weights) > 1 or conv.parts != 2):
        raise Refusal(
            f"Layers.conv2d: geglu of {len(conv.weights)} weights with {conv.parts} blocks; need "
            "one weight of 2 blocks"
        )
    if activation == "geglu" and shift is not None:
        raise Refusal("Layers.conv2d: geglu beside a shift; need no shift")
    return activated
