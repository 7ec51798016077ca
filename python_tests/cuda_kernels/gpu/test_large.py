"""Tensors of more than 2^31 elements: right at the far end, or refused by name."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cuda_kernels.gpu.device import needs_gpu
from cuda_kernels.gpu.layer_calls import OURS, REFERENCE, call, leaves_of
from torch import Tensor

from ddsm_ext.graph.shapes import AttentionShape, ConvShape, LinearShape, NormShape, Shape

FREE_BYTES = 40 * 2**30
pytestmark = needs_gpu
# shape, and so many images that the input has more than 2^31 elements
CASES = (
    (ConvShape(64, 0, 64, 64, 64, 3, 1, False, 256), 520),
    (LinearShape(64, 64, 64, 64), 2**25 + 300),
    (NormShape(64, 0, 64, 32, 256, True), 520),
    (AttentionShape(1, 1024, 256), 8200),
)


def right_or_refused(run: Callable[[], Tensor]) -> Tensor | None:
    try:
        return run()
    except RuntimeError as error:
        if "2^31" not in str(error):
            raise
        return None


@pytest.mark.parametrize(("shape", "images"), CASES, ids=str)
def test_the_far_end_is_right_or_refused(shape: Shape, images: int) -> None:
    torch.cuda.empty_cache()
    if torch.cuda.mem_get_info()[0] < FREE_BYTES:
        pytest.skip(f"less than {FREE_BYTES // 2**30} GiB of the GPU are free")
    torch.manual_seed(0)
    leaves = leaves_of(shape, images, torch.bfloat16, torch.channels_last)
    assert leaves[0].numel() > 2**31
    sources = 3 if isinstance(shape, AttentionShape) else 1
    with torch.no_grad():
        y = right_or_refused(lambda: call(OURS, shape, leaves))
        if y is None:
            return
        for part in (slice(0, 2), slice(images // 2, images // 2 + 2), slice(images - 2, images)):
            exact_leaves = [t[part].double() for t in leaves[:sources]]
            exact_leaves += [t.double() for t in leaves[sources:]]
            exact = call(REFERENCE, shape, exact_leaves)
            error = float((y[part].double() - exact).abs().max() / exact.abs().max())
            assert error <= torch.finfo(torch.bfloat16).eps, f"images {part}: {error:.2g}"
