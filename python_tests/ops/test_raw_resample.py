"""The raw resample op: values both ways, layouts, refusals."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from ops.op_checks import (
    FORWARD_RATIO,
    ISAS,
    as_layout,
    check_error,
    forced_isa,
    normal,
    seeded,
    threads,
)
from torch import Tensor

RESAMPLE = torch.ops.ddsm_ext.resample
DTYPES = [torch.float32, torch.bfloat16, torch.float64]
CHANNELS = [1, 2, 3, 8, 17, 64, 133]


def plain(x: Tensor, up: bool, gain: float = 1.0) -> Tensor:
    """PyTorch's own calls, in x's dtype."""
    y = F.interpolate(x, scale_factor=2, mode="nearest") if up else F.avg_pool2d(x, 2)
    return y * gain


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("c", CHANNELS)
@pytest.mark.parametrize("up", [False, True])
@pytest.mark.parametrize("gain", [1.0, 0.3])
def test_values(isa: str, dtype: torch.dtype, c: int, up: bool, gain: float):
    x = normal(seeded(c), 3, c, 6, 10, dtype=dtype)
    with forced_isa(isa):
        y = RESAMPLE(x, up, gain)
    assert y.is_contiguous(memory_format=torch.channels_last)
    check_error(y, plain(x, up, gain), plain(x.double(), up, gain), FORWARD_RATIO)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize("up", [False, True])
def test_layouts(layout: str, up: bool):
    x = normal(seeded(1), 2, 5, 4, 8)
    expected = RESAMPLE(x, up)
    assert torch.equal(RESAMPLE(as_layout(x, layout), up), expected)
    wide = torch.full((2, 5, 9, 9), torch.nan)
    wide[:, :, 1:5, :8] = x
    assert torch.equal(RESAMPLE(wide[:, :, 1:5, :8], up), expected)
    flipped = RESAMPLE(x.transpose(2, 3), up)  # adds the pixels in another order
    torch.testing.assert_close(flipped, expected.transpose(2, 3))
    expanded = x[:1].expand(3, -1, -1, -1)
    assert torch.equal(RESAMPLE(expanded, up), expected[:1].expand(3, -1, -1, -1))


@pytest.mark.parametrize("up", [False, True])
def test_threads_agree(up: bool):
    x = normal(seeded(2), 4, 64, 32, 32)
    with threads(1):
        expected = RESAMPLE(x, up)
    with threads(3):
        assert torch.equal(RESAMPLE(x, up), expected)


@pytest.mark.parametrize("up", [False, True])
def test_the_other_way_is_the_gradient(up: bool):
    """<y, resample(x)> = <gradient(y), x> with the gain that the gradient has by definition."""
    gain = 0.7
    x = normal(seeded(3), 2, 3, 4, 6, dtype=torch.float64)
    y = normal(seeded(4), *RESAMPLE(x, up, gain).shape, dtype=torch.float64)
    gradient = RESAMPLE(y, not up, 4 * gain if up else gain / 4)
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(plain(leaf, up, gain), leaf, y)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("up", [False, True])
@pytest.mark.parametrize("ring", [False, True])
def test_the_other_way_is_the_gradient_of_the_filter(up: bool, ring: bool):
    """<y, filter(x)> = <gradient(y), x> for every y and x: no other code is asked."""
    x = normal(seeded(3), 2, 3, 4, 6, dtype=torch.float64)
    y = RESAMPLE(x, up, 0.7, False, 4, ring)
    other = normal(seeded(4), *y.shape, dtype=torch.float64)
    gradient = RESAMPLE(other, not up, 4 * 0.7 if up else 0.7 / 4, False, 4, ring)
    assert gradient.shape == x.shape
    torch.testing.assert_close((y * other).sum(), (gradient * x).sum(), rtol=1e-13, atol=0)


def test_refusals_of_the_filter():
    x = torch.ones(1, 2, 4, 4)
    for arguments, text in (
        ((3, False, None), "taps is 3; need 2 or 4"),
        ((2, True, None), "ring is True beside 2 taps; need 4"),
        ((4, False, x), r"residual is not of the result's shape \[1, 2, 2, 2\]"),
        ((4, False, x[:, :, :2, :2].double()), "residual is not of the result's shape"),
    ):
        with pytest.raises(RuntimeError, match=f"resample: {text}"):
            RESAMPLE(x, False, 1.0, False, *arguments)
    with pytest.raises(RuntimeError, match="resample: x has 0x4 pixels; need a ring around them"):
        RESAMPLE(torch.ones(1, 2, 0, 4), False, 1.0, False, 4, True)


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 0, 4), (2, 3, 4, 0)])
@pytest.mark.parametrize("up", [False, True])
def test_empty(shape: tuple[int, ...], up: bool):
    n, c, h, w = shape
    expected = (n, c, 2 * h, 2 * w) if up else (n, c, h // 2, w // 2)
    assert RESAMPLE(torch.empty(shape), up).shape == expected


def test_refusals():
    for shape in ((1, 2, 3, 4), (1, 2, 4, 3)):
        with pytest.raises(RuntimeError, match=r"resample: x has .* pixels; need an even"):
            RESAMPLE(torch.ones(shape), False)
        assert RESAMPLE(torch.ones(shape), True).shape[2] == 2 * shape[2]
    with pytest.raises(RuntimeError, match="resample: x has 3 dimensions; need 4"):
        RESAMPLE(torch.ones(2, 4, 4), True)
    with pytest.raises(RuntimeError, match="resample: x is float16; the CPU kernel needs"):
        RESAMPLE(torch.ones(1, 2, 4, 4).half(), True)
    with pytest.raises(RuntimeError, match="dtype is not one of"):
        RESAMPLE(torch.ones(1, 2, 4, 4, dtype=torch.int32), True)
