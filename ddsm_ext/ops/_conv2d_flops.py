"""FLOPs (2 x MACs) of a convolution and of its gradients, from shapes."""

from __future__ import annotations

from typing import Any


def output_size(size: int, kernel: int, stride: int, padding: int, upsample: bool) -> int:
    """Return one side of the output."""
    return ((2 * size if upsample else size) + 2 * padding - kernel) // stride + 1


def _macs(x: Any, x2: Any, weight: Any, c_out: int, pixels: int) -> int:
    c_in = x[1] + (x2[1] if x2 is not None else 0)
    return x[0] * pixels * c_out * c_in * weight[2] * weight[3]


def flops(
    x: Any,
    x2: Any,
    weight: Any,
    bias: Any,
    c_out: int,
    c_in2_offset: int,
    stride: int,
    padding: int,
    upsample: bool,
    *args: Any,
    **kwargs: Any,
) -> int:
    """Return a forward call's FLOPs; a multiply-add of an enlarged image counts as one."""
    height = output_size(x[2], weight[2], stride, padding, upsample)
    width = output_size(x[3], weight[3], stride, padding, upsample)
    return 2 * _macs(x, x2, weight, c_out, height * width)


def flops_grad_x(grad_y: Any, weight: Any, c_in: int, *args: Any, **kwargs: Any) -> int:
    """Return the FLOPs of the gradient of x."""
    return 2 * grad_y[0] * grad_y[2] * grad_y[3] * grad_y[1] * c_in * weight[2] * weight[3]


def flops_grad_weight(
    grad_y: Any,
    x: Any,
    x2: Any,
    c_in2_offset: int,
    stride: int,
    padding: int,
    upsample: bool,
    grad_weight: Any,
    *args: Any,
    **kwargs: Any,
) -> int:
    """Return the FLOPs of the gradient of the weights."""
    return 2 * _macs(x, x2, grad_weight, grad_y[1], grad_y[2] * grad_y[3])
