"""Convolutions by the emulated kernels, and what they are compared with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from cuda_kernels import emulated, structures
from ops.op_checks import as_layout, normal, seeded
from torch import Tensor

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
PLAIN_TILE = 3  # of full precision and of operands that are not aligned


@dataclass(frozen=True)
class Case:
    """One convolution; weight channels beyond the active ones are NaN."""

    dtype: torch.dtype = torch.bfloat16
    weight_dtype: torch.dtype | None = None  # None: dtype
    ieee: bool = False
    n: int = 2
    c: int = 16
    c2: int = 0  # 0: one source
    c_out: int = 24
    height: int = 5
    width: int = 6
    kernel: int = 3
    stride: int = 1
    upsample: bool = False
    ring: bool = False  # one pixel around the image, too
    pad_end: bool = False  # a row and a column of zeros less before the image
    channels_last: bool = True  # of the weight
    sliced: bool = False  # x is a slice of an image with more channels
    tile: int = 0
    splits: int = 0

    def options(self) -> structures.Options:
        return emulated.options(self.dtype, ieee=self.ieee, tile=self.tile, splits=self.splits)

    def offset(self) -> int:
        """Where the second source's part of the weight begins: after a gap."""
        return -(-self.c // 8) * 8 + 8

    def source(self, generator: torch.Generator, channels: int) -> Tensor:
        x = normal(generator, self.n, channels, self.height, self.width, dtype=self.dtype)
        return as_layout(x, "sliced" if self.sliced else "channels_last")

    def sources(self, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        x = self.source(generator, self.c)
        return x, self.source(generator, self.c2) if self.c2 else None

    def active(self) -> Tensor:
        """Which elements of the weight are used."""
        size = (-(-self.c_out // 8) * 8 + 8, self.offset() + -(-self.c2 // 8) * 8 + 8)
        mask = torch.zeros(*size, self.kernel, self.kernel, dtype=torch.bool)
        mask[: self.c_out, : self.c] = True
        mask[: self.c_out, self.offset() : self.offset() + self.c2] = True
        return mask

    def parameter(self, values: Tensor) -> Tensor:
        memory = torch.channels_last if self.channels_last else torch.contiguous_format
        dtype = self.weight_dtype or self.dtype
        return torch.where(self.active(), values.to(dtype), torch.nan).contiguous(
            memory_format=memory
        )

    def weight(self, generator: torch.Generator) -> Tensor:
        return self.parameter(normal(generator, *self.active().shape))

    @property
    def padding(self) -> int:
        return self.kernel // 2 + self.ring - self.pad_end

    def shape(self, x: Tensor) -> structures.Shape:
        window = (self.kernel, self.stride, self.padding, self.upsample)
        return emulated.shape_of(x, *window, self.pad_end)

    def grad_y(self, generator: torch.Generator, shape: structures.Shape) -> Tensor:
        size = (self.n, self.c_out, shape.out_height, shape.out_width)
        y = normal(generator, *size, dtype=self.dtype)
        return as_layout(y, "sliced" if self.sliced else "channels_last")

    def out(self, channels: int, height: int, width: int) -> Tensor:
        y = torch.full((self.n, channels, height, width), torch.nan, dtype=self.dtype)
        return y.contiguous(memory_format=torch.channels_last)

    def product_input(self, value: Tensor) -> Tensor:
        """What the products take, in fp64: rounded to x's dtype, or to tf32."""
        value = value.to(self.dtype)
        if self.dtype == torch.float32 and not self.ieee:
            value = ((value.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)
        return value.double()

    def joined(self, x: Tensor, x2: Tensor | None) -> Tensor:
        return self.product_input(x if x2 is None else torch.cat([x, x2], dim=1))

    def slice(self, weight: Tensor) -> Tensor:
        parts = [weight[: self.c_out, : self.c]]
        parts.append(weight[: self.c_out, self.offset() : self.offset() + self.c2])
        return torch.cat(parts, dim=1)

    def convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        if self.upsample:
            x = F.interpolate(x, scale_factor=2, mode="nearest")
        if self.pad_end:
            x = F.pad(x, (0, 1, 0, 1))
        return F.conv2d(x, weight, stride=self.stride, padding=self.padding)


def check_rounded(got: Tensor, exact: Tensor) -> None:
    """`got` is the exact result rounded once to its dtype, fp32 sums allowed for."""
    rounding = 0.0 if got.dtype == torch.float32 else 0.501 * torch.finfo(got.dtype).eps
    atol = 2e-6 * exact.abs().max().item() + 1e-7
    torch.testing.assert_close(got.double(), exact, rtol=rounding, atol=atol)


def forward_of(
    case: Case, generator: torch.Generator
) -> tuple[structures.ForwardArgs, list[Tensor | None], Tensor, Tensor]:
    """A call without a bias: arguments, what it reads, its output, that of the reference."""
    x, x2 = case.sources(generator)
    weight = case.weight(generator)
    shape = case.shape(x)
    y = case.out(case.c_out, shape.out_height, shape.out_width)
    args = structures.ForwardArgs(
        options=case.options(),
        shape=shape,
        x=emulated.image(x),
        x2=emulated.image(x2, case.offset()),
        weight=emulated.weight_of(weight),
        parts=1,
        gain=1.0,
        y=y.data_ptr(),
        y_stride=case.c_out,
        c_out=case.c_out,
    )
    exact = case.convolve(case.joined(x, x2), case.product_input(case.slice(weight)))
    return args, [x, x2, weight], y, exact


def run_forward(case: Case, library: object = None) -> tuple[Tensor, Tensor]:
    """Output of the kernels and of the reference."""
    generator = seeded(1)
    args, reads, y, exact = forward_of(case, generator)
    bias = normal(generator, case.active().size(0), dtype=case.weight_dtype or case.dtype)
    args.bias = bias.data_ptr()
    emulated.call("conv2d_forward", args, [*reads, bias], [y], library)
    return y, exact + bias[: case.c_out].double()[:, None, None]


def run_grad_x(case: Case, library: object = None) -> tuple[Tensor, Tensor]:
    """Gradient of the last source, of the kernels and of the reference."""
    generator = seeded(2)
    x, _ = case.sources(generator)
    weight = case.weight(generator)
    shape = case.shape(x)
    grad_y = case.grad_y(generator, shape)
    c_in, offset = (case.c2, case.offset()) if case.c2 else (case.c, 0)
    grad_x = case.out(c_in, case.height, case.width)
    args = structures.GradXArgs(
        options=case.options(),
        shape=shape,
        grad_y=emulated.image(grad_y),
        weight=emulated.weight_of(weight),
        parts=1,
        grad_x=grad_x.data_ptr(),
        c_in=c_in,
        c_in_offset=offset,
    )
    emulated.call("conv2d_grad_x", args, [grad_y, weight], [grad_x], library)
    source = torch.zeros(grad_x.shape, dtype=torch.float64, requires_grad=True)
    part = case.product_input(weight[: case.c_out, offset : offset + c_in])
    y = case.convolve(source, part)
    return grad_x, torch.autograd.grad(y, source, case.product_input(grad_y))[0]


def run_grad_weight(case: Case) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of weight and bias after accumulation, of the kernels and of the reference."""
    generator = seeded(3)
    x, x2 = case.sources(generator)
    shape = case.shape(x)
    grad_y = case.grad_y(generator, shape)
    grad = case.weight(generator)
    grad_bias = normal(generator, grad.size(0), dtype=grad.dtype)
    before, bias_before = grad.clone(), grad_bias.clone()
    args = structures.GradWeightArgs(
        options=case.options(),
        shape=shape,
        grad_y=emulated.image(grad_y),
        x=emulated.image(x),
        x2=emulated.image(x2, case.offset()),
        grad_weight=emulated.weight_of(grad),
        grad_bias=grad_bias.data_ptr(),
    )
    emulated.call("conv2d_grad_weight", args, [grad_y, x, x2], [grad, grad_bias])
    assert grad.isnan().equal(before.isnan())  # nothing outside the slice was written
    assert grad_bias[case.c_out :].equal(bias_before[case.c_out :])
    leaf = torch.zeros(case.slice(grad).shape, dtype=torch.float64, requires_grad=True)
    y = case.convolve(case.joined(x, x2), leaf)
    exact = torch.autograd.grad(y, leaf, case.product_input(grad_y))[0]
    exact_bias = grad_y.double().sum((0, 2, 3)) + bias_before[: case.c_out].double()
    return (
        case.slice(grad),
        exact + case.slice(before).double(),
        grad_bias[: case.c_out],
        exact_bias,
    )


def check_all(case: Case) -> None:
    check_rounded(*run_forward(case))
    check_rounded(*run_grad_x(case))
    grad, exact, grad_bias, exact_bias = run_grad_weight(case)
    check_rounded(grad, exact)
    check_rounded(grad_bias, exact_bias)
