"""What sliced_layer_norm and its raw ops refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ddsm_ext.ops import sliced_layer_norm


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"x": None}, TypeError, "x is NoneType"),
        ({"x": torch.zeros(8)}, ValueError, r"x has shape \[8\]; need at least 2 dimensions"),
        ({"x": torch.zeros(2, 3, 0)}, ValueError, r"x has shape \[2, 3, 0\]; .* and 1 channel"),
        ({"x": torch.zeros(2, 8, dtype=torch.int32)}, TypeError, "x has dtype torch.int32"),
        ({"x": torch.zeros(2, 17)}, ValueError, "x has 17 channels, weight has 16; need 1 <="),
        ({"weight": None}, ValueError, "only one of weight and bias is given; need both"),
        ({"bias": None}, ValueError, "only one of weight and bias is given; need both"),
        ({"bias": torch.zeros(15)}, ValueError, "bias has 15 elements, weight has 16"),
        ({"weight": torch.zeros(16).double()}, TypeError, "x has dtype torch.float32, weight"),
        ({"eps": -1.0}, ValueError, "eps is -1.0, need 0 <= eps < inf"),
        ({"eps": "0"}, TypeError, "eps is '0', need a float"),
        ({"scale": None}, ValueError, "scale is None and the other is not"),
        ({"shift": torch.zeros(2, 9)}, ValueError, r"shift has shape \[2, 9\].* need \[2, 8\]"),
        ({"scale": torch.zeros(2, 8).bfloat16()}, TypeError, "scale has dtype torch.bfloat16, x"),
        ({"accumulate_grad": 1}, TypeError, "accumulate_grad is 1, need True or False"),
    ],
)
def test_refusals_name_the_values(change: dict[str, Any], error: type, text: str) -> None:
    arguments: dict[str, Any] = {"x": torch.zeros(2, 3, 8), "weight": torch.zeros(16)}
    arguments |= {"bias": torch.zeros(16)}
    arguments |= {"scale": torch.zeros(2, 8), "shift": torch.zeros(2, 8)}
    with pytest.raises(error, match=f"^sliced_layer_norm: {text}"):
        sliced_layer_norm(**{**arguments, **change})


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"x": torch.ones(8)}, "x has 1 dimensions; need at least 2"),
        ({"x": torch.ones(2, 3, 0)}, "x has no channels"),
        ({"x": torch.ones(2, 3, 8).half()}, "scale does not match the input"),
        (
            {"x": torch.ones(2, 8).half(), "scale": None, "shift": None},
            "x is float16; the CPU kernel needs float32",
        ),
        ({"bias": None}, "only one of weight and bias"),
        ({"bias": torch.ones(15)}, "weight and bias differ"),
        ({"weight": torch.ones(7), "bias": torch.ones(7)}, "x has 8 channels, weight 7"),
        ({"scale": None}, "only one of scale and shift"),
        ({"shift": torch.ones(3, 8)}, "shift does not match the input; need .* = 8]"),
    ],
)
def test_raw_calls_that_do_not_fit_are_refused(change: dict[str, Any], text: str) -> None:
    arguments: dict[str, Any] = {"x": torch.ones(2, 3, 8), "weight": torch.ones(16)}
    arguments |= {"bias": torch.ones(16), "eps": 1e-5}
    arguments |= {"scale": torch.ones(2, 8), "shift": torch.ones(2, 8)}
    with pytest.raises(RuntimeError, match=f"sliced_layer_norm: (.*)({text})"):
        torch.ops.ddsm_ext.sliced_layer_norm(**{**arguments, **change})


def test_raw_gradients_that_do_not_fit_are_refused() -> None:
    x, row = torch.ones(2, 3, 8), torch.ones(8)
    film = torch.ones(2, 8)
    backward = torch.ops.ddsm_ext.sliced_layer_norm_backward
    _, mean, rstd = torch.ops.ddsm_ext.sliced_layer_norm(x, row, row, 1e-5, film, film)
    for call, text in (
        ((x[:1], x, row, row, mean, rstd, None, None), "grad_y does not match x"),
        ((x, x, row, row, mean[:1], rstd, None, None), "mean or rstd is not what the forward"),
        ((x, x, row, row, mean, rstd.double(), None, None), "mean or rstd is not"),
        ((x, x, None, None, mean, rstd, row, None), "gradient is given but weight is not"),
        ((x, x, row, row, mean, rstd, row[:4], None), "a parameter's gradient does not match"),
        ((x, x, row, row, mean, rstd, None, None, None, None, film), "gradient of scale or shift"),
        (
            (x, x, row, row, mean, rstd, None, None, film, film, film.double()),
            "gradient of scale or shift does not match",
        ),
    ):
        with pytest.raises(RuntimeError, match=f"sliced_layer_norm_backward: .*{text}"):
            backward(*call)


def test_accumulation_into_a_gradient_with_gaps_is_refused() -> None:
    weight, bias = torch.ones(16, requires_grad=True), torch.ones(16, requires_grad=True)
    bias.grad = torch.zeros(32)[::2]
    y = sliced_layer_norm(torch.ones(2, 8), weight, bias, accumulate_grad=True)
    text = r"^sliced_layer_norm: bias\.grad has stride 2; need a contiguous one"
    with pytest.raises(ValueError, match=text):
        y.sum().backward()
