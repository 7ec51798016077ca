"""The Winograd algorithms of sliced_conv2d beside plain torch in fp64, and how they are chosen."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from ops import op_checks
from ops.op_checks import ISAS, normal, seeded
from torch import Tensor, nn

from ddsm_ext import _library
from ddsm_ext.ops._packed import ALGORITHMS, DIRECT_BF16, ConvProblem, choose_algorithm
from ddsm_ext.ops.conv2d import sliced_conv2d

WINOGRAD = ("winograd_4x4", "winograd_2x2")
C_MAX = 64
# What the docstring of sliced_conv2d promises in float32, times PyTorch's own error.
STATED_RATIO = 8.0
# H, W: whole tiles of both sizes, clipped ones, single pixels
SIZES = ((8, 8), (7, 6), (4, 4), (5, 9), (1, 1), (2, 3))


def case(
    generator: torch.Generator, c_in: int, c_out: int, height: int, width: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    x = normal(generator, 2, c_in, height, width, dtype=dtype)
    weight = normal(generator, C_MAX, C_MAX, 3, 3) * (9 * c_in) ** -0.5
    return x, weight.to(dtype), normal(generator, C_MAX, dtype=dtype)


def results(
    x: Tensor, x2: Tensor | None, weight: Tensor, bias: Tensor, c_out: int, grad: Tensor, **options
) -> list[Tensor]:
    """Output and gradients, by plain torch where `algo` is missing."""
    leaves = [None if t is None else t.detach().requires_grad_() for t in (x, x2, weight, bias)]
    algo, offset = options.pop("algo", None), options.pop("c_in2_offset", None)
    if algo:
        y = sliced_conv2d(
            leaves[0], leaves[2], leaves[3], c_out, x2=leaves[1], c_in2_offset=offset, algo=algo,
            **options,
        )  # fmt: skip
    else:
        joined, w = leaves[0], leaves[2][:c_out, : x.shape[1]]
        if x2 is not None:
            joined = torch.cat([joined, leaves[1]], dim=1)
            w = torch.cat([w, leaves[2][:c_out, offset : offset + x2.shape[1]]], dim=1)
        if options.get("upsample"):
            joined = F.interpolate(joined, scale_factor=2, mode="nearest")
        if options.get("pad_end"):
            joined = F.pad(joined, (0, 1, 0, 1))
        y = F.conv2d(joined, w, leaves[3][:c_out], padding=options["padding"])
    grads = torch.autograd.grad(y, [t for t in leaves if t is not None], grad.to(y))
    return [y.detach(), *grads]


def check(x, x2, weight, bias, c_out, generator, **options) -> None:
    algo = options.pop("algo")
    doubles = [None if t is None else t.double() for t in (x, x2, weight, bias)]
    sides = [s * (2 if options.get("upsample") else 1) for s in x.shape[2:]]
    grow = 2 * options["padding"] - 2 + options.get("pad_end", False)
    grad = normal(generator, x.shape[0], c_out, *(s + grow for s in sides), dtype=x.dtype)
    exact = results(*doubles, c_out, grad.double(), **options)
    torchs = results(x, x2, weight, bias, c_out, grad, **options)
    mine = results(x, x2, weight, bias, c_out, grad, algo=algo, **options)
    ratio = STATED_RATIO if x.dtype == torch.float32 else op_checks.GRADIENT_RATIO
    for got, expected, reference in zip(mine, torchs, exact, strict=True):
        op_checks.check_error(got, expected, reference, ratio)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("algo", WINOGRAD)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sizes(isa, algo, dtype):
    generator = seeded(1)
    with op_checks.forced_isa(isa):
        for height, width in SIZES:
            x, weight, bias = case(generator, 24, 40, height, width, dtype)
            check(x, None, weight, bias, 40, generator, padding=1, algo=algo)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("algo", WINOGRAD)
def test_channel_counts(isa, algo):
    generator = seeded(2)
    with op_checks.forced_isa(isa):
        for c_in, c_out in itertools.product((8, 17, C_MAX), (17, 33, C_MAX)):
            x, weight, bias = case(generator, c_in, c_out, 9, 8, torch.float32)
            check(x, None, weight, bias, c_out, generator, padding=1, algo=algo)


@pytest.mark.parametrize("algo", WINOGRAD)
def test_few_channels(algo):
    """The ratio is stated from 8 input channels on: PyTorch hardly rounds a few products' sum."""
    generator = seeded(10)
    for c_in, c_out in itertools.product((1, 3, 17), (1, 3)):
        x, weight, bias = case(generator, c_in, c_out, 9, 8, torch.float32)
        y = sliced_conv2d(x, weight, bias, c_out, padding=1, algo=algo)
        expected = F.conv2d(x, weight[:c_out, :c_in], bias[:c_out], padding=1)
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("algo", WINOGRAD)
@pytest.mark.parametrize("offset", [20, 27, 40])
def test_two_sources(isa, algo, offset):
    generator = seeded(3)
    x, weight, bias = case(generator, 20, 33, 6, 7, torch.float32)
    x2 = normal(generator, 2, 13, 6, 7)
    with op_checks.forced_isa(isa):
        check(x, x2, weight, bias, 33, generator, padding=1, c_in2_offset=offset, algo=algo)


