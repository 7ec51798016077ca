"""Sizes and strides that only an expanded tensor, or a dimension of size 1, can have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from ddsm_ext._library import native
from ddsm_ext.ops import (
    activation,
    packed_attention,
    resample,
    sliced_attention,
    sliced_conv2d,
    sliced_group_norm,
    sliced_layer_norm,
    sliced_linear,
)

# 36 * 32 * this is 128 modulo 2^64: a Winograd weight of so many channels seems to be tiny.
WRAPPING = 16012798675095097
raw = torch.ops.ddsm_ext


def expanded(*shape: int) -> Tensor:
    return torch.ones(()).expand(shape)


def image() -> Tensor:
    return torch.ones(1, 8, 4, 4)


TOO_LARGE: dict[str, Callable[[], Any]] = {
    "weight": lambda: sliced_conv2d(image(), expanded(32, WRAPPING, 3, 3), None, 8, padding=1),
    "weight, packed": lambda: sliced_conv2d(
        image(), expanded(32, WRAPPING, 3, 3), None, 8, padding=1, algo="winograd_4x4"
    ),
    "weight, chosen": lambda: sliced_conv2d(
        image(), nn.Parameter(expanded(32, WRAPPING, 3, 3)), None, 8, padding=1
    ),
    "kernel of 32 bits": lambda: sliced_conv2d(
        expanded(1, 1, 2**31 + 1, 2**31 + 1), expanded(1, 1, 2**31 + 1, 2**31 + 1), None, 1
    ),
    "kernel": lambda: sliced_conv2d(
        expanded(1, 1, 1025, 1025), expanded(1, 1, 1025, 1025), None, 1
    ),
    "images": lambda: sliced_conv2d(
        expanded(2**55, 1, 4, 4), nn.Parameter(torch.ones(1, 1, 3, 3)), None, 1
    ),
    "output": lambda: sliced_conv2d(
        expanded(2**30, 1, 4, 4), expanded(2**30, 1, 3, 3), None, 2**30
    ),
    "x": lambda: sliced_linear(expanded(2, 2**61), expanded(3, 2**61), None, 3),
    "rows": lambda: sliced_linear(expanded(2**40, 1), expanded(2**40, 1), None, 2**40),
    "no images": lambda: sliced_attention(*[expanded(0, 2**30, 2**30, 2)] * 3),
    "heads": lambda: sliced_attention(*[expanded(2**40, 2**20, 1, 1)] * 3),
    "side by side": lambda: packed_attention(expanded(2**40, 1, 3, 2), 1),
    "context": lambda: packed_attention(torch.ones(1, 2, 2), 1, expanded(1, 2**40, 2, 2)),
    "normalised": lambda: sliced_group_norm(
        expanded(2**50, 8, 2, 2), torch.ones(8), torch.ones(8), 2
    ),
    "rows of channels": lambda: sliced_layer_norm(expanded(2**50, 8, 2), None, None),
    "resampled": lambda: resample(expanded(2**50, 8, 2, 2), True),
    "activated": lambda: activation(expanded(2**50, 8), "geglu"),
    "blocks": lambda: sliced_linear(expanded(2**30, 4), expanded(2**10, 2**10, 4), None, 2**10),
}


@pytest.mark.parametrize("call", TOO_LARGE.values(), ids=TOO_LARGE)
def test_what_counts_beyond_memory_is_refused(call: Callable[[], Any]) -> None:
    with pytest.raises(
        ValueError, match=r"^\w+: .*(; need at most 1024x1024|, need at most 10995)"
    ):
        call()


RAW_TOO_LARGE: dict[str, Callable[[], Any]] = {
    "panels": lambda: raw.sliced_conv2d_panels(
        expanded(32, WRAPPING, 3, 3), 1, False, False, torch.empty(128)
    ),
    "panels of a kernel": lambda: raw.sliced_conv2d_panels(
        expanded(1, 1, 10**6, 10**6), 0, False, False, torch.empty(128)
    ),
    "forward": lambda: raw.sliced_conv2d(
        image(), None, expanded(32, WRAPPING, 3, 3), None, 8, 8, 1, 1, False, torch.empty(128), 1
    ),
    "grad_x": lambda: raw.sliced_conv2d_grad_x(
        image(), expanded(32, WRAPPING, 3, 3), 2**53, 0, 4, 4, 1, 1, False
    ),
    "grad_weight": lambda: raw.sliced_conv2d_grad_weight(
        image(), image(), None, 8, 1, 1, False, expanded(32, WRAPPING, 3, 3), None
    ),
}


@pytest.mark.parametrize("call", RAW_TOO_LARGE.values(), ids=RAW_TOO_LARGE)
def test_raw_ops_refuse_it_too(call: Callable[[], Any]) -> None:
    with pytest.raises(RuntimeError, match=r"sliced_conv2d\w*: .*need at most"):
        call()


@pytest.mark.parametrize(
    ("c_out", "c_in", "kernel", "algo"),
    [
        (32, WRAPPING, 3, 1),
        (4, 4, 10**9, 0),  # of which each tap would be listed
        (-5, 2**62, 3, 1),
        (4, 4, 3, 7),
        (4, 4, 5, 1),
    ],
)
def test_no_panels(c_out: int, c_in: int, kernel: int, algo: int) -> None:
    with pytest.raises(ValueError, match=r"conv2d_panel_floats: no panels of algo \d"):
        native.conv2d_panel_floats(c_out, c_in, kernel, algo, False, False)


def test_a_problem_of_the_choice_is_bounded() -> None:
    sizes = {"images": 1, "out_height": 8, "out_width": 8, "c_in": 8, "c_out": 8, "kernel": 3}
    native.conv2d_choose(native.Conv2dProblem(**sizes, stride=1, scale=1, bf16=False))
    for name in sizes:
        for value in (-1, 2**62):
            with pytest.raises(ValueError, match="Conv2dProblem"):
                native.Conv2dProblem(**{**sizes, name: value}, stride=1, scale=1, bf16=False)


def test_calls_beyond_a_plan_are_refused() -> None:
    plan = native.StepPlan()
    plan.run(0, 0)
    for begin, end in ((0, 1), (-1, 0), (1, 0), (0, 2**62)):
        with pytest.raises(IndexError, match=r"StepPlan.run: calls \[.*\) of 0"):
            plan.run(begin, end)


# ---- strides of dimensions of size 1, which mean nothing -----------------------------------------


def odd_strides(x: Tensor, stride: int) -> Tensor:
    """x with `stride` for every dimension of size 1."""
    strides = [s if n > 1 else stride for n, s in zip(x.shape, x.stride(), strict=True)]
    return torch.as_strided(x.contiguous(), x.shape, strides)


@pytest.mark.parametrize("odd", [0, 3, 2**62])
@pytest.mark.parametrize("stride", [1, 2])
def test_images_and_weights_with_any_stride(odd: int, stride: int) -> None:
    x, w = torch.randn(1, 1, 4, 4), torch.randn(1, 1, 3, 3)
    got = sliced_conv2d(odd_strides(x, odd), odd_strides(w, odd), None, 1, padding=1, stride=stride)
    assert_close(got, F.conv2d(x, w, None, stride, 1))
    row, matrix = torch.randn(1, 1, 8), torch.randn(1, 8)
    got = sliced_linear(odd_strides(row, odd), odd_strides(matrix, odd), None, 1)
    assert_close(got, F.linear(row, matrix))
    block = odd_strides(matrix[None], odd)
    got = sliced_linear(odd_strides(row, odd), block, None, 1, gate=odd_strides(matrix[:, :1], odd))
    assert_close(got, F.linear(row, matrix) * matrix[:, :1])
    assert_close(activation(odd_strides(row, odd), "gelu"), F.gelu(row))
    q = torch.randn(1, 1, 1, 8)
    assert_close(sliced_attention(*[odd_strides(q, odd)] * 3), q)
    pixel = torch.randn(1, 8, 1, 1)
    ours = sliced_group_norm(odd_strides(pixel, odd), torch.ones(8), torch.zeros(8), 2)
    assert_close(ours, F.group_norm(pixel, 2))
    assert_close(resample(odd_strides(pixel, odd), True), pixel.expand(1, 8, 2, 2))
    for shape in ((1, 8), (1, 1, 8), (3, 1, 8), (1, 3, 1, 8), (2, 1, 1)):
        rows = torch.randn(shape)
        film = odd_strides(torch.zeros(1, 8), odd) if shape[0] == 1 else None
        ours = sliced_layer_norm(odd_strides(rows, odd), None, None, scale=film, shift=film)
        assert_close(ours, F.layer_norm(rows, shape[-1:]))


@pytest.mark.parametrize("odd", [0, 3, 2**62])
@pytest.mark.parametrize("accumulate", [False, True])
def test_gradients_of_one_element_with_any_stride(odd: int, accumulate: bool) -> None:
    def parameter(*shape: int) -> nn.Parameter:
        made = nn.Parameter(odd_strides(torch.ones(shape), odd))
        assert odd in made.stride()
        return made

    bias = parameter(1)
    x = torch.randn(2, 4, 4, 4)
    args = {"accumulate_grad": accumulate}
    sliced_conv2d(x, parameter(1, 4, 3, 3), bias, 1, padding=1, **args).sum().backward()
    assert bias.grad.tolist() == [2 * 4 * 4]
    sliced_linear(torch.ones(3, 4), parameter(1, 4), bias, 1, **args).sum().backward()
    assert bias.grad.tolist() == [32 + 3]
    y = sliced_group_norm(x[:, :1].contiguous(), parameter(1), bias, 1, **args)
    y.sum().backward()
    assert bias.grad.tolist() == [35 + 32]


# ---- memory that is written ---------------------------------------------------------------------


def add_conv_gradient(into: Tensor) -> None:
    ones = torch.ones(1, 8, 6, 6)
    raw.sliced_conv2d_grad_weight(ones, ones, None, 8, 1, 1, False, into, None)


def add_linear_gradient(into: Tensor) -> None:
    raw.sliced_linear_grad_weight(torch.ones(2, 3), torch.ones(2, 4), into, None)


@pytest.mark.parametrize(
    ("add", "into"),
    [
        (add_conv_gradient, torch.zeros(8, 1, 3, 3).expand(8, 8, 3, 3)),
        (add_conv_gradient, torch.zeros(1000).as_strided((8, 8, 3, 3), (8, 1, 3, 1))),
        (add_linear_gradient, torch.zeros(1, 4).expand(3, 4)),
        (add_linear_gradient, torch.zeros(20).as_strided((3, 4), (2, 1))),
    ],
)
def test_elements_that_share_memory_are_not_added_to(
    add: Callable[[Tensor], None], into: Tensor
) -> None:
    with pytest.raises(RuntimeError, match="by which its elements share memory; need at least"):
        add(into)
    assert not into.any()


@pytest.mark.parametrize(
    ("add", "into"),
    [
        (add_conv_gradient, torch.zeros(8, 8, 3, 3).to(memory_format=torch.channels_last)),
        (add_conv_gradient, torch.zeros(9, 16, 3, 3)[:8, ::2]),
        (add_conv_gradient, torch.zeros(3, 3, 8, 8).permute(3, 2, 0, 1)),
        (add_linear_gradient, torch.zeros(4, 3).t()),
        (add_linear_gradient, torch.zeros(3, 8)[:, ::2]),
    ],
)
def test_any_strides_with_memory_for_each_are(add: Callable[[Tensor], None], into: Tensor) -> None:
    want = torch.zeros(into.shape)
    add(want)
    add(into)
    assert_close(into, want)
    assert want.any()


def test_other_written_arguments_are_contiguous() -> None:
    panels = torch.zeros(1).expand(native.conv2d_panel_floats(8, 8, 3, 1, False, False))
    with pytest.raises(RuntimeError, match="panels is not"):
        raw.sliced_conv2d_panels(torch.ones(8, 8, 3, 3), 1, False, False, panels)
    bias = torch.zeros(1).expand(3)
    with pytest.raises(RuntimeError, match="grad_bias is not contiguous"):
        raw.sliced_linear_grad_weight(torch.ones(2, 3), torch.ones(2, 4), torch.zeros(3, 4), bias)
    x, row = torch.ones(2, 4, 3, 3), torch.ones(4)
    film = torch.ones(2, 4)
    _, _, mean, rstd = raw.sliced_group_norm(x, None, row, row, 2, 4, 0.1, False, film, film)
    shared = torch.zeros(1, 4).expand(2, 4)
    for grads in ((torch.zeros(1).expand(4), None, film, film, None, None),
                  (None, None, film, film, shared, None)):  # fmt: skip
        with pytest.raises(RuntimeError, match="need a contiguous"):
            raw.sliced_group_norm_backward(
                x, None, x, None, row, row, mean, rstd, 2, 4, False, *grads
            )
    x = torch.ones(2, 3, 4)
    _, mean, rstd = raw.sliced_layer_norm(x, row, row, 0.1, film, film)
    for grads in ((torch.zeros(1).expand(4), None, film, film, None, None),
                  (None, None, film, film, shared, None)):  # fmt: skip
        with pytest.raises(RuntimeError, match="need a contiguous"):
            raw.sliced_layer_norm_backward(x, x, row, row, mean, rstd, *grads)
