"""Calls of the emulated group norm kernels, and what they are compared with."""

from __future__ import annotations

import ctypes
import math
from ctypes import c_int64

import torch
import torch.nn.functional as F
from cuda_kernels import emulated, structures
from ops.op_checks import as_layout, normal, seeded
from torch import Tensor

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
EPS = 1e-5


def norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    silu: bool,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    y = F.group_norm(x, groups, weight, bias, EPS)
    if scale is not None and shift is not None:
        y = y * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
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
        modulated: bool = False,
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
        # Columns of a wider tensor; the others are NaN.
        self.modulation = torch.full((n, 2 * sum(channels) + 3), torch.nan, dtype=dtype)
        if modulated:
            self.modulation[:, 1:-2] = normal(generator, n, 2 * sum(channels), dtype=dtype)
        columns = self.modulation[:, 1:-2].chunk(2, dim=1) if modulated else (None, None)
        self.scale, self.shift = columns  # [n, c of all sources] each
        self.mean, self.rstd = (torch.full((n, groups), torch.nan) for _ in range(2))

    def empty(self, down: bool = False) -> list[Tensor]:
        """Outputs like the sources, or of a quarter of their pixels.

        Behind each lies memory that no kernel may touch, as much as a mistaken one would: what
        else an allocator puts there would decide what is found.
        """
        apart = 2 if down else 1
        like = [x[..., ::apart, ::apart] for x in self.x]
        return [
            torch.full_like(x.repeat(4, 1, 1, 1), torch.nan, memory_format=torch.channels_last)[
                : len(x)
            ]
            for x in like
        ]

    def args(self, outputs: list[Tensor], *, backward: bool) -> structures.GroupNormArgs:
        n, height, width = self.size
        args = structures.GroupNormArgs(
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
        if self.scale is not None:
            args.scale, args.shift = self.scale.data_ptr(), self.shift.data_ptr()
            args.modulation_stride = self.modulation.stride(0)
        for i, (x, grad_y, out) in enumerate(zip(self.x, self.grad_y, outputs, strict=True)):
            args.sources[i] = structures.GroupNormSource(
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

    def forward(
        self,
        moments: tuple[Tensor | None, ...] = (None, None),
        *,
        statistics: bool = True,
        overlaps: bool = False,
        down: bool = False,
        library: ctypes.CDLL | None = None,
    ) -> Tensor:
        """The output, its channels joined; moments: [N, classes, blocks, c, 2] of a source."""
        y = self.empty(down)
        given = (structures.GroupNormMoments * 2)()
        for place, of_source in zip(given, moments, strict=True):
            if of_source is not None:
                place.data, place.classes = of_source.data_ptr(), of_source.size(1)
        reads = [*self.x, self.weight, self.bias, *moments, self.scale, self.shift]
        args = self.args(y, backward=False)
        if not statistics:
            args.mean = args.rstd = None
        writes = [*y, self.mean, self.rstd] if statistics else y
        more = [given, c_int64(self.size[2] if down else 0), int(overlaps)]
        emulated.call("group_norm_forward", args, reads, writes, library, more)
        return torch.cat(y, dim=1)

    def moments(self, source: int, classes: int) -> Tensor:
        """What a convolution leaves of a source: [N, classes, blocks, c, 2], NaN for no pixels."""
        x = self.x[source]
        n, c, height, width = x.shape
        # Of classes (h % 2, w % 2) if there are four.
        every = math.isqrt(classes)
        apart = x.double().reshape(n, c, height // every, every, width // every, every)
        lists = apart.permute(0, 3, 5, 2, 4, 1).reshape(n, classes, -1, c)
        pixels = lists.size(2)
        library = emulated.library()
        library.moment_block_pixels.restype = c_int64
        blocks = library.moment_blocks(c_int64(pixels))
        moments = torch.full((n, classes, blocks, c, 2), torch.nan)
        for image in range(n):
            first = 0
            for block in range(blocks):
                place = [c_int64(v) for v in (pixels, image, block)]
                rows = library.moment_block_pixels(*place)
                part = lists[image, :, first : first + rows]  # [classes, rows, c]
                if rows:
                    mean = part.mean(1)
                    moments[image, :, block, :, 0] = mean
                    moments[image, :, block, :, 1] = (part - mean[:, None]).square().sum(1)
                first += rows
            assert first == pixels
        return moments

    def backward(
        self,
        grad_weight: Tensor | None,
        grad_bias: Tensor | None,
        library: ctypes.CDLL | None = None,
        grad_scale: Tensor | None = None,
        grad_shift: Tensor | None = None,
    ) -> Tensor:
        grad_x = self.empty()
        args = self.args(grad_x, backward=True)
        args.grad_weight = None if grad_weight is None else grad_weight.data_ptr()
        args.grad_bias = None if grad_bias is None else grad_bias.data_ptr()
        args.grad_scale = None if grad_scale is None else grad_scale.data_ptr()
        args.grad_shift = None if grad_shift is None else grad_shift.data_ptr()
        reads = [*self.x, *self.grad_y, self.weight, self.bias, self.mean, self.rstd]
        reads += [self.scale, self.shift]
        writes = [*grad_x, grad_weight, grad_bias, grad_scale, grad_shift]
        emulated.call("group_norm_backward", args, reads, writes, library)
        return torch.cat(grad_x, dim=1)

    def exact(self) -> tuple[Tensor, ...]:
        """Output and gradients of x, weight, bias, perhaps scale and shift, the active channels."""
        x, grad_y = (torch.cat(t, dim=1).double() for t in (self.x, self.grad_y))
        leaves = [x, self.weight[self.used].double(), self.bias[self.used].double()]
        if self.scale is not None:
            leaves += [self.scale.double(), self.shift.double()]
        leaves = [t.requires_grad_() for t in leaves]
        y = norm(*leaves[:3], self.groups, self.silu, *leaves[3:])
        return y.detach(), *torch.autograd.grad(y, leaves, grad_y)


def check_close(got: Tensor, exact: Tensor, relative: float) -> None:
    rounding = 0.0 if got.dtype == torch.float32 else 0.51 * torch.finfo(got.dtype).eps
    atol = relative * exact.abs().max().item()
    torch.testing.assert_close(got.double(), exact, rtol=rounding, atol=atol)


def check(case: Case, library: ctypes.CDLL | None = None) -> None:
    y, grad_x, grad_weight, grad_bias, *grad_modulation = case.exact()
    check_close(case.forward(library=library), y, 4e-6)
    n, groups = case.mean.shape
    joined = torch.cat(case.x, dim=1).double().reshape(n, groups, -1)
    check_close(case.mean, joined.mean(2), 1e-6)
    check_close(case.rstd, (joined.var(2, correction=0) + EPS).rsqrt(), 1e-6)
    before = [torch.where(case.used, torch.ones_like(p), torch.nan) for p in (case.weight,) * 2]
    after = [b.clone() for b in before]
    modulation = [torch.full_like(g, torch.nan, dtype=case.scale.dtype) for g in grad_modulation]
    check_close(case.backward(*after, library, *modulation), grad_x, 1e-5)
    for got, exact in zip(modulation, grad_modulation, strict=True):
        check_close(got, exact, 1e-5)
    for got, exact in zip(after, (grad_weight, grad_bias), strict=True):
        check_close(got[case.used], exact + 1, 1e-5)
        assert got.isnan().equal(~case.used)
