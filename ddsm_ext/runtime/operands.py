"""The operands of a plan's layers: activations, norms and weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ddsm_ext import _library
from ddsm_ext.ops._packed import (
    DIRECT,
    ConvProblem,
    as_kernels,
    choose_algorithm,
    packed_weight,
)
from ddsm_ext.runtime.program import Buffer, Place, Struct
from ddsm_ext.settings import Refusal

# In the order of the kernels' numbers (DType).
_DTYPES = (torch.float32, torch.bfloat16)


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

    def resampled(self, resample: str | None) -> tuple[int, int]:
        """Return its height and width after `resample` as in `ConvWeight`.

        Raises:
            ValueError: an odd one is to be halved.
        """
        if resample is None:
            return self.height, self.width
        if resample == "up":
            return 2 * self.height, 2 * self.width
        if self.height % 2 or self.width % 2:
            raise Refusal(
                f"Layers: {self.height}x{self.width} pixels are to be halved; need even numbers"
            )
        return self.height // 2, self.width // 2


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
    bias: Tensor | None
    c_out: int


@dataclass(frozen=True)
class ConvWeight:
    """Weights and biases of a convolution, side by side; `skip_offset` as in `SlicedConv2d`.

    A weight is [c_out_max, c_in_max, k, k], or a linear layer's, which is a convolution of k = 1:
    [c_out_max, c_in_max], or [B, c_out_max, c_in_max] of B blocks, parts of the result like further
    weights. A bias is [c_out_max] or [B, c_out_max]; None adds nothing.

    `resample` is what happens to its input before: None, "up" or "down", by 2 with a filter of
    `taps`; `ring`: it is taken one pixel around the image, too; `pad_end`: it has one row and
    column of zeros less before the image.
    """

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor | None, ...]
    stride: int = 1
    resample: str | None = None
    skip_offset: int | None = None
    taps: int = 2
    ring: bool = False
    pad_end: bool = False

    @property
    def parts(self) -> int:
        """Weights side by side, of all blocks."""
        return sum(weight.shape[0] if weight.dim() == 3 else 1 for weight in self.weights)

    @property
    def kernel(self) -> int:
        """Side of its kernels."""
        return self.weights[0].shape[2] if self.weights[0].dim() == 4 else 1

    @property
    def filters(self) -> bool:
        """True where a filter of 4 taps goes over its input: a pass of its own."""
        return self.resample is not None and self.taps == 4

    @property
    def enlarges(self) -> bool:
        """True where it reads its input enlarged by nearest neighbours."""
        return self.resample == "up" and self.taps == 2

    def out_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the result's height and width for an input that is halved or filtered already."""
        scale = 2 if self.enlarges else 1
        ring = 2 if self.ring else 0
        return (
            -(-(height * scale - self.pad_end) // self.stride) + ring,
            -(-(width * scale - self.pad_end) // self.stride) + ring,
        )

    def fields(
        self, algorithm: int, joined: JoinedWeights, *, glu: bool = False
    ) -> dict[str, Any]:
        """Return what an algorithm reads of them, as fields of a Conv2dForwardArgs.

        glu: for GEGLU, of one weight of two blocks.
        """
        first = self.weights[0]
        if len(self.weights) > 1:
            panels, bias = joined.of(self, algorithm)
        else:
            panels, bias = self.panels(algorithm, glu=glu)[0], self.biases[0]
        _, c_out_max, c_in_max, kernel, _ = as_kernels(first).shape
        return {
            "weight_dtype": dtype_number(first.dtype),
            "kernel": kernel,
            "algo": algorithm,
            "panels": panels,
            "c_out_max": c_out_max,
            "c_in_max": c_in_max,
            "bias": bias,
            "parts": self.parts,
        }

    def panels(self, algorithm: int, *, glu: bool = False) -> list[Tensor]:
        """Return each weight as an algorithm reads it, whole, whatever width will be active."""
        how = {"upsample": self.enlarges, "glu": glu}
        return [packed_weight(weight, algorithm, **how) for weight in self.weights]

    def joined_bias(self) -> Tensor | None:
        """Return the biases in one piece, zeros for those that are not there; None: none is."""
        if all(bias is None for bias in self.biases):
            return None
        rows = [
            weight.new_zeros(weight.shape[:-1] if weight.dim() < 4 else weight.shape[:1])
            if bias is None
            else bias.detach()
            for weight, bias in zip(self.weights, self.biases, strict=True)
        ]
        return torch.cat([row.flatten() for row in rows])


class JoinedWeights:
    """Weights that one call reads side by side, copied together once for all widths.

    Copies belong to the weights' content: `clear` forgets them.
    """

    def __init__(self) -> None:
        # The weights are kept, so that their ids remain theirs.
        self._kept: dict[tuple[Any, ...], tuple[ConvWeight, Tensor, Tensor | None]] = {}

    def of(self, conv: ConvWeight, algorithm: int) -> tuple[Tensor, Tensor | None]:
        """Return the packed weights and the biases of a convolution, each in one piece."""
        parts = tuple(map(id, (*conv.weights, *conv.biases)))
        key = (parts, algorithm, conv.resample, _library.native.active_isa())
        if key not in self._kept:
            panels = torch.cat(conv.panels(algorithm))
            self._kept[key] = (conv, panels, conv.joined_bias())
        return self._kept[key][1:]

    def nbytes(self) -> int:
        """Return the memory of the copies."""
        copies = (copy for _, *kept in self._kept.values() for copy in kept)
        return sum(copy.nbytes for copy in copies if copy is not None)

    def clear(self) -> None:
        """Forget the copies; programs that read them keep theirs."""
        self._kept.clear()


def plan_conv2d(
    images: int,
    dtype: torch.dtype,
    sources: Sequence[Activation],
    conv: ConvWeight,
    c_out: int,
    choose: Callable[[str, ConvProblem], int] = choose_algorithm,
    *,
    activated: bool = False,
) -> tuple[Struct, int]:
    """Return a convolution's Conv2dShape and its algorithm, by `choose`(isa, problem).

    activated: an activation or a gate follows, which direct algorithms alone compute.
    """
    weight, parts, kernel = conv.weights[0], conv.parts, conv.kernel
    scale = 2 if conv.enlarges else 1
    height, width = sources[0].resampled("down" if conv.resample == "down" else None)
    out_height, out_width = conv.out_size(height, width)
    shape = {
        "images": images,
        "height": height,
        "width": width,
        "out_height": out_height,
        "out_width": out_width,
        "stride": conv.stride,
        "padding": kernel // 2 + conv.ring - conv.pad_end,
        "scale": scale,
        "padding_end": kernel // 2 + conv.ring,
    }
    # Else Winograd, which takes one weight and activates nothing, might be chosen.
    if (parts > 1 or activated) and kernel > 1:
        return Struct("Conv2dShape", shape), DIRECT
    problem = ConvProblem(
        images,
        shape["out_height"],
        shape["out_width"],
        sum(source.c for source in sources),
        parts * c_out,
        kernel,
        conv.stride,
        scale,
        dtype == weight.dtype == torch.bfloat16,
    )
    algorithm = choose(_library.native.active_isa(), problem)
    return Struct("Conv2dShape", shape), algorithm


def conv2d_images(
    sources: Sequence[Activation],
    places: Sequence[tuple[Buffer | Place, int]],
    resample: str | None,
    skip_offset: int | None,
) -> list[Struct]:
    """Return the Conv2dImage of each source.

    Args:
        sources: one or two activations.
        places: where each is read, and elements between its pixels there.
        resample: what has happened to them on their way there.
        skip_offset: as in `ConvWeight`.
    """
    height, width = sources[0].resampled(resample)
    offsets = (0, sources[0].c if skip_offset is None else skip_offset)
    return [
        Struct(
            "Conv2dImage",
            {
                "data": place,
                "n_stride": height * width * stride,
                "h_stride": width * stride,
                "w_stride": stride,
                "channels": source.c,
                "weight_offset": offset,
            },
        )
        for source, (place, stride), offset in zip(sources, places, offsets, strict=False)
    ]
