"""sliced_conv2d with one more row and column of zeros at the end of the image."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from ops import op_checks
from ops.conv2d_checks import check_case, check_results, exact_and_torch, ours, parameters
from ops.op_checks import ISAS, normal, seeded

from ddsm_ext.ops.conv2d import sliced_conv2d, sliced_conv2d_ref

DTYPES = (torch.float32, torch.bfloat16, torch.float64)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_zeros_at_the_end(isa, dtype):
    """Alone, or one more than before the image; of odd and even sizes."""
    generator, results = seeded(16), []
    for kernel, padding, stride in itertools.product((2, 3), (0, 1), (1, 2)):
        weight, bias = parameters(generator, 40, 40, kernel, dtype)
        x, x2 = (normal(generator, 2, c, 7, 6, dtype=dtype) for c in (19, 9))
        options = {"stride": stride, "padding": padding, "c_in2_offset": 27, "pad_end": True}
        shape = sliced_conv2d_ref(x, weight, None, 33, x2=x2, **options).shape
        arguments = (x, x2, weight, bias), 33, normal(generator, *shape, dtype=dtype)
        exact, torchs = exact_and_torch(*arguments, **options)
        with op_checks.forced_isa(isa):
            results.append((ours(*arguments, **options), torchs, exact))
            if dtype == torch.float64:
                check_case((x, x2, weight, bias), 33, generator, upsample=True, **options)
    check_results(*(op_checks.pooled(cases) for cases in zip(*results, strict=True)))


def test_zeros_at_the_end_alone_at_stride_2():
    """As diffusers' UNet2DModel(downsample_padding=0) halves an image."""
    generator = seeded(17)
    weight, bias = parameters(generator, 24, 20, 3, torch.float64)
    x = normal(generator, 2, 11, 8, 6, dtype=torch.float64)
    y = sliced_conv2d(x, weight, bias, 13, stride=2, pad_end=True)
    exact = F.conv2d(F.pad(x, (0, 1, 0, 1)), weight[:13, :11], bias[:13], stride=2)
    assert y.shape == (2, 13, 4, 3)
    torch.testing.assert_close(y, exact, rtol=1e-12, atol=1e-12)
