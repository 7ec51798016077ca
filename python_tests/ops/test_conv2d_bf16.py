"""sliced_conv2d by products of bfloat16: exactness, halved pairs, where it does not apply."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from ops import op_checks
from ops.op_checks import normal, seeded
from torch import Tensor, nn

from ddsm_ext import _library
from ddsm_ext.ops._packed import DIRECT_BF16
from ddsm_ext.ops.conv2d import sliced_conv2d

ALGO = "direct_bf16"
C_MAX = 75  # odd, so that the last pair of a tap is half empty
HERE = _library.native.conv2d_has(DIRECT_BF16)
needs_products = pytest.mark.skipif(not HERE, reason="this CPU has no bfloat16 products")


def case(generator: torch.Generator, c_in: int, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """An input of 9x7 pixels, weight and bias."""
    x = normal(generator, 2, c_in, 9, 7, dtype=torch.bfloat16)
    weight = normal(generator, C_MAX, C_MAX, k, k) * (k * k * c_in) ** -0.5
    return x, weight.bfloat16(), normal(generator, C_MAX, dtype=torch.bfloat16)


def check(x: Tensor, w: Tensor, b: Tensor, c_out: int, *, x2=None, offset=None, stride=1) -> None:
    """Beside PyTorch in bfloat16, both against fp64 on the same numbers."""
    padding = w.shape[2] // 2
    y = sliced_conv2d(
        x, w, b, c_out, x2=x2, c_in2_offset=offset, stride=stride, padding=padding, algo=ALGO
    )
    joined, sliced = x, w[:c_out, : x.shape[1]]
    if x2 is not None:
        joined = torch.cat([x, x2], dim=1)
        sliced = torch.cat([sliced, w[:c_out, offset : offset + x2.shape[1]]], dim=1)
    torchs, exact = (
        F.conv2d(joined.to(t), sliced.to(t), b[:c_out].to(t), stride=stride, padding=padding)
        for t in (torch.bfloat16, torch.float64)
    )
    op_checks.check_error(y, torchs, exact, op_checks.FORWARD_RATIO)


@needs_products
@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_channel_counts(k, stride):
    generator = seeded(1)
    for c_in, c_out in itertools.product((1, 2, 17, 32, C_MAX), (1, 17, 40, C_MAX)):
        check(*case(generator, c_in, k), c_out, stride=stride)


@needs_products
@pytest.mark.parametrize(("c", "c2"), [(20, 12), (20, 13), (19, 12), (1, 1)])
@pytest.mark.parametrize("offset", [20, 27])
def test_two_sources(c, c2, offset):
    """The second source may begin and end in the middle of a pair of the weight's channels."""
    generator = seeded(2)
    x, weight, bias = case(generator, c, 3)
    x2 = normal(generator, 2, c2, 9, 7, dtype=torch.bfloat16)
    check(x, weight, bias, 33, x2=x2, offset=offset)


@needs_products
def test_deep_sums_are_cut():
    generator = seeded(3)
    x = normal(generator, 1, 383, 8, 8, dtype=torch.bfloat16)
    weight = (normal(generator, 40, 385, 3, 3) * (9 * 383) ** -0.5).bfloat16()
    check(x, weight, normal(generator, 40, dtype=torch.bfloat16), 33)


@needs_products
@pytest.mark.parametrize("c_in", [18, 19])
def test_poison_beyond_the_slice(c_in):
    generator = seeded(4)
    x, weight, bias = case(generator, c_in, 3)
    expected = sliced_conv2d(x, weight, bias, 21, padding=1, algo=ALGO)
    poisoned = op_checks.poisoned(weight, slice(21), slice(c_in))
    poisoned_bias = op_checks.poisoned(bias, slice(21))
    wide = op_checks.as_layout(x, "sliced")  # its neighbours in memory are NaN
    assert torch.equal(sliced_conv2d(wide, poisoned, poisoned_bias, 21, padding=1, algo=ALGO),
                       expected)  # fmt: skip


@needs_products
def test_repeatable_on_any_thread_count():
    generator = seeded(5)
    x, weight, bias = case(generator, 40, 3)

    def call() -> list[Tensor]:
        return [sliced_conv2d(x, weight, bias, 40, padding=1, algo=ALGO)]

    with op_checks.threads(2):
        op_checks.check_repeatable(call, 250)
        two = call()
    with op_checks.threads(1):
        assert torch.equal(call()[0], two[0])


@needs_products
def test_gradients_are_those_of_the_direct_algorithm():
    generator = seeded(6)
    x, weight, bias = (t.requires_grad_() for t in case(generator, 19, 3))
    grad = normal(generator, 2, 21, 9, 7, dtype=torch.bfloat16)
    grads = [
        torch.autograd.grad(
            sliced_conv2d(x, weight, bias, 21, padding=1, algo=algo), (x, weight, bias), grad
        )
        for algo in (ALGO, "direct")
    ]
    for got, expected in zip(*grads, strict=True):
        assert torch.equal(got, expected)


@needs_products
def test_chosen_for_parameters_and_made_again_when_they_change():
    generator = seeded(7)
    x, weight, bias = case(generator, 64, 1)
    parameter = nn.Parameter(weight)
    with torch.no_grad():
        for _ in range(2):
            chosen = sliced_conv2d(x, parameter, bias, C_MAX)
            assert torch.equal(chosen, sliced_conv2d(x, parameter, bias, C_MAX, algo=ALGO))
            check(x, parameter, bias, C_MAX)
            parameter.mul_(-1.5)


def test_refusals():
    x, weight = torch.zeros(1, 4, 8, 8), torch.zeros(4, 4, 3, 3)
    with pytest.raises(ValueError, match=r"'direct_bf16' for torch\.float32, .*need bfloat16"):
        sliced_conv2d(x, weight, None, 4, padding=1, algo=ALGO)
    x, weight = x.bfloat16(), weight.bfloat16()
    with pytest.raises(ValueError, match=r"upsample=True; need bfloat16, at most 5x5 and no ups"):
        sliced_conv2d(x, weight, None, 4, padding=1, upsample=True, algo=ALGO)
    with (
        op_checks.forced_isa("portable"),
        pytest.raises(ValueError, match="on portable kernels; need avx512_bf16"),
    ):
        sliced_conv2d(x, weight, None, 4, padding=1, algo=ALGO)
