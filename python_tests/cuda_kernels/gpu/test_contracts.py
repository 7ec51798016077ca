"""The ops as PyTorch sees them on the device: opcheck, and torch.compile without breaks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from cuda_kernels.gpu.device import DEVICE, needs_device
from cuda_kernels.gpu.layer_calls import normal
from ops import op_checks
from ops.product_samples import Samples, conv2d_samples, linear_samples
from torch import Tensor

from ddsm_ext.ops import (
    sliced_attention,
    sliced_conv2d,
    sliced_group_norm,
    sliced_layer_norm,
    sliced_linear,
)
from ddsm_ext.ops._call import runs_native

pytestmark = needs_device


def moved(arguments: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(
        a.detach().to(DEVICE).requires_grad_(a.requires_grad) if isinstance(a, Tensor) else a
        for a in arguments
    )


@pytest.mark.parametrize("make", [conv2d_samples, linear_samples])
def test_opcheck_of_products(make: Callable[[], Samples]) -> None:
    op_checks.check_ops({op: list(map(moved, calls[1::3])) for op, calls in make().items()})


def test_opcheck_of_group_norm() -> None:
    for two in (False, True):
        x = normal(2, 8, 5, 4, dtype=torch.bfloat16)
        x2 = normal(2, 4, 5, 4, dtype=torch.bfloat16) if two else None
        parameters = [normal(16, dtype=torch.bfloat16).requires_grad_() for _ in range(2)]
        arguments = (x, x2, *parameters, 4, 8, 1e-5, True)
        op_checks.check_ops({"sliced_group_norm": [arguments]})


def test_opcheck_of_layer_norm() -> None:
    x = normal(2, 5, 8, dtype=torch.bfloat16)
    parameters = [normal(16, dtype=torch.bfloat16).requires_grad_() for _ in range(2)]
    film = [normal(2, 8, dtype=torch.bfloat16).requires_grad_() for _ in range(2)]
    calls = [(x, *parameters, 1e-5, *film), (x, None, None, 1e-5, None, None)]
    op_checks.check_ops({"sliced_layer_norm": calls})


def test_opcheck_of_attention() -> None:
    q, k, v = (normal(2, 1, 16, 32, dtype=torch.bfloat16).requires_grad_() for _ in range(3))
    if not runs_native("sliced_attention", q, needs_grad=True):
        pytest.skip(f"no kernel of attention on {DEVICE}")
    op_checks.check_ops({"sliced_attention": [(q, k, v, None)]})


def leaf(*size: int) -> Tensor:
    return normal(*size, dtype=torch.float32).requires_grad_()


def test_conv2d_compiles_for_all_widths() -> None:
    weight, bias, skip = leaf(44, 60, 3, 3), leaf(44), leaf(2, 16, 6, 5).detach()

    def layer(x: Tensor, weight: Tensor, bias: Tensor, c_out: int) -> Tensor:
        return sliced_conv2d(x, weight, bias, c_out, padding=1, x2=skip, c_in2_offset=44)

    calls = [(leaf(2, 4 * n, 6, 5), weight, bias, 48 - 4 * n) for n in range(1, 12)]
    assert op_checks.compiled_graphs(layer, calls, backward=True) <= 2


def test_linear_compiles_for_all_widths() -> None:
    weight, bias = leaf(44, 44), leaf(44)
    calls = [(leaf(6, 4 * n), weight, bias, 48 - 4 * n) for n in range(1, 12)]
    assert op_checks.compiled_graphs(sliced_linear, calls, backward=True) <= 2


def test_group_norm_compiles_for_all_widths() -> None:
    weight, bias = leaf(96), leaf(96)

    def layer(x: Tensor, weight: Tensor, bias: Tensor, groups: int) -> Tensor:
        return sliced_group_norm(x, weight, bias, groups, silu=True)

    calls = [(leaf(2, c, 4, 4), weight, bias, c // 4) for c in range(8, 96, 8)]
    assert op_checks.compiled_graphs(layer, calls, backward=True) <= 2


def test_layer_norm_compiles_for_all_widths() -> None:
    calls = [(leaf(2, 6, c), leaf(96), leaf(96)) for c in range(8, 96, 8)]
    assert op_checks.compiled_graphs(sliced_layer_norm, calls, backward=True) <= 2


def test_attention_compiles_for_all_head_sizes() -> None:
    calls = [tuple(leaf(2, 1, 16, d) for _ in range(3)) for d in range(8, 96, 8)]
    if not runs_native("sliced_attention", calls[0][0], needs_grad=True):
        pytest.skip(f"no kernel of attention on {DEVICE}")
    assert op_checks.compiled_graphs(sliced_attention, calls, backward=True) <= 2
