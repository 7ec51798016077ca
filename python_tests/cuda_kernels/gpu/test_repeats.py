"""The same inputs give the same bits: 250 forward calls, 50 with gradients."""

from __future__ import annotations

import pytest
import torch
from cuda_kernels.gpu.device import needs_device
from cuda_kernels.gpu.layer_calls import OURS, call, leaves_of, results

from ddsm_ext.graph.shapes import AttentionShape, ConvShape, LinearShape, NormShape, Shape

pytestmark = needs_device
SHAPES = (
    ConvShape(256, 256, 256, 512, 256, 3, 1, False, 4),
    ConvShape(59, 0, 43, 128, 128, 3, 1, False, 16),
    ConvShape(128, 0, 128, 256, 256, 3, 2, False, 8),
    LinearShape(512, 256, 512, 512),
    NormShape(64, 32, 128, 32, 16, True),
    AttentionShape(1, 256, 128),
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bits_repeat(shape: Shape, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    leaves = leaves_of(shape, 2, dtype, torch.channels_last)
    with torch.no_grad():
        first = call(OURS, shape, leaves)
        assert all(call(OURS, shape, leaves).equal(first) for _ in range(249))
    expected = results(OURS, shape, leaves)
    for _ in range(49):
        again = results(OURS, shape, leaves)
        assert all(a.equal(b) for a, b in zip(again, expected, strict=True))
