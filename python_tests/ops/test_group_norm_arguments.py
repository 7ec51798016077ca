"""sliced_group_norm refuses what does not fit, in one sentence."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ddsm_ext.ops import sliced_group_norm


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"x": None}, TypeError, "x is NoneType"),
        ({"x": torch.zeros(2, 8, 4)}, ValueError, "x has shape"),
        ({"x": torch.zeros(2, 8, 4, 4, dtype=torch.int32)}, TypeError, "torch.int32"),
        ({"x": torch.zeros(2, 17, 4, 4)}, ValueError, "x has 17 channels, weight has 16"),
        ({"bias": torch.zeros(15)}, ValueError, "15"),
        ({"groups": 3}, ValueError, "groups is 3, the input has 8 channels"),
        ({"groups": 0}, ValueError, "groups is 0"),
        ({"groups": 2.0}, TypeError, "groups is 2.0"),
        ({"c2_offset": 8}, ValueError, "x2 is None"),
        ({"x2": torch.zeros(2, 8, 4, 5)}, ValueError, r"x2 has shape \[2, 8, 4, 5\]"),
        ({"x2": torch.zeros(2, 8, 4, 4), "c2_offset": 9}, ValueError, "c2_offset is 9"),
        ({"x2": torch.zeros(2, 8, 4, 4), "c2_offset": 4}, ValueError, "c2_offset is 4"),
        ({"eps": -1.0}, ValueError, "eps is -1.0"),
        ({"silu": 1}, TypeError, "silu is 1"),
    ],
)
def test_refusals_name_the_values(change: dict[str, Any], error: type, text: str) -> None:
    arguments: dict[str, Any] = {
        "x": torch.zeros(2, 8, 4, 4),
        "weight": torch.zeros(16),
        "bias": torch.zeros(16),
        "groups": 4,
    }
    with pytest.raises(error, match=f"^sliced_group_norm: .*{text}"):
        sliced_group_norm(**{**arguments, **change})


def test_accumulation_into_a_gradient_with_gaps_is_refused() -> None:
    weight, bias = torch.ones(16, requires_grad=True), torch.ones(16, requires_grad=True)
    bias.grad = torch.zeros(32)[::2]
    y = sliced_group_norm(torch.ones(2, 8, 4, 4), weight, bias, 4, accumulate_grad=True)
    text = r"^sliced_group_norm: bias\.grad has stride 2; need a contiguous one"
    with pytest.raises(ValueError, match=text):
        y.sum().backward()
