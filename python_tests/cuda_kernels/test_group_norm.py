"""The CUDA group norm kernels on the emulator beside an fp64 reference. No GPU takes part."""

from __future__ import annotations

from ctypes import c_int64, c_void_p

import pytest
import torch
import torch.nn.functional as F
from cuda_kernels import emulated
from ops.op_checks import as_layout, normal, seeded
from torch import Tensor

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
EPS = 1e-5


def norm(x: Tensor, weight: Tensor, bias: Tensor, groups: int, silu: bool) -> Tensor:
    y = F.group_norm(x, groups, weight, bias, EPS)
    return F.silu(y) if silu else y


class Case:
    """One or two sources with a gap between their parameters."""

    def __init__(
        self,
        channels: tuple[int, ...],
        groups: int,
        *,
        n: int = 2,
        height: int = 5,
        width: int = 7,
        silu: bool = True,
        dtype: torch.dtype = torch.bfloat16,
        param_dtype: torch.dtype | None = None,
        layout: str = "channels_last",
    ) -> None:
        generator = seeded(1)
        self.groups, self.silu = groups, silu
        self.offsets = [0, channels[0] + 3][: len(channels)]
        self.size = (n, height, width)
        make = lambda c: normal(generator, n, c, height, width)  # noqa: E731
        # A mean far from zero: squares that cancel would show.
        self.x = [as_layout((make(c) + 4).to(dtype), layout) for c in channels]
        self.grad_y = [as_layout(make(c).to(dtype), layout) for c in channels]
        count = self.offsets[-1] + channels[-1] + 2
        used = torch.zeros(count, dtype=torch.bool)
        for c, offset in zip(channels, self.offsets, strict=True):
            used[offset : offset + c] = True
        self.used = used
        param = lambda: normal(generator, count, dtype=param_dtype or dtype)  # noqa: E731
        self.weight = torch.where(used, param() + 1, torch.nan)
        self.bias = torch.where(used, param(), torch.nan)
        self.mean, self.rstd = (torch.full((n, groups), torch.nan) for _ in range(2))

    def empty(self) -> list[Tensor]:
        return [torch.full_like(x, torch.nan, memory_format=torch.channels_last) for x in self.x]

    def args(self, outputs: list[Tensor], *, backward: bool) -> emulated.GroupNormArgs:
        n, height, width = self.size
        args = emulated.GroupNormArgs(
            dtype=emulated.DTYPES[self.x[0].dtype],
            param_dtype=emulated.DTYPES[self.weight.dtype],
            n=n,
            pixels=height * width,
            groups=self.groups,
            source_count=len(self.x),
            weight=self.weight.data_ptr(),
            bias=self.bias.data_ptr(),
            eps=EPS,
            silu=self.silu,
            mean=self.mean.data_ptr(),
            rstd=self.rstd.data_ptr(),
        )
        for i, (x, grad_y, out) in enumerate(zip(self.x, self.grad_y, outputs, strict=True)):
            args.sources[i] = emulated.GroupNormSource(
                c=x.size(1),
                param_offset=self.offsets[i],
                x=x.data_ptr(),
                x_pixel_stride=x.stride(3),
                grad_y=grad_y.data_ptr(),
                grad_y_pixel_stride=grad_y.stride(3),
                y=None if backward else out.data_ptr(),
                grad_x=out.data_ptr() if backward else None,
            )
        return args

    def forward(self, moments: tuple[Tensor | None, ...] = (None, None)) -> Tensor:
        y = self.empty()
        data = [c_void_p(m.data_ptr() if m is not None else None) for m in moments]
        reads = [*self.x, self.weight, self.bias, *moments]
        writes = [*y, self.mean, self.rstd]
        args = self.args(y, backward=False)
        emulated.call("group_norm_forward", args, reads, writes, more=data)
        return torch.cat(y, dim=1)

    def backward(self, grad_weight: Tensor | None, grad_bias: Tensor | None) -> Tensor:
        grad_x = self.empty()
        args = self.args(grad_x, backward=True)
        args.grad_weight = None if grad_weight is None else grad_weight.data_ptr()
        args.grad_bias = None if grad_bias is None else grad_bias.data_ptr()
        reads = [*self.x, *self.grad_y, self.weight, self.bias, self.mean, self.rstd]
        emulated.call("group_norm_backward", args, reads, [*grad_x, grad_weight, grad_bias])
        return torch.cat(grad_x, dim=1)

    def exact(self) -> tuple[Tensor, ...]:
        """Output and gradients of x, weight and bias, the active channels joined."""
        x, grad_y = (torch.cat(t, dim=1).double() for t in (self.x, self.grad_y))
        leaves = [t.requires_grad_() for t in (x, self.weight[self.used].double(),
                                               self.bias[self.used].double())]  # fmt: skip
        y = norm(*leaves, self.groups, self.silu)
        return y.detach(), *torch.autograd.grad(y, leaves, grad_y)


