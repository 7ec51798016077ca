"""resample beside PyTorch's nearest interpolation and average pooling, forward and backward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from ops.op_checks import (
    FORWARD_RATIO,
    GRADIENT_RATIO,
    ISAS,
    as_layout,
    check_error,
    check_op,
    check_repeatable,
    compiled_graphs,
    forced_isa,
    normal,
    seeded,
    threads,
)
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ddsm_ext.ops import resample, resample_ref

DTYPES = [torch.float32, torch.bfloat16]
SHAPES = [(3, 1, 2, 4), (2, 8, 6, 4), (2, 59, 8, 10), (1, 128, 16, 16)]


def torch_resample(x: Tensor, up: bool) -> Tensor:
    if up:
        return F.interpolate(x, scale_factor=2, mode="nearest")
    return F.avg_pool2d(x, 2)


def gradient(op: Any, x: Tensor, up: bool, grad: Tensor) -> Tensor:
    x = x.detach().clone().requires_grad_()
    return torch.autograd.grad(op(x, up), x, grad.to(x.dtype))[0]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("up", [False, True])
def test_as_exact_as_torch(isa: str, dtype: torch.dtype, shape: tuple[int, ...], up: bool) -> None:
    x = (normal(seeded(shape[1]), *shape) + 2).to(dtype)
    exact = torch_resample(x.double(), up)
    grad = normal(seeded(1), *exact.shape, dtype=dtype)
    with forced_isa(isa):
        ours = resample(x, up)
        grad_x = gradient(resample, x, up, grad)
    assert ours.is_contiguous(memory_format=torch.channels_last)
    check_error(ours, torch_resample(x, up), exact, FORWARD_RATIO)
    exact_grad = gradient(torch_resample, x.double(), up, grad)
    check_error(grad_x, gradient(torch_resample, x, up, grad), exact_grad, GRADIENT_RATIO)


@pytest.mark.parametrize("up", [False, True])
def test_gradcheck_twice(up: bool) -> None:
    x = normal(seeded(0), 2, 3, 4, 2, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: resample(x, up).square(), [x])
    assert torch.autograd.gradgradcheck(lambda x: resample(x, up).square(), [x])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("up", [False, True])
@pytest.mark.parametrize("c", [1, 8, 59])
def test_memory_format_does_not_change_a_bit(dtype: torch.dtype, up: bool, c: int) -> None:
    x = normal(seeded(0), 2, c, 6, 4, dtype=dtype)
    first = resample(x, up)
    for layout in ("channels_last", "sliced"):
        assert torch.equal(resample(as_layout(x, layout), up), first)
    expanded = x[:, :, :, :1].expand(-1, -1, -1, 4)
    assert torch.equal(resample(expanded, up), resample(expanded.contiguous(), up))


def test_reference_equals_the_kernel() -> None:
    x = normal(seeded(0), 2, 9, 4, 6)
    for up in (False, True):
        torch.testing.assert_close(resample(x, up), resample_ref(x, up))


@pytest.mark.parametrize("shape", [(0, 8, 4, 4), (2, 8, 0, 4), (2, 0, 4, 4)])
@pytest.mark.parametrize("op", [resample, resample_ref])
def test_empty_input_gives_empty_output(op: Any, shape: tuple[int, ...]) -> None:
    n, c, h, w = shape
    x = torch.zeros(shape, requires_grad=True)
    for up, size in ((True, (2 * h, 2 * w)), (False, (h // 2, w // 2))):
        y = op(x, up)
        assert y.shape == (n, c, *size)
        y.sum().backward()
        assert x.grad is not None
        assert x.grad.shape == shape


@pytest.mark.filterwarnings("ignore:ddsm_ext. resample has no")
def test_other_dtypes_run_plain_torch() -> None:
    x = normal(seeded(0), 2, 4, 4, 4).to(torch.float16)
    for up in (False, True):
        y = resample(x, up)
        assert y.dtype == torch.float16
        torch.testing.assert_close(y.double(), torch_resample(x.double(), up), rtol=1e-3, atol=1e-3)


def test_autocast_keeps_the_dtype() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for dtype in DTYPES:
            assert resample(torch.ones(1, 2, 4, 4, dtype=dtype), False).dtype == dtype


def test_opcheck() -> None:
    samples = [
        (as_layout(normal(seeded(0), 2, 7, 4, 6, dtype=dtype), layout).requires_grad_(), up, gain)
        for dtype in DTYPES
        for layout in ("contiguous", "channels_last", "sliced")
        for up, gain in ((True, 1.0), (False, 0.5))
    ]
    check_op(torch.ops.ddsm_ext.resample.default, samples)


def test_eleven_widths_compile_to_two_graphs() -> None:
    calls = [(normal(seeded(c), 2, c, 4, 4).requires_grad_(),) for c in range(8, 96, 8)]
    for up in (False, True):
        assert compiled_graphs(lambda x, up=up: resample(x, up), calls, backward=True) <= 2


def test_repeatable() -> None:
    x = normal(seeded(0), 3, 40, 16, 16).requires_grad_()

    def backward() -> list[Tensor]:
        results = []
        for up in (False, True):
            y = resample(x, up)
            results += [y, torch.autograd.grad(y.square().sum(), x)[0]]
        return results

    for count in (1, 2):
        with threads(count):
            check_repeatable(backward, 20)


def test_counts_no_flops() -> None:
    with FlopCounterMode(display=False) as counter:
        resample(torch.ones(1, 8, 4, 4), True)
    assert counter.get_total_flops() == 0


@pytest.mark.parametrize(
    ("x", "up", "error", "text"),
    [
        (None, True, TypeError, "x is NoneType, need a torch.Tensor"),
        (torch.zeros(2, 8, 4), True, ValueError, r"x has shape \[2, 8, 4\], need 4 dimensions"),
        (torch.zeros(2, 8, 4, 4, dtype=torch.int32), True, TypeError, "x has dtype torch.int32"),
        (torch.zeros(2, 8, 4, 4), 1, TypeError, "up is 1, need True or False"),
        (torch.zeros(2, 8, 5, 4), False, ValueError, "x has 5x4 pixels .*; need an even height"),
        (torch.zeros(2, 8, 4, 3), False, ValueError, "x has 4x3 pixels"),
    ],
)
def test_refusals_name_the_values(x: Any, up: Any, error: type, text: str) -> None:
    with pytest.raises(error, match=f"^resample: {text}"):
        resample(x, up)