@pytest.mark.parametrize("algo", WINOGRAD)
@pytest.mark.parametrize("padding", [0, 2])
def test_padding(algo, padding):
    generator = seeded(4)
    x, weight, bias = case(generator, 20, 33, 6, 7, torch.float32)
    check(x, None, weight, bias, 33, generator, padding=padding, algo=algo)
    check(x, None, weight, bias, 33, generator, padding=padding, algo=algo, pad_end=True)


@pytest.mark.parametrize("algo", WINOGRAD)
def test_upsample(algo):
    generator = seeded(5)
    x, weight, bias = case(generator, 20, 33, 5, 4, torch.float32)
    check(x, None, weight, bias, 33, generator, padding=1, upsample=True, algo=algo)


@pytest.mark.parametrize("algo", WINOGRAD)
def test_large_sum(algo):
    """The stated error also holds at the CIFAR-10 U-Net's widest layer."""
    generator = seeded(6)
    x = normal(generator, 1, 512, 8, 8)
    weight, bias = normal(generator, 32, 512, 3, 3) * (9 * 512) ** -0.5, normal(generator, 32)
    check(x, None, weight, bias, 32, generator, padding=1, algo=algo)


@pytest.mark.parametrize("algo", WINOGRAD)
def test_poison_beyond_the_slice(algo):
    generator = seeded(7)
    x, weight, bias = case(generator, 19, 21, 6, 7, torch.float32)
    expected = sliced_conv2d(x, weight, bias, 21, padding=1, algo=algo)
    poisoned = op_checks.poisoned(weight, slice(21), slice(19)).requires_grad_()
    poisoned_bias = op_checks.poisoned(bias, slice(21)).requires_grad_()
    x.requires_grad_()
    y = sliced_conv2d(x, poisoned, poisoned_bias, 21, padding=1, algo=algo, accumulate_grad=True)
    assert torch.equal(y, expected)
    before = torch.full_like(weight, 3.5)
    poisoned.grad = before.clone()
    y.sum().backward()
    assert torch.isfinite(x.grad).all()
    op_checks.check_outside_unchanged(poisoned.grad, before, slice(21), slice(19))


@pytest.mark.parametrize("algo", ["direct", *WINOGRAD])
def test_repeatable_on_any_thread_count(algo):
    generator = seeded(8)
    x, weight, bias = case(generator, 40, 40, 16, 16, torch.float32)
    x.requires_grad_()
    weight.requires_grad_()

    def call() -> list[Tensor]:
        y = sliced_conv2d(x, weight, bias, 40, padding=1, algo=algo)
        return [y.detach(), *torch.autograd.grad(y.square().sum(), (x, weight))]

    with op_checks.threads(2):
        op_checks.check_repeatable(call, 25)
        two = call()
    with op_checks.threads(1):
        for one, other in zip(call(), two, strict=True):
            assert torch.equal(one, other)


def test_only_parameters_are_rearranged_unasked():
    """A plain tensor keeps no panels, so that its results are those of the direct algorithm."""
    generator = seeded(9)
    x, weight, bias = case(generator, C_MAX, C_MAX, 16, 16, torch.float32)
    direct = sliced_conv2d(x, weight, bias, C_MAX, padding=1, algo="direct")
    assert torch.equal(sliced_conv2d(x, weight, bias, C_MAX, padding=1), direct)
    with torch.no_grad():
        chosen = sliced_conv2d(x, nn.Parameter(weight), bias, C_MAX, padding=1)
    assert not torch.equal(chosen, direct)
    torch.testing.assert_close(chosen, direct, rtol=1e-4, atol=1e-5)


