"""sliced_conv2d beside F.conv2d and an fp64 reference, in every instruction set of this CPU."""

from __future__ import annotations

import pytest
import torch
from ops import op_checks
from ops.conv2d_checks import check_case, check_results, exact_and_torch, ours, parameters
from ops.op_checks import GRADIENT_RATIO, ISAS, normal, seeded
from ops.product_samples import WINDOWS, conv2d_samples
from torch.utils.flop_counter import FlopCounterMode

from ddsm_ext.ops.conv2d import sliced_conv2d, sliced_conv2d_ref

C_MAX = 128
CHANNELS = (1, 3, 8, 59, 111, C_MAX)
# (c_in, c_out): every count on either side of the full and of an odd one
COUNTS = sorted({pair for c in CHANNELS for o in (59, C_MAX) for pair in ((c, o), (o, c))})
DTYPES = (torch.float32, torch.bfloat16, torch.float64)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kernel", "stride", "upsample"), WINDOWS)
def test_windows(isa, dtype, kernel, stride, upsample):
    generator = seeded(1)
    weight, bias = parameters(generator, 40, 40, kernel, dtype)
    x = normal(generator, 2, 19, 7, 6, dtype=dtype)  # [N, c_in, H, W]
    x2 = normal(generator, 2, 9, 7, 6, dtype=dtype)  # [N, c_in2, H, W]
    options = {"stride": stride, "padding": kernel // 2, "upsample": upsample}
    with op_checks.forced_isa(isa):
        check_case((x, None, weight, bias), 21, generator, **options)
        check_case((x, x2, weight, bias), 33, generator, c_in2_offset=27, **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("c_in", "c_out"), COUNTS)
def test_channel_counts(dtype, c_in, c_out):
    generator = seeded(c_in * 1000 + c_out)
    weight, bias = parameters(generator, C_MAX, C_MAX, 3, dtype)
    results = []
    for _ in range(max(1, 100 // (c_in * c_out), 100 // c_out)):
        x = normal(generator, 2, c_in, 6, 5, dtype=dtype)
        grad_y = normal(generator, 2, c_out, 6, 5, dtype=dtype)
        arguments = (x, None, weight, bias), c_out, grad_y
        exact, torchs = exact_and_torch(*arguments, padding=1)
        results.append((ours(*arguments, padding=1), torchs, exact))
    check_results(*(op_checks.pooled(cases) for cases in zip(*results, strict=True)))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
def test_layouts(isa, layout):
    generator = seeded(3)
    weight, bias = parameters(generator, C_MAX, C_MAX, 3, torch.float32)
    x = normal(generator, 2, 59, 6, 5)
    expected = sliced_conv2d(x, weight, bias, 37, padding=1)
    given = op_checks.as_layout(x, layout)
    weight_given = weight.contiguous(memory_format=torch.channels_last)
    with op_checks.forced_isa(isa):
        got = sliced_conv2d(given, weight, bias, 37, padding=1)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
        assert got.is_contiguous(memory_format=torch.channels_last)
        by_strides = sliced_conv2d(given, weight_given, bias, 37, padding=1)
        assert torch.equal(by_strides, got)
        check_case((given, None, weight_given, bias), 37, generator, padding=1)


def test_no_padding_and_no_bias():
    generator = seeded(4)
    weight, _ = parameters(generator, 20, 20, 3, torch.float32)
    x = normal(generator, 2, 11, 6, 5)
    check_case((x, None, weight, None), 13, generator)
    check_case((x, None, weight, None), 13, generator, padding=2)
    check_case((x, None, weight, None), 13, generator, stride=2)


def test_larger_kernel():
    generator = seeded(5)
    weight, bias = parameters(generator, 20, 20, 5, torch.float32)
    x = normal(generator, 2, 11, 6, 5)
    for upsample in (False, True):
        check_case((x, None, weight, bias), 13, generator, padding=2, upsample=upsample)


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_images(dtype):
    generator = seeded(6)
    weight, bias = parameters(generator, 20, 20, 3, dtype)
    weight.requires_grad_()
    x = torch.empty(0, 11, 6, 5, dtype=dtype, requires_grad=True)
    y = sliced_conv2d(x, weight, bias, 13, padding=1)
    assert y.shape == (0, 13, 6, 5)
    y.sum().backward()
    assert x.grad.shape == x.shape
    assert weight.grad.eq(0).all()


def test_float32_weight_with_bfloat16_x():
    generator = seeded(7)
    weight, bias = parameters(generator, C_MAX, C_MAX, 3, torch.float32)
    x = normal(generator, 2, 59, 6, 5, dtype=torch.bfloat16)
    y, grad_x, grad_weight, grad_bias = ours(
        (x, None, weight, bias), 37, torch.ones(2, 37, 6, 5, dtype=torch.bfloat16), padding=1
    )
    grad = torch.ones(2, 37, 6, 5)
    exact, torchs = exact_and_torch((x.float(), None, weight, bias), 37, grad, padding=1)
    assert (y.dtype, grad_x.dtype) == (torch.bfloat16, torch.bfloat16)
    assert (grad_weight.dtype, grad_bias.dtype) == (torch.float32, torch.float32)
    op_checks.check_error(y, exact[0].bfloat16(), exact[0], 1.5)
    op_checks.check_error(grad_x, exact[1].bfloat16(), exact[1], 1.5)
    op_checks.check_error(grad_weight, torchs[2], exact[2], GRADIENT_RATIO)
    op_checks.check_error(grad_bias, torchs[3], exact[3], GRADIENT_RATIO)


def test_autocast_casts_x_only():
    generator = seeded(8)
    weight, bias = parameters(generator, 20, 20, 3, torch.float32)
    weight.requires_grad_()
    x = normal(generator, 2, 11, 6, 5).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = sliced_conv2d(x, weight, bias, 13, padding=1)
    expected = sliced_conv2d(x.bfloat16(), weight, bias, 13, padding=1)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, expected)
    y.float().sum().backward()
    assert weight.grad.dtype == torch.float32
    assert x.grad.dtype == torch.float32


@pytest.mark.parametrize("seed", range(10))
def test_gradcheck(seed):
    generator = seeded(seed)
    kernel, stride, upsample = WINDOWS[seed % len(WINDOWS)]
    weight, bias = parameters(generator, 4, 7, kernel, torch.float64)
    x = normal(generator, 2, 3, 4, 3, dtype=torch.float64)
    x2 = normal(generator, 2, 2, 4, 3, dtype=torch.float64) if seed % 2 else None
    leaves = [None if t is None else t.requires_grad_() for t in (x, x2, weight, bias)]

    def call(x, x2, weight, bias):
        return sliced_conv2d(
            x, weight, bias, 3, stride=stride, padding=kernel // 2, x2=x2, upsample=upsample
        )

    assert torch.autograd.gradcheck(call, leaves)


@pytest.mark.slow
def test_opcheck():
    samples = conv2d_samples()
    assert len(samples["sliced_conv2d"]) >= 12
    op_checks.check_ops(samples)


def test_opcheck_of_one_sample():
    op_checks.check_ops(conv2d_samples(), slice(2, 3))


def test_compiles_for_all_widths():
    generator = seeded(9)
    weight, bias = (p.requires_grad_() for p in parameters(generator, 44, 60, 3, torch.float32))
    skip = normal(generator, 2, 16, 6, 5)

    def layer(x, weight, bias, c_out):
        return sliced_conv2d(x, weight, bias, c_out, padding=1, x2=skip, c_in2_offset=44)

    inputs = [normal(generator, 2, 4 * n, 6, 5).requires_grad_() for n in range(1, 12)]
    calls = [(x, weight, bias, 48 - x.shape[1]) for x in inputs]
    assert op_checks.compiled_graphs(layer, calls, backward=True) <= 2


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("kernel", "stride", "upsample"), WINDOWS)
def test_nothing_outside_the_slice_is_touched(isa, kernel, stride, upsample):
    generator = seeded(10)
    weight, bias = parameters(generator, 40, 60, kernel, torch.float32)
    c_in, c_in2, offset, c_out = 19, 9, 31, 21
    keep = torch.zeros_like(weight, dtype=torch.bool)
    keep[:c_out, :c_in] = True
    keep[:c_out, offset : offset + c_in2] = True
    weight = torch.where(keep, weight, torch.nan).requires_grad_()
    bias = op_checks.poisoned(bias, slice(0, c_out)).requires_grad_()
    weight.grad = torch.where(keep, 0.0, torch.nan)
    bias.grad = op_checks.poisoned(torch.zeros_like(bias), slice(0, c_out))
    # bit patterns of NaN that no arithmetic gives: a copy through a register would keep them too
    weight.grad.view(torch.int32)[~keep] = 0x7FA12345
    before, bias_before = weight.grad.clone(), bias.grad.clone()
    x = op_checks.as_layout(normal(generator, 2, c_in, 6, 5), "sliced").requires_grad_()
    x2 = op_checks.as_layout(normal(generator, 2, c_in2, 6, 5), "sliced").requires_grad_()
    with op_checks.forced_isa(isa):
        y = sliced_conv2d(
            x,
            weight,
            bias,
            c_out,
            stride=stride,
            padding=kernel // 2,
            x2=x2,
            c_in2_offset=offset,
            upsample=upsample,
            accumulate_grad=True,
        )
        grad_x, grad_x2 = torch.autograd.grad(y.sum(), (x, x2), retain_graph=True)
        y.sum().backward()
    for value in (y, grad_x, grad_x2):
        assert torch.isfinite(value).all()
    outside = ~keep
    bits = torch.int32
    assert torch.equal(weight.grad.view(bits)[outside], before.view(bits)[outside])
    assert torch.isfinite(weight.grad[keep]).all()
    op_checks.check_outside_unchanged(bias.grad, bias_before, slice(0, c_out))


def test_accumulate_grad_equals_autograd():
    generator = seeded(11)
    weight, bias = (torch.nn.Parameter(p) for p in parameters(generator, 20, 20, 3, torch.float32))
    x = normal(generator, 2, 11, 6, 5)
    results = []
    for accumulate in (False, True):
        weight.grad = bias.grad = None
        for c_out in (13, 7):
            y = sliced_conv2d(x, weight, bias, c_out, padding=1, accumulate_grad=accumulate)
            y.square().sum().backward()
        results.append((weight.grad, bias.grad))
    for plain, added in zip(*results, strict=True):
        torch.testing.assert_close(added, plain, rtol=1e-6, atol=1e-5)


def test_accumulate_grad_of_one_parameter():
    generator = seeded(12)
    weight, bias = parameters(generator, 20, 20, 3, torch.float32)
    bias.requires_grad_()
    y = sliced_conv2d(normal(generator, 2, 11, 6, 5), weight, bias, 13, accumulate_grad=True)
    y.sum().backward()
    assert weight.grad is None
    torch.testing.assert_close(bias.grad[:13], torch.full((13,), 2.0 * 4 * 3))


@pytest.mark.parametrize("isa", ISAS)
def test_repeatable(isa):
    generator = seeded(13)
    weight, bias = parameters(generator, C_MAX, C_MAX, 3, torch.float32)
    x = normal(generator, 3, 59, 9, 8)
    grad_y = normal(generator, 3, 111, 9, 8)
    tensors = (x, None, weight, bias)
    with op_checks.forced_isa(isa):
        op_checks.check_repeatable(lambda: ours(tensors, 111, None, padding=1), 250)
        op_checks.check_repeatable(lambda: ours(tensors, 111, grad_y, padding=1), 50)


def test_the_number_of_threads_changes_no_bit():
    generator = seeded(14)
    weight, bias = parameters(generator, C_MAX, C_MAX, 3, torch.float32)
    tensors = (normal(generator, 3, 59, 16, 16), None, weight, bias)
    grad_y = normal(generator, 3, 111, 16, 16)
    results = []
    for count in (1, 2, 3):
        with op_checks.threads(count):
            results.append(ours(tensors, 111, grad_y, padding=1))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


def test_flop_count_equals_pytorchs():
    generator = seeded(15)
    weight, bias = parameters(generator, 20, 30, 3, torch.float32)
    x = normal(generator, 2, 11, 6, 5).requires_grad_()
    weight.requires_grad_()
    counts = []
    for op in (sliced_conv2d, sliced_conv2d_ref):
        with FlopCounterMode(display=False) as counter:
            op(x, weight, bias, 13, padding=1, x2=x, c_in2_offset=None).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == 3 * 2 * 2 * 30 * 13 * 22 * 9 == counts[1]


BAD = (
    ({"c_out": 0}, "c_out is 0, weight has 20 output channels; need 1 <= c_out <= 20"),
    ({"c_out": 21}, "c_out is 21, weight has 20 output channels; need 1 <= c_out <= 20"),
    ({"c_out": 2.0}, "c_out is 2.0, need an int"),
    ({"c_out": True}, "c_out is True, need an int"),
    ({"x": torch.ones(2, 21, 6, 5)}, "x has 21 channels, weight has 20 input channels"),
    ({"x": torch.ones(2, 0, 6, 5)}, "x has 0 channels"),
    ({"x": torch.ones(11, 6, 5)}, r"x has shape \[11, 6, 5\], need 4 dimensions"),
    ({"x": torch.ones(2, 11, 6, 5).int()}, "x has dtype torch.int32"),
    ({"x": torch.ones(2, 11, 6, 5).double()}, "x has dtype torch.float64, weight torch.float32"),
    ({"x": torch.ones(2, 11, 2, 2), "padding": 0}, "x has 2x2 pixels"),
    ({"x": None}, "x is NoneType, need a torch.Tensor"),
    ({"weight": torch.ones(20, 20, 3, 1)}, "need a square kernel"),
    ({"bias": torch.ones(19)}, "bias has 19 elements, weight has 20 output channels"),
    ({"stride": 3}, "stride is 3, need 1 or 2"),
    ({"padding": 3}, "padding is 3, weight has a 3x3 kernel; need 0 <= padding < 3"),
    ({"upsample": 1}, "upsample is 1, need True or False"),
    ({"pad_end": 1}, "pad_end is 1, need True or False"),
    ({"c_in2_offset": 12}, "c_in2_offset is 12 but x2 is None"),
    ({"x2": torch.ones(2, 10, 6, 5)}, "need 11 <= c_in2_offset <= 10"),
    ({"x2": torch.ones(2, 2, 6, 5), "c_in2_offset": 10}, "c_in2_offset is 10, x has 11"),
    ({"x2": torch.ones(2, 2, 6, 4)}, "need the same N, H and W"),
    ({"accumulate_grad": "yes"}, "accumulate_grad is 'yes', need True or False"),
)


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_arguments(change, message):
    arguments = {
        "x": torch.ones(2, 11, 6, 5),
        "weight": torch.ones(20, 20, 3, 3),
        "bias": torch.ones(20),
        "c_out": 13,
        "padding": 1,
    }
    with pytest.raises((TypeError, ValueError), match=f"^sliced_conv2d: .*{message}"):
        sliced_conv2d(**{**arguments, **change})


def test_accumulate_grad_needs_a_leaf():
    weight = torch.ones(20, 20, 3, 3, requires_grad=True) * 2
    with pytest.raises(ValueError, match="weight is computed from other tensors; need a leaf"):
        sliced_conv2d(torch.ones(2, 11, 6, 5), weight, None, 13, accumulate_grad=True)
