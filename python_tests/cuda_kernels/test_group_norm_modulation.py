"""Group norms with a scale and a shift for each image, and means of 2x2 pixels of their results."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cuda_kernels import emulated
from cuda_kernels.group_norm_cases import DTYPES, Case, check, check_close


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("channels", "groups"), [((32,), 8), ((33,), 3), ((24, 8), 4), ((40, 3), 1), ((72, 56), 2)]
)
@pytest.mark.parametrize("silu", [False, True])
def test_scale_and_shift_of_each_image(dtype, channels, groups, silu):
    """One source and two, groups over both, rows that are columns of a wider tensor."""
    check(Case(channels, groups, dtype=dtype, silu=silu, modulated=True))


@pytest.mark.parametrize(("height", "width"), [(1, 2), (8, 8), (9, 15), (16, 16)])
def test_scale_and_shift_of_image_sizes(height, width):
    check(Case((9,), 3, n=3, height=height, width=width, dtype=torch.float32, modulated=True))
    case = Case((16, 5), 7, n=1, height=height, width=width, param_dtype=torch.float32,
                modulated=True)  # fmt: skip
    check(case)


@pytest.mark.parametrize("which", [0, 1])
def test_only_one_gradient_of_scale_and_shift(which):
    case = Case((24, 8), 4, dtype=torch.float32, modulated=True)
    exact = case.exact()[4 + which]
    case.forward()
    grads = [None, None]
    grads[which] = torch.full(case.scale.shape, torch.nan)
    case.backward(None, None, None, *grads)
    check_close(grads[which], exact, 1e-5)


def test_gradients_of_scale_and_shift_without_pixels():
    case = Case((8,), 2, height=0, dtype=torch.float32, modulated=True)
    grads = [torch.full(case.scale.shape, torch.nan) for _ in range(2)]
    case.backward(None, None, None, *grads)
    assert all(grad.eq(0).all() for grad in grads)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("channels", "groups"), [((32,), 8), ((7,), 1), ((24, 8), 4), ((72, 56), 2)]
)
@pytest.mark.parametrize(("height", "width"), [(2, 2), (6, 10), (16, 16)])
@pytest.mark.parametrize("modulated", [False, True])
def test_means_of_2x2_pixels(dtype, channels, groups, height, width, modulated):
    """Of the result before it is rounded, from given moments and from its own."""
    case = Case(channels, groups, n=3, height=height, width=width, dtype=dtype,
                modulated=modulated)  # fmt: skip
    exact = F.avg_pool2d(case.exact()[0], 2)
    moments = [case.moments(i, 1) for i in range(len(channels))] + [None]
    for given in ((None, None), tuple(moments[:2])):
        check_close(case.forward(given, down=True), exact, 4e-6)


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("n", [1, 3])
def test_means_by_many_blocks_an_image(silu, n):
    emulated.library().set_multiprocessors(132)
    try:
        for layout in ("channels_last", "sliced"):
            case = Case((40, 24), 4, n=n, height=12, width=22, silu=silu, layout=layout)
            check_close(case.forward(down=True), F.avg_pool2d(case.exact()[0], 2), 4e-6)
    finally:
        emulated.library().set_multiprocessors(4)


@pytest.mark.parametrize(("height", "width"), [(5, 8), (8, 5), (1, 2)])
def test_an_odd_size_has_no_means(height, width):
    with pytest.raises(RuntimeError, match="an odd height or width has no means of 2x2 pixels"):
        Case((8,), 2, height=height, width=width).forward(down=True)