def test_refusals():
    x, weight = torch.zeros(1, 4, 8, 8), torch.zeros(4, 4, 3, 3)
    with pytest.raises(ValueError, match="algo is 'fast'; need one of auto, direct, winograd_4x4"):
        sliced_conv2d(x, weight, None, 4, padding=1, algo="fast")
    with pytest.raises(ValueError, match="'winograd_4x4' for a 3x3 kernel at stride 2"):
        sliced_conv2d(x, weight, None, 4, padding=1, stride=2, algo="winograd_4x4")
    with pytest.raises(ValueError, match="for a 1x1 kernel at stride 1"):
        sliced_conv2d(x, weight[:, :, :1, :1], None, 4, algo="winograd_2x2")
    with pytest.raises(ValueError, match=r"in torch\.float64"):
        sliced_conv2d(x.double(), weight.double(), None, 4, padding=1, algo="winograd_2x2")


def test_only_on_the_cpu_and_uncompiled():
    x, weight = torch.zeros(1, 4, 8, 8), nn.Parameter(torch.zeros(4, 4, 3, 3))

    def call(x: Tensor, weight: Tensor, algo: str) -> Tensor:
        return sliced_conv2d(x, weight, None, 4, padding=1, algo=algo)

    with pytest.raises(ValueError, match="on meta; need the CPU, uncompiled, or 'auto'"):
        call(x.to("meta"), weight.to("meta"), "winograd_4x4")
    compiled = torch.compile(call, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, weight, "auto"), call(x, weight, "auto"))
    with pytest.raises(Exception, match=r"on torch\.compile; need the CPU"):
        compiled(x, weight, "winograd_4x4")


@pytest.mark.parametrize("isa", ISAS)
def test_small_eager_convolutions_look_no_panels_up(isa):
    """Direct ones took 2 to 3 us less of about 20 up to 16 channels at 8x8 pixels (a Zen 4)."""
    with op_checks.forced_isa(isa):
        for channels in (4, 8):
            problem = ConvProblem(1, 8, 8, channels, channels, 3, 1, 1)
            assert choose_algorithm(isa, problem, eager=True) == 0
        large = ConvProblem(8, 32, 32, 128, 128, 3, 1, 1)
        assert choose_algorithm(isa, large, eager=True) == choose_algorithm(isa, large) != 0


def test_cost_model():
    """It counts what the algorithms do: arithmetic where there is much, else bytes."""
    native = _library.native

    def cost(algo: str, *shape: int, rearranged: int = 0, grad_weight: bool = False) -> float:
        problem = native.Conv2dProblem(
            **ConvProblem(*shape)._asdict(), rearranged=rearranged, grad_weight=grad_weight
        )
        return native.conv2d_cost_ns(problem, ALGORITHMS.index(algo))

    large = (64, 32, 32, 256, 256, 3, 1, 1)
    # Where arithmetic is all, costs per multiply-add are as 9 : 4 : 36 / 16 per output.
    ratio = cost("direct", *large) / cost("winograd_4x4", *large)
    assert 2.0 < ratio < 4.0
    assert cost("winograd_4x4", *large) < cost("winograd_2x2", *large) < cost("direct", *large)
    # Twice the images: at most twice the time, and more than once.
    twice = (128, *large[1:])
    assert 1.9 < cost("winograd_4x4", *twice) / cost("winograd_4x4", *large) <= 2.0
    # One 4x4 image: the 36 / 9 larger panels must be read for one tile.
    small = (1, 4, 4, 256, 256, 3, 1, 1)
    assert cost("winograd_4x4", *small) > cost("direct", *small)
    # Panels made for few uses cost extra.
    assert cost("winograd_4x4", *small, rearranged=256 * 256) > cost("winograd_4x4", *small)
    for other in ((8, 16, 16, 64, 64, 1, 1, 1), (8, 16, 16, 64, 64, 3, 2, 1)):
        assert cost("winograd_2x2", *other) == float("inf")
        assert choose_algorithm(native.active_isa(), ConvProblem(*other, False)) == 0
    costs = native.conv2d_costs()
    assert costs.pop("segment_ns") >= 0
    assert costs.pop("direct_ns") >= 0
    assert (costs.pop("bf16_macs_per_ns") > 0) == native.conv2d_has(DIRECT_BF16)
    assert all(value > 0 for value in costs.values())
