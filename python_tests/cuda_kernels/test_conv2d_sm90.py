"""The sm_90a convolution kernels on the emulator beside an fp64 reference. No GPU takes part."""

from __future__ import annotations

import pytest
import torch
from cuda_kernels import emulated
from cuda_kernels.test_conv2d import Case, check_rounded, run_forward, run_grad_x

DTYPES = (torch.bfloat16, torch.float16)
TILES = {5: (128, 128), 6: (128, 64), 7: (128, 32)}


@pytest.fixture(autouse=True)
def _hopper():
    emulated.library().set_hopper(1)
    yield
    emulated.library().set_hopper(0)


def hopper(**more: object) -> Case:
    return Case(**{"tile": 6, "splits": 1, **more})


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tile", TILES)
def test_tiles(dtype, tile):
    """Tails of pixels, of output channels and of K in one problem."""
    case = hopper(dtype=dtype, tile=tile, n=3, c=72, c_out=136, height=7, width=7)
    check_rounded(*run_forward(case))
    check_rounded(*run_grad_x(case))
