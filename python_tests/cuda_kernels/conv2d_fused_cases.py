"""Fused convolutions by the emulated kernels, and what they are compared with."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from cuda_kernels import emulated
from cuda_kernels.conv2d_cases import Case, check_rounded, forward_of
from ops.op_checks import as_layout, normal, seeded
from torch import Tensor

PORTABLE, HOPPER = (1, 4), (5, 7, 9, 10)  # tiles
BOTH = (*PORTABLE, *HOPPER)
ACTIVATIONS = (None, "gelu", "gelu_tanh", "geglu")  # in the order of their numbers


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

    def activated(self, sums: Tensor, gate_half: Tensor | None) -> Tensor:
        """In fp64."""
        if self.activation == "geglu":
            return sums * F.gelu(gate_half)
        if self.activation is None:
            return sums
        return F.gelu(sums, approximate="tanh" if self.activation == "gelu_tanh" else "none")


def blocks_of(pixels: int) -> int:
    return emulated.library().moment_blocks(pixels)


def run(call: Fused, library: ctypes.CDLL | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Output, its moments, and the output of the reference."""
    case, generator = call.conv, seeded(4)
    args, reads, y, exact = forward_of(case, generator)
    size = tuple(y.shape)
    gate_half = None
    if call.activation == "geglu":
        weight2 = case.weight(generator)
        args.parts, args.further[0].weight = 2, weight2.data_ptr()
        x = case.joined(reads[0], reads[1])
        gate_half = case.convolve(x, case.product_input(case.slice(weight2)))
        reads.append(weight2)
    if call.bias:
        biases = normal(generator, 2, reads[2].size(0), dtype=reads[2].dtype)
        args.bias, args.further[0].bias = (bias.data_ptr() for bias in biases)
        added = biases.double()[:, None, : case.c_out, None, None]
        exact, gate_half = exact + added[0], gate_half if gate_half is None else gate_half + added[1]
        reads.append(biases)
    if call.shift:
        shift = as_layout(normal(generator, *size[:2], dtype=case.dtype), "sliced")  # [N, c_out]
        args.shift, args.shift_stride = shift.data_ptr(), shift.stride(0)
        exact = exact + shift.double()[:, :, None, None]
        reads.append(shift)
    if call.shortcut[0]:
        c, c2 = call.shortcut
        beside = replace(case, c=c, c2=c2, kernel=1, stride=1, upsample=False,
                         height=size[2], width=size[3])  # fmt: skip
        x3, x4 = beside.sources(generator)
        weight3 = beside.weight(generator)
        bias = normal(generator, weight3.size(0), dtype=weight3.dtype)
        args.shortcut = emulated.Shortcut(
            emulated.image(x3),
            emulated.image(x4, beside.offset()),
            emulated.weight_of(weight3),
            bias.data_ptr(),
        )
        part = beside.convolve(beside.joined(x3, x4), case.product_input(beside.slice(weight3)))
        exact = exact + part + bias[: case.c_out].double()[:, None, None]
        reads += [x3, x4, weight3, bias]
    args.activation = ACTIVATIONS.index(call.activation)
    exact = call.activated(exact, gate_half)
    if call.gate:
        gate = as_layout(normal(generator, *size[:2], dtype=case.dtype), "sliced")  # [N, c_out]
        args.gate, args.gate_stride = gate.data_ptr(), gate.stride(0)
        exact = exact * gate.double()[:, :, None, None]
        reads.append(gate)
    if call.residual:
        residual = as_layout(normal(generator, *size, dtype=case.dtype), call.residual)
        args.residual = residual.data_ptr()
        args.residual_stride = residual.stride(0) // (size[2] * size[3])  # pixels evenly spaced
        exact = exact + residual.double()
        reads.append(residual)
    args.gain, exact = call.gain, call.gain * exact
    classes = emulated.library().conv2d_moment_classes(ctypes.byref(args))
    blocks = blocks_of(size[2] * size[3] // classes)
    moments = torch.full((case.n, classes, blocks, case.c_out, 2), torch.nan)
    args.moments = moments.data_ptr()
    tickets = torch.zeros(4096, dtype=torch.int32)
    args.options.overlaps = call.overlaps
    if call.tickets:
        args.options.tickets = tickets.data_ptr()
    emulated.call("conv2d_forward", args, reads, [y, moments, tickets], library)
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
