"""Linear layer with a prefix of a larger weight."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ddsm_ext.ops._arguments import (
    autocast_dtype,
    check_accumulate,
    check_bias,
    check_c_out,
    check_tensor,
    check_weight_match,
    shape_text,
)

_OP = "sliced_linear"


def sliced_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    c_out: int,
    *,
    accumulate_grad: bool = False,
) -> Tensor:
    """Compute `x @ weight[:c_out, :c_in].T + bias[:c_out]` without copying the slice.

    Args:
        x: [..., c_in], float32, bfloat16 or float64, any strides, at least one dimension.
        weight: [c_out_max, c_in_max], x's dtype, or float32 with a 16-bit x.
        bias: [c_out_max] of weight's dtype; None adds nothing.
        c_out: active output features.
        accumulate_grad: backward adds the weight and bias gradients to `weight.grad` and
            `bias.grad` itself and reports none to autograd (hooks do not see them). Under
            torch.compile autograd accumulates them as usual.

    Returns:
        [..., c_out] of x's dtype, contiguous.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: a wrong shape, device or count.
    """
    _check_arguments(x, weight, bias, c_out, accumulate_grad)
    dtype = autocast_dtype(x)
    if dtype is not None:
        x = x.to(dtype)
    return sliced_linear_ref(x, weight, bias, c_out)


def sliced_linear_ref(x: Tensor, weight: Tensor, bias: Tensor | None, c_out: int) -> Tensor:
    """Plain-torch `sliced_linear`; the arguments mean the same and are not checked."""
    w = weight[:c_out, : x.shape[-1]].to(x.dtype)  # [c_out, c_in]
    b = None if bias is None else bias[:c_out].to(x.dtype)
    with torch.autocast(x.device.type, enabled=False):
        return F.linear(x, w, b).contiguous()  # [..., c_out]


def _check_arguments(x: Any, weight: Any, bias: Any, c_out: Any, accumulate_grad: Any) -> None:
    check_tensor(_OP, "x", x)
    check_tensor(_OP, "weight", weight, 2)
    check_weight_match(_OP, x, weight)
    check_bias(_OP, bias, weight)
    check_c_out(_OP, c_out, weight)
    check_accumulate(_OP, accumulate_grad, weight, bias)
    if x.dim() < 1:
        raise ValueError(f"{_OP}: x has shape {shape_text(x)}, need at least one dimension")
    if not 1 <= x.shape[-1] <= weight.shape[1]:
        raise ValueError(
            f"{_OP}: x has {x.shape[-1]} features, weight has {weight.shape[1]} input features; "
            f"need 1 <= c_in <= {weight.shape[1]}"
        )
