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


ROW = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64) / 8


def torch_filter(x: Tensor, up: bool, ring: bool = False) -> Tensor:
    """[1, 3, 3, 1] / 8 each way by torch's convolutions of planes, zeros beyond the image."""
    n, c, h, w = x.shape
    kernel, padding = torch.outer(ROW, ROW)[None, None].to(x.dtype), 0 if ring else 1
    planes = x.reshape(n * c, 1, h, w)
    if up:
        y = F.conv_transpose2d(planes, 4 * kernel, stride=2, padding=padding)
    else:
        y = F.conv2d(planes, kernel, stride=2, padding=padding)
    return y.reshape(n, c, *y.shape[2:])


WAYS = [(False, False), (True, False), (False, True)]  # up, ring


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(3, 1, 4, 4), *SHAPES[1:]], ids=str)
@pytest.mark.parametrize(("up", "ring"), WAYS)
def test_the_filter_is_as_exact_as_torch(
    isa: str, dtype: torch.dtype, shape: tuple[int, ...], up: bool, ring: bool
) -> None:
    def plain(x: Tensor, up: bool) -> Tensor:
        return torch_filter(x, up, ring)

    def ours(x: Tensor, up: bool) -> Tensor:
        return resample(x, up, taps=4, ring=ring)

    x = (normal(seeded(shape[1]), *shape) + 2).to(dtype)
    exact = plain(x.double(), up)
    grad = normal(seeded(1), *exact.shape, dtype=dtype)
    with forced_isa(isa):
        y, grad_x = ours(x, up), gradient(ours, x, up, grad)
    assert y.is_contiguous(memory_format=torch.channels_last)
    check_error(y, plain(x, up), exact, FORWARD_RATIO)
    exact_grad = gradient(plain, x.double(), up, grad)
    check_error(grad_x, gradient(plain, x, up, grad), exact_grad, GRADIENT_RATIO)


def test_the_filter_in_closed_form() -> None:
    """In one dimension, of constant columns: 3/4 and 1/4 of neighbours up, 1 3 3 1 down."""
    x = torch.tensor([1.0, 2.0, 4.0, 8.0])[None, None, :, None].expand(1, 1, 4, 4).double()
    inner = slice(1, -1)  # columns that do not see the zeros beyond
    up = resample(x, True, taps=4)[0, 0, :, inner]
    expected = [0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 7.0, 6.0]
    torch.testing.assert_close(up, torch.tensor(expected).double()[:, None].expand(8, 6))
    wide = x.expand(1, 1, 4, 4).repeat(1, 1, 1, 2)
    down = resample(wide, False, taps=4)[0, 0, :, inner]
    torch.testing.assert_close(down, torch.tensor([13 / 8, 38 / 8]).double()[:, None].expand(2, 2))
    ring = resample(wide, False, taps=4, ring=True)
    torch.testing.assert_close(ring, torch.full((1, 1, 1, 3), 27 / 8).double())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("taps", [2, 4])
@pytest.mark.parametrize("up", [False, True])
def test_residual_and_scale(dtype: torch.dtype, taps: int, up: bool) -> None:
    """(filter + residual) * scale, rounded once, whatever the residual's layout."""
    x = normal(seeded(0), 2, 9, 4, 6, dtype=dtype)
    exact = (torch_resample if taps == 2 else torch_filter)(x.double(), up)
    residual = normal(seeded(1), *exact.shape, dtype=dtype)
    exact = (exact + residual.double()) * 0.5**0.5
    rounding = 2e-6 if dtype == torch.float32 else 0.51 * torch.finfo(dtype).eps
    for layout in ("contiguous", "channels_last", "sliced"):
        added = as_layout(residual, layout)
        y = resample(x, up, taps=taps, residual=added, scale=0.5**0.5)
        torch.testing.assert_close(y.double(), exact, rtol=rounding, atol=1e-6)
    same = resample_ref(x.double(), up, taps=taps, residual=residual.double(), scale=0.5**0.5)
    torch.testing.assert_close(same, exact)


@pytest.mark.parametrize(("up", "ring"), WAYS)
def test_gradcheck_of_the_filter_twice(up: bool, ring: bool) -> None:
    x = normal(seeded(0), 2, 3, 4, 6, dtype=torch.float64).requires_grad_()
    residual = normal(seeded(1), *torch_filter(x, up, ring).shape, dtype=torch.float64)
    residual.requires_grad_()

    def call(x: Tensor, residual: Tensor) -> Tensor:
        return resample(x, up, taps=4, ring=ring, residual=residual, scale=0.7).square()

    assert torch.autograd.gradcheck(call, [x, residual])
    assert torch.autograd.gradgradcheck(call, [x, residual])


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
    x = normal(seeded(0), 2, 7, 4, 6).requires_grad_()
    filters = []
    for up, ring in WAYS:
        residual = normal(seeded(1), *torch_filter(x.detach(), up, ring).shape).requires_grad_()
        filters.append((x, up, 0.5, False, 4, ring, residual))
    check_op(torch.ops.ddsm_ext.resample.default, filters)


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
    ("more", "error", "text"),
    [
        ({"taps": 3}, ValueError, "taps is 3; need 2 or 4"),
        ({"taps": 4.0}, TypeError, "taps is 4.0, need an int"),
        ({"ring": True}, ValueError, "ring is True, up False, taps 2; need up=False and taps=4"),
        ({"ring": None}, TypeError, "ring is None, need True or False"),
        ({"scale": "1"}, TypeError, "scale is '1'; need a finite number"),
        ({"scale": float("nan")}, TypeError, "scale is nan; need a finite number"),
        (
            {"residual": torch.zeros(2, 8, 4, 4)},
            ValueError,
            r"residual has shape \[2, 8, 4, 4\]; "
            r"need \[2, 8, 2, 2\]",
        ),
        ({"residual": torch.zeros(2, 8, 2, 2).double()}, TypeError, "residual is torch.float64"),
        ({"residual": 3}, TypeError, "residual is int, need a torch.Tensor"),
    ],
)
def test_refusals_of_filters_and_residuals(more: Any, error: type, text: str) -> None:
    with pytest.raises(error, match=f"^resample: {text}"):
        resample(torch.zeros(2, 8, 4, 4), False, **more)


def test_a_ring_wants_an_image() -> None:
    with pytest.raises(
        ValueError, match=r"x has 0x4 pixels .*; need an even height and width from"
    ):
        resample(torch.zeros(2, 8, 0, 4), False, taps=4, ring=True)
    assert resample(torch.zeros(2, 8, 2, 4), False, taps=4, ring=True).shape == (2, 8, 0, 1)


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
