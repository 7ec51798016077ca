"""Fused convolutions by the emulated kernels, and what they are compared with."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, replace

import torch
from cuda_kernels import emulated, structures
from cuda_kernels.activation_cases import KINDS, activated
from cuda_kernels.conv2d_cases import Case, check_rounded, forward_of
from ops.op_checks import as_layout, normal, seeded
from torch import Tensor

PORTABLE, HOPPER = (1, 4), (5, 7, 9, 10)  # tiles
BOTH = (*PORTABLE, *HOPPER)


@dataclass(frozen=True)
class Fused:
    """A call: its convolution, what is added to it, and what becomes of that."""

    conv: Case
    shift: bool = False
    residual: str | None = None  # its layout
    shortcut: tuple[int, int] = (0, 0)  # channels of its sources
    gain: float = 1.0
    activation: str | None = None
    gate: bool = False
    bias: bool = False
    tickets: bool = False
    overlaps: bool = False


def blocks_of(pixels: int) -> int:
    return emulated.library().moment_blocks(pixels)


NOTHING = torch.zeros(1, dtype=torch.float64)  # of what is not added


class Arguments:
    """Those of one call, what it reads, and its reference as far as it is built."""

    def __init__(self, call: Fused) -> None:
        self.call, self.case, self.generator = call, call.conv, seeded(4)
        self.args, self.reads, self.y, self.product = forward_of(self.case, self.generator)

    def rows(self) -> Tensor:
        """[N, channels of y] of wider rows, to be read."""
        shape = self.y.shape[:2]
        rows = as_layout(normal(self.generator, *shape, dtype=self.case.dtype), "sliced")
        self.reads.append(rows)
        return rows

    def gate_half(self) -> Tensor:
        """The product with a second weight."""
        if self.call.activation != "geglu":
            return NOTHING
        weight = self.case.weight(self.generator)
        self.args.parts, self.args.further[0].weight = 2, weight.data_ptr()
        x = self.case.joined(self.reads[0], self.reads[1])
        self.reads.append(weight)
        return self.case.convolve(x, self.case.product_input(self.case.slice(weight)))

    def biases(self) -> tuple[Tensor, Tensor]:
        """Of both weights."""
        if not self.call.bias:
            return NOTHING, NOTHING
        weight = self.reads[2]
        biases = normal(self.generator, 2, weight.size(0), dtype=weight.dtype)
        self.args.bias, self.args.further[0].bias = (bias.data_ptr() for bias in biases)
        self.reads.append(biases)
        first, second = biases.double()[:, : self.case.c_out, None, None]
        return first, second

    def shift(self) -> Tensor:
        if not self.call.shift:
            return NOTHING
        shift = self.rows()
        self.args.shift, self.args.shift_stride = shift.data_ptr(), shift.stride(0)
        return shift.double()[:, :, None, None]

    def shortcut(self) -> Tensor:
        case, (c, c2), (height, width) = self.case, self.call.shortcut, self.y.shape[2:]
        if not c:
            return NOTHING
        beside = replace(
            case, c=c, c2=c2, kernel=1, stride=1, upsample=False, height=height, width=width
        )
        x, x2 = beside.sources(self.generator)
        weight = beside.weight(self.generator)
        bias = normal(self.generator, weight.size(0), dtype=weight.dtype)
        self.args.shortcut = structures.Shortcut(
            emulated.image(x),
            emulated.image(x2, beside.offset()),
            emulated.weight_of(weight),
            bias.data_ptr(),
        )
        self.reads += [x, x2, weight, bias]
        part = beside.convolve(beside.joined(x, x2), case.product_input(beside.slice(weight)))
        return part + bias[: case.c_out].double()[:, None, None]

    def gate(self) -> Tensor:
        if not self.call.gate:
            return NOTHING + 1
        gate = self.rows()
        self.args.gate, self.args.gate_stride = gate.data_ptr(), gate.stride(0)
        return gate.double()[:, :, None, None]

    def residual(self) -> Tensor:
        if not self.call.residual:
            return NOTHING
        values = normal(self.generator, *self.y.shape, dtype=self.case.dtype)
        residual = as_layout(values, self.call.residual)
        pixels = residual.size(2) * residual.size(3)
        self.args.residual = residual.data_ptr()
        self.args.residual_stride = residual.stride(0) // pixels  # they are evenly spaced
        self.reads.append(residual)
        return residual.double()

    def exact(self) -> Tensor:
        """The output of the reference."""
        gate_half, (bias, half_bias) = self.gate_half(), self.biases()
        sums = self.product + bias + self.shift() + self.shortcut()
        y = activated(self.call.activation, sums, gate_half + half_bias)
        return self.call.gain * (y * self.gate() + self.residual())


def run(call: Fused, library: ctypes.CDLL | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Output, its moments, and the output of the reference."""
    built = Arguments(call)
    exact, args, y = built.exact(), built.args, built.y
    args.gain, args.activation = call.gain, KINDS.index(call.activation)
    classes = emulated.library().conv2d_moment_classes(ctypes.byref(args))
    blocks = blocks_of(y.size(2) * y.size(3) // classes)
    moments = torch.full((y.size(0), classes, blocks, y.size(1), 2), torch.nan)
    args.moments = moments.data_ptr()
    tickets = torch.zeros(4096, dtype=torch.int32)
    args.options.overlaps = call.overlaps
    if call.tickets:
        args.options.tickets = tickets.data_ptr()
    emulated.call("conv2d_forward", args, built.reads, [y, moments, tickets], library)
    assert not tickets.any()  # as they were
    return y, moments, exact


def pixels_of(y: Tensor, classes: int) -> Tensor:
    """Outputs [N, classes, pixels of a class, c_out].

    Class 2 a + b of four has rows 2 i + a and columns 2 j + b.
    """
    every = 1 if classes == 1 else 2
    parts = [y[:, :, a::every, b::every] for a in range(every) for b in range(every)]
    return torch.stack([part.flatten(2).transpose(1, 2) for part in parts], dim=1).double()


def check_moments(y: Tensor, moments: Tensor) -> None:
    """Of blocks of 64 pixels of a class, counted over all images, each image's part."""
    values = pixels_of(y, moments.size(1))
    pixels = values.size(2)
    for image in range(values.size(0)):
        first = 0
        for block in range(moments.size(2)):
            end = min(pixels, ((image * pixels + first) // 64 + 1) * 64 - image * pixels)
            if first == end:  # a block that this image does not reach
                assert moments[image, :, block].isnan().all()
                continue
            part = values[image, :, first:end]  # [classes, the block's pixels of this image, c_out]
            mean = part.mean(1)
            expected = torch.stack([mean, (part - mean[:, None]).square().sum(1)], dim=-1)
            got = moments[image, :, block].double()  # [classes, c_out, mean and deviations]
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
            first = end
        assert first == pixels


def check(call: Fused, library: ctypes.CDLL | None = None) -> None:
    y, moments, exact = run(call, library)
    check_rounded(y, exact)
    check_moments(y, moments)


SIZES = ((5, 4, 4), (3, 5, 7), (1, 8, 16), (3, 1, 1), (2, 12, 12), (2, 8, 8))
