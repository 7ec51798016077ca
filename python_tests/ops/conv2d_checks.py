"""sliced_conv2d beside F.conv2d and an fp64 reference: outputs and gradients of one case."""

from __future__ import annotations

import torch
from ops import op_checks
from ops.op_checks import FORWARD_RATIO, GRADIENT_RATIO, normal
from torch import Tensor

from ddsm_ext.ops.conv2d import sliced_conv2d, sliced_conv2d_ref


def parameters(
    generator: torch.Generator, c_out: int, c_in: int, kernel: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    weight = normal(generator, c_out, c_in, kernel, kernel) * (c_in * kernel**2) ** -0.5
    return weight.to(dtype), normal(generator, c_out, dtype=dtype)


def exact_and_torch(
    tensors: tuple[Tensor | None, ...], c_out: int, grad_y: Tensor | None, **options: object
) -> tuple[list[Tensor], list[Tensor]]:
    """Output and gradients of the plain-torch reference in fp64, and in the tensors' dtype."""
    results = []
    for dtype in (torch.float64, None):
        leaves = [
            None if t is None else t.detach().to(dtype or t.dtype).requires_grad_() for t in tensors
        ]
        x, x2, weight, bias = leaves
        y = sliced_conv2d_ref(x, weight, bias, c_out, x2=x2, **options)
        result = [y.detach()]
        if grad_y is not None:
            result += torch.autograd.grad(y, [t for t in leaves if t is not None], grad_y.to(y))
        results.append(result)
    return results[0], results[1]


def ours(
    tensors: tuple[Tensor | None, ...], c_out: int, grad_y: Tensor | None, **options: object
) -> list[Tensor]:
    leaves = [None if t is None else t.detach().requires_grad_() for t in tensors]
    x, x2, weight, bias = leaves
    y = sliced_conv2d(x, weight, bias, c_out, x2=x2, **options)
    result = [y.detach()]
    if grad_y is not None:
        result += torch.autograd.grad(y, [t for t in leaves if t is not None], grad_y)
    return result


def check_results(mine: list[Tensor], torchs: list[Tensor], exact: list[Tensor]) -> None:
    for index, result in enumerate(zip(mine, torchs, exact, strict=True)):
        op_checks.check_error(*result, GRADIENT_RATIO if index else FORWARD_RATIO)


def check_case(
    tensors: tuple[Tensor | None, ...], c_out: int, generator: torch.Generator, **options: object
) -> None:
    shape = sliced_conv2d_ref(tensors[0], tensors[2], None, c_out, x2=tensors[1], **options).shape
    grad_y = normal(generator, *shape, dtype=tensors[0].dtype)
    exact, torchs = exact_and_torch(tensors, c_out, grad_y, **options)
    check_results(ours(tensors, c_out, grad_y, **options), torchs, exact)
