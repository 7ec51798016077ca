"""The CUDA convolution kernels on the emulator beside an fp64 reference. No GPU takes part."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from cuda_kernels.conv2d_cases import (
    DTYPES,
    PLAIN_TILE,
    Case,
    check_all,
    check_rounded,
    run_forward,
    run_grad_weight,
    run_grad_x,
)
from ops.product_samples import WINDOWS


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kernel", "stride", "upsample"), WINDOWS)
def test_windows(dtype, kernel, stride, upsample):
    check_all(Case(dtype=dtype, kernel=kernel, stride=stride, upsample=upsample))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rings_around_images(dtype):
    check_all(Case(dtype=dtype, c=3, c_out=24, ring=True))
    check_all(Case(dtype=dtype, c=16, c2=8, c_out=24, ring=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("height", "width"), [(6, 4), (5, 6), (1, 2)])
def test_zeros_at_the_end(dtype, height, width):
    for kernel, stride in ((3, 2), (2, 1), (3, 1)):
        size = {"height": height + kernel - 2, "width": width + kernel - 2}
        check_all(Case(dtype=dtype, kernel=kernel, stride=stride, c2=8, pad_end=True, **size))


@pytest.mark.parametrize(("kernel", "stride", "upsample"), WINDOWS)
def test_windows_in_full_precision(kernel, stride, upsample):
    window = {"kernel": kernel, "stride": stride, "upsample": upsample}
    check_all(Case(dtype=torch.float32, ieee=True, c=9, c2=5, c_out=11, **window))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tile", [1, 2, 3, 4])
def test_tiles(dtype, tile):
    check_all(Case(dtype=dtype, tile=tile, n=3, c=40, c_out=136, height=7, width=7))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("c", "c2", "c_out"), [(1, 0, 1), (3, 59, 8), (33, 31, 65), (8, 111, 3)])
def test_channel_counts(dtype, c, c2, c_out):
    check_all(Case(dtype=dtype, c=c, c2=c2, c_out=c_out, height=3, width=4))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sliced", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
def test_layouts(dtype, sliced, channels_last):
    check_all(Case(dtype=dtype, c=11, c2=8, sliced=sliced, channels_last=channels_last))


@pytest.mark.parametrize("dtype", DTYPES[:2])
@pytest.mark.parametrize("channels_last", [False, True])
def test_float32_parameters_beside_16_bit_images(dtype, channels_last):
    case = Case(dtype=dtype, weight_dtype=torch.float32, c=24, c2=13, channels_last=channels_last)
    check_all(case)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("splits", [2, 3, 7])
def test_splits(dtype, splits):
    check_all(Case(dtype=dtype, c=19, c2=40, n=4, height=8, width=8, splits=splits))


def test_splits_in_full_precision():
    check_all(Case(dtype=torch.float32, ieee=True, c=19, c2=40, splits=2))


def test_larger_kernel():
    check_all(Case(kernel=5, upsample=True))
    check_all(Case(kernel=5, stride=2))


@pytest.mark.parametrize("splits", [0, 3])
def test_repeatable(splits):
    case = Case(n=6, c=40, splits=splits)
    assert run_forward(case)[0].equal(run_forward(case)[0])
    assert run_grad_weight(case)[0].equal(run_grad_weight(case)[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 4), (6, 5), (8, 8)])
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_gradient_of_x_at_stride_2(dtype, height, width, kernel):
    """All four classes of pixels, even those that no tap or no pixel belongs to."""
    case = Case(dtype=dtype, height=height, width=width, kernel=kernel, stride=2, c=11)
    check_rounded(*run_grad_x(case))
    check_rounded(*run_grad_x(replace(case, ieee=dtype == torch.float32, sliced=True)))


def test_gradient_of_x_at_stride_2_takes_a_quarter_of_the_products(capfd, monkeypatch):
    monkeypatch.setenv("DDSM_PRINT_CHOICES", "1")
    products = {}
    for stride in (1, 2):
        run_grad_x(Case(stride=stride, height=8, width=8))
        lines = re.findall(r"m=(\d+) n=\d+ k_steps=(\d+)", capfd.readouterr().err)
        products[stride] = [int(m) * int(k_steps) for m, k_steps in lines]
    assert len(products[2]) == 4
    assert sum(products[2]) * 4 == sum(products[1])


def test_a_tile_that_does_not_exist_is_refused():
    with pytest.raises(RuntimeError, match="the forced tile or number of splits does not exist"):
        run_forward(Case(tile=11))
    with pytest.raises(RuntimeError, match="no kernel for this tile"):
        run_forward(Case(dtype=torch.float32, ieee=True, tile=PLAIN_TILE - 1))
    with pytest.raises(RuntimeError, match="no kernel for this tile"):
        run_forward(Case(c=13, tile=PLAIN_TILE - 1))


def test_choices_are_printed(capfd, monkeypatch):
    monkeypatch.setenv("DDSM_PRINT_CHOICES", "1")
    run_forward(replace(Case(), tile=2, splits=3))
    line = "ddsm_ext: sliced_conv2d bf16 m=60 n=24 k_steps=9 x1: 128x64, 3 splits"
    assert line in capfd.readouterr().err