def check_close(got: Tensor, exact: Tensor, relative: float) -> None:
    rounding = 0.0 if got.dtype == torch.float32 else 0.51 * torch.finfo(got.dtype).eps
    atol = relative * exact.abs().max().item()
    torch.testing.assert_close(got.double(), exact, rtol=rounding, atol=atol)


def check(case: Case) -> None:
    y, grad_x, grad_weight, grad_bias = case.exact()
    check_close(case.forward(), y, 4e-6)
    n, groups = case.mean.shape
    joined = torch.cat(case.x, dim=1).double().reshape(n, groups, -1)
    check_close(case.mean, joined.mean(2), 1e-6)
    check_close(case.rstd, (joined.var(2, correction=0) + EPS).rsqrt(), 1e-6)
    before = [torch.where(case.used, torch.ones_like(p), torch.nan) for p in (case.weight,) * 2]
    after = [b.clone() for b in before]
    check_close(case.backward(*after), grad_x, 1e-5)
    for got, exact in zip(after, (grad_weight, grad_bias), strict=True):
        check_close(got[case.used], exact + 1, 1e-5)
        assert got.isnan().equal(~case.used)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("channels", "groups"), [((32,), 8), ((7,), 1), ((5,), 5), ((33,), 3)])
@pytest.mark.parametrize("silu", [False, True])
def test_one_source(dtype, channels, groups, silu):
    check(Case(channels, groups, dtype=dtype, silu=silu))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("channels", "groups"), [((24, 8), 4), ((5, 7), 2), ((40, 3), 1)])
@pytest.mark.parametrize("layout", ["channels_last", "sliced"])
def test_two_sources(dtype, channels, groups, layout):
    check(Case(channels, groups, dtype=dtype, layout=layout))


@pytest.mark.parametrize(("height", "width"), [(1, 2), (4, 4), (8, 8), (9, 15), (16, 16)])
def test_image_sizes(height, width):
    check(Case((9,), 3, n=3, height=height, width=width, dtype=torch.float32))


@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_float32_parameters_beside_16_bit_sources(dtype):
    check(Case((16, 5), 7, dtype=dtype, param_dtype=torch.float32))


def test_only_one_parameter_gradient():
    case = Case((8,), 2, dtype=torch.float32)
    _, _, exact, _ = case.exact()
    case.forward()
    grad = torch.zeros(case.weight.shape)
    case.backward(grad, None)
    check_close(grad[case.used], exact, 1e-5)


@pytest.mark.parametrize(("height", "width"), [(4, 4), (5, 7), (8, 16)])
def test_moments_that_a_convolution_left(height, width):
    """The same output from given moments, of one source or of both."""
    case = Case((12, 8), 4, n=3, height=height, width=width, dtype=torch.float32)
    pixels = height * width
    library = emulated.library()
    library.moment_block_pixels.restype = c_int64
    blocks = library.moment_blocks(c_int64(pixels))
    moments = []
    for x in case.x:
        values = x.permute(0, 2, 3, 1).reshape(3, pixels, -1)
        of_source = torch.full((3, blocks, values.size(2), 2), torch.nan)
        for image in range(3):
            first = 0
            for block in range(blocks):
                place = [c_int64(v) for v in (pixels, image, block)]
                rows = library.moment_block_pixels(*place)
                part = values[image, first : first + rows].double()
                if rows:
                    mean = part.mean(0)
                    of_source[image, block, :, 0] = mean
                    of_source[image, block, :, 1] = (part - mean).square().sum(0)
                first += rows
        moments.append(of_source)
    y = case.exact()[0]
    check_close(case.forward((moments[0], moments[1])), y, 4e-6)
    check_close(case.forward((None, moments[1])), y, 4e-6)


def test_repeatable():
    case = Case((24, 8), 4, n=3, height=12, width=12)
    y = case.forward()
    assert case.forward().equal(y)
    results = []
    for _ in range(2):
        grads = [torch.zeros_like(case.weight) for _ in range(2)]
        results.append((case.backward(*grads), *grads))
    for first, second in zip(*results, strict=True):
        assert first.equal(second)
