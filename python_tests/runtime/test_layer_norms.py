"""Layer norms of a plan beside PyTorch in float64; see test_layers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from ops.op_checks import ISAS, forced_isa, normal, seeded
from runtime.test_layers import C_MAX, DTYPES, EPS, N, Steps, check
from torch import Tensor

from ddsm_ext.runtime.operands import ConvWeight


def exact_norm(
    x: Tensor, affine: tuple[Tensor | None, ...], film: tuple[Tensor | None, ...]
) -> Tensor:
    """Of the channels of each pixel of x [N, c, H, W]."""
    c = x.shape[1]
    gamma, beta = (None if p is None else p[:c].double() for p in affine)
    y = F.layer_norm(x.double().permute(0, 2, 3, 1), (c,), gamma, beta, EPS).permute(0, 3, 1, 2)
    scale, shift = film
    if scale is None or shift is None:
        return y
    return y * (1 + scale.double()[:, :, None, None]) + shift.double()[:, :, None, None]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("c", [3, 40, 59])
def test_values(isa: str, dtype: torch.dtype, c: int) -> None:
    """With and without parameters of either type, and float32 scale and shift of each image."""
    generator = seeded(c)
    x = (normal(generator, N, c, 5, 6) * 2 + 3).to(dtype)
    film = tuple(normal(generator, N, c) for _ in "st")
    for params in (None, torch.float32, dtype):
        affine = (None, None)
        if params is not None:
            affine = tuple(normal(generator, C_MAX, dtype=params) for _ in "wb")
        for modulation in ((None, None), film):
            steps = Steps(dtype)
            scale, shift = (None if t is None else steps.rows(t) for t in modulation)
            with forced_isa(isa):
                y = steps.layers.layer_norm(
                    steps.image(x), *affine, eps=EPS, scale=scale, shift=shift
                )
                assert y.moments is None
                check(steps.run(y), exact_norm(x, affine, modulation))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_between_convolutions(dtype: torch.dtype) -> None:
    """A transformer's: h + conv(norm(h)), whose sum a group norm goes over next."""
    generator = seeded(1)
    h = normal(generator, N, 24, 4, 6, dtype=dtype)
    gamma, beta = normal(generator, C_MAX), normal(generator, C_MAX)
    weight = torch.nn.Parameter(normal(generator, 40, C_MAX, 1, 1) / 5, requires_grad=False)
    bias = normal(generator, 40)
    steps = Steps(dtype)
    source = steps.image(h)
    normed = steps.layers.layer_norm(source, gamma, beta, eps=EPS)
    conv = ConvWeight((weight,), (bias,))
    y = steps.layers.conv2d((normed,), conv, 24, residual=source, moments=True)
    after = steps.layers.norm((y,), gamma, beta, 3)
    out = steps.run(steps.layers.joined((y,), after, torch.float32)).view(N, 4, 6, 24)
    exact = exact_norm(h, (gamma, beta), (None, None)).to(dtype).double()
    exact = F.conv2d(exact, weight[:24, :24].double(), bias[:24].double()) + h.double()
    exact = torch.group_norm(exact, 3, gamma[:24].double(), beta[:24].double(), EPS)
    check(out.permute(0, 3, 1, 2).to(dtype), exact)
