"""Layers of a plan times a factor, behind a filter of 4 taps, around the image; see test_layers."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from ops.op_checks import ISAS, forced_isa, normal, seeded
from runtime.test_layers import DTYPES, EPS, Block, N, Steps, check
from torch import Tensor

from ddsm_ext.ops._packed import ALGORITHMS
from ddsm_ext.runtime.operands import ConvWeight

FACTOR = 0.5**0.5
ROW = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64) / 8


def filtered(x: Tensor, way: str, padding: int = 1) -> Tensor:
    """[1, 3, 3, 1] / 8 in each direction, by torch."""
    c = x.shape[1]
    kernel = torch.outer(ROW, ROW).expand(c, 1, 4, 4)
    if way == "up":
        return F.conv_transpose2d(x, 4 * kernel, stride=2, padding=padding, groups=c)
    return F.conv2d(x, kernel, stride=2, padding=padding, groups=c)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("algorithm", ["direct", "winograd_2x2", "winograd_4x4"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_all_times_a_factor(isa: str, algorithm: str, dtype: torch.dtype) -> None:
    """Of the sum with shift and residual, whole vectors or not; the moments are of the product."""
    for (c, c2, size), c_out in itertools.product([(40, 23, 12), (3, 0, 5)], (5, 8, 24)):
        block = Block(dtype, c, c2, size)
        steps = Steps(dtype, choose=lambda *_: ALGORITHMS.index(algorithm))
        residual = normal(seeded(6), N, c_out, size, size, dtype=dtype)
        shift = normal(seeded(5), N, c_out)
        with forced_isa(isa):
            sources = block.sources(steps)
            y = steps.layers.conv2d(
                sources, block.conv(3), c_out, norm=block.norm(steps, sources, film=True),
                shift=steps.rows(shift), residual=steps.image(residual), scale=FACTOR,
                moments=True,
            )  # fmt: skip
            after = steps.layers.norm((y,), torch.ones(c_out), torch.zeros(c_out), 1)
            normed = steps.layers.joined((y,), after, torch.float32)
            ours = steps.run(normed)
        exact = block.convolved(block.normed(film=True), 3, c_out) + residual.double()
        exact = (exact + shift.double()[:, :, None, None]) * FACTOR
        of_y = torch.group_norm(exact, 1, None, None, EPS)
        check(ours.view(N, size, size, c_out).permute(0, 3, 1, 2).to(dtype), of_y)


@pytest.mark.parametrize("algorithm", ["direct", "winograd_2x2", "winograd_4x4"])
@pytest.mark.parametrize("way", ["up", "down"])
def test_a_filter_before_a_convolution(algorithm: str, way: str) -> None:
    """Two sources, which a norm goes over first, and one without a norm."""
    for dtype, (c, c2) in itertools.product(DTYPES, ((40, 23), (33, 0))):
        block = Block(dtype, c, c2)
        for normed in (True, False):
            steps = Steps(dtype, choose=lambda *_: ALGORITHMS.index(algorithm))
            sources = block.sources(steps)
            norm = block.norm(steps, sources, film=True) if normed else None
            weight = torch.nn.Parameter(block.weights[3], requires_grad=False)
            conv = ConvWeight((weight,), (block.bias,), 1, way, 48, taps=4)
            y = steps.layers.conv2d(sources, conv, 24, norm=norm)
            before = block.normed(film=True) if normed else block.z.double()
            check(steps.run(y), block.convolved(filtered(before, way), 3))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("algorithm", ["direct", "winograd_2x2", "winograd_4x4"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_ring_and_the_filter_behind_it(isa: str, algorithm: str, dtype: torch.dtype) -> None:
    """(residual + filter(conv)) * factor, where the convolution counts beyond the image, too."""
    for c, size in ((3, 8), (24, 6)):
        block = Block(dtype, c, 0, size)
        steps = Steps(dtype, choose=lambda *_: ALGORITHMS.index(algorithm))
        residual = normal(seeded(6), N, 24, size // 2, size // 2, dtype=dtype)
        weight = torch.nn.Parameter(block.weights[3], requires_grad=False)
        with forced_isa(isa):
            ring = steps.layers.conv2d(
                block.sources(steps), ConvWeight((weight,), (block.bias,), ring=True), 24
            )
            assert (ring.height, ring.width) == (size + 2, size + 2)
            y = steps.layers.resample(
                ring, up=False, taps=4, ring=True, residual=steps.image(residual), scale=FACTOR
            )
            ours = steps.run(y)
        exact = F.conv2d(
            block.z.double(), block.weights[3][:24, :c].double(), block.bias[:24].double(),
            padding=2,
        )  # fmt: skip
        check(ours, (filtered(exact, "down", 0) + residual.double()) * FACTOR)


def test_a_residual_of_another_size_is_refused() -> None:
    steps = Steps()
    x = steps.image(torch.zeros(N, 8, 6, 6))
    with pytest.raises(ValueError, match=r"resample: the residual has 6x6 pixels; need 3x3"):
        steps.layers.resample(x, up=False, residual=x)
