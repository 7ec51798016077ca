"""Nothing outside a slice is read or written: it is NaN, and its bits stay."""

from __future__ import annotations

import pytest
import torch
from cuda_kernels.gpu.device import DEVICE, needs_device
from cuda_kernels.gpu.layer_calls import normal
from ops.op_checks import as_layout, check_outside_unchanged, poisoned
from torch import Tensor

from ddsm_ext.ops import sliced_conv2d, sliced_group_norm, sliced_layer_norm, sliced_linear

pytestmark = needs_device
DTYPES = (torch.float32, torch.bfloat16)
# (active, allocated): chunks of 16 bytes throughout, and neither count divisible by anything
SIZES = (((64, 48), (128, 96)), ((19, 21), (60, 40)))


def parameter(dtype: torch.dtype, keep: tuple[slice, ...], *size: int) -> Tensor:
    """A leaf, NaN outside `keep` as its gradient is, which is zero inside."""
    leaf = poisoned(normal(*size, dtype=dtype, layout=torch.channels_last), *keep)
    leaf.requires_grad_()
    leaf.grad = poisoned(torch.zeros_like(leaf), *keep)
    return leaf


def check(y: Tensor, inputs: list[Tensor], parameters: list[tuple[Tensor, tuple[slice, ...]]]):
    before = [leaf.grad.clone() for leaf, _ in parameters]
    y.sum().backward()
    assert torch.isfinite(y).all()
    assert all(torch.isfinite(x.grad).all() for x in inputs)
    for (leaf, keep), old in zip(parameters, before, strict=True):
        check_outside_unchanged(leaf.grad.cpu(), old.cpu(), *keep)
        assert leaf.grad[keep].any()


def image(channels: int, dtype: torch.dtype) -> Tensor:
    return as_layout(normal(2, channels, 6, 5, dtype=dtype), "sliced").detach().requires_grad_()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("active", "allocated"), SIZES)
@pytest.mark.parametrize(
    ("kernel", "stride", "upsample"), [(3, 1, False), (3, 2, False), (1, 1, False), (3, 1, True)]
)
def test_conv2d(dtype, active, allocated, kernel, stride, upsample):
    (c_in, c_out), (c_in_max, c_out_max) = active, allocated
    rows = (slice(0, c_out),)
    weight = parameter(dtype, (*rows, slice(0, c_in)), c_out_max, c_in_max, kernel, kernel)
    bias = parameter(dtype, rows, c_out_max)
    x = image(c_in, dtype)
    y = sliced_conv2d(
        x, weight, bias, c_out, stride=stride, padding=kernel // 2, upsample=upsample,
        accumulate_grad=True,
    )  # fmt: skip
    check(y, [x], [(weight, (*rows, slice(0, c_in))), (bias, rows)])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("active", "allocated"), SIZES)
def test_linear(dtype, active, allocated):
    (c_in, c_out), (c_in_max, c_out_max) = active, allocated
    region = (slice(0, c_out), slice(0, c_in))
    weight = parameter(dtype, region, c_out_max, c_in_max)
    bias = parameter(dtype, region[:1], c_out_max)
    x = poisoned(normal(7, c_in_max, dtype=dtype), slice(None), region[1])[:, :c_in]
    x = x.detach().requires_grad_()
    y = sliced_linear(x, weight, bias, c_out, accumulate_grad=True)
    check(y, [x], [(weight, region), (bias, region[:1])])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("channels", "groups"), [(64, 8), (21, 7)])
def test_group_norm(dtype, channels, groups):
    keep = (slice(0, channels),)
    weight, bias = (parameter(dtype, keep, 96) for _ in range(2))
    x = image(channels, dtype)
    y = sliced_group_norm(x, weight, bias, groups, silu=True, accumulate_grad=True)
    check(y, [x], [(weight, keep), (bias, keep)])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [64, 21])
def test_layer_norm(dtype, channels):
    keep = (slice(0, channels),)
    weight, bias = (parameter(dtype, keep, 96) for _ in range(2))
    x = poisoned(normal(3, 40, 96, dtype=dtype), slice(None), slice(None), *keep)[..., :channels]
    x = x.detach().requires_grad_()
    y = sliced_layer_norm(x, weight, bias, accumulate_grad=True)
    check(y, [x], [(weight, keep), (bias, keep)])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("c_in", "c_in2", "offset"), [(32, 16, 64), (19, 9, 31)])
def test_two_sources(dtype, c_in, c_in2, offset):
    used = torch.zeros(40, 96, 3, 3, dtype=torch.bool, device=DEVICE)
    used[:21, :c_in] = used[:21, offset : offset + c_in2] = True
    weight = torch.where(used, normal(40, 96, 3, 3, dtype=dtype), float("nan")).requires_grad_()
    weight.grad = torch.where(used, 0.0, float("nan")).to(dtype)
    x, x2 = image(c_in, dtype), image(c_in2, dtype)
    y = sliced_conv2d(
        x, weight, None, 21, padding=1, x2=x2, c_in2_offset=offset, accumulate_grad=True
    )
    y.sum().backward()
    assert all(torch.isfinite(t).all() for t in (y, x.grad, x2.grad, weight.grad[used]))
    assert torch.isnan(weight.grad[~used]).all()
