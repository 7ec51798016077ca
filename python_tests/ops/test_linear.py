"""sliced_linear beside F.linear and an fp64 reference, in every instruction set of this CPU."""

from __future__ import annotations

import pytest
import torch
from ops import op_checks
from ops.op_checks import FORWARD_RATIO, GRADIENT_RATIO, ISAS, normal, seeded
from ops.product_samples import linear_samples
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ddsm_ext.ops.linear import sliced_linear, sliced_linear_ref

C_MAX = 128
CHANNELS = (1, 3, 8, 59, 111, C_MAX)
# (c_in, c_out): every count on either side of the full and of an odd one
COUNTS = sorted({pair for c in CHANNELS for o in (59, C_MAX) for pair in ((c, o), (o, c))})
DTYPES = (torch.float32, torch.bfloat16, torch.float64)
ROWS = (1, 3, 16, 17, 70)


def parameters(
    generator: torch.Generator, c_out: int, c_in: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    weight = normal(generator, c_out, c_in) * c_in**-0.5
    return weight.to(dtype), normal(generator, c_out, dtype=dtype)


def run(op, tensors: tuple[Tensor | None, ...], c_out: int, grad_y: Tensor) -> list[Tensor]:
    x, weight, bias = (None if t is None else t.detach().requires_grad_() for t in tensors)
    y = op(x, weight, bias, c_out)
    leaves = [t for t in (x, weight, bias) if t is not None]
    return [y.detach(), *torch.autograd.grad(y, leaves, grad_y)]


def run_three(
    tensors: tuple[Tensor | None, ...], c_out: int, generator: torch.Generator
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Output and gradients: ours, PyTorch's, and PyTorch's in fp64."""
    grad_y = normal(generator, *tensors[0].shape[:-1], c_out, dtype=tensors[0].dtype)
    wide = tuple(None if t is None else t.double() for t in tensors)
    return (
        run(sliced_linear, tensors, c_out, grad_y),
        run(sliced_linear_ref, tensors, c_out, grad_y),
        run(sliced_linear_ref, wide, c_out, grad_y.double()),
    )


def check_results(mine: list[Tensor], torchs: list[Tensor], exact: list[Tensor]) -> None:
    for index, result in enumerate(zip(mine, torchs, exact, strict=True)):
        op_checks.check_error(*result, GRADIENT_RATIO if index else FORWARD_RATIO)


def check_case(tensors: tuple[Tensor | None, ...], c_out: int, generator: torch.Generator) -> None:
    check_results(*run_three(tensors, c_out, generator))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", ROWS)
def test_channel_counts(isa, dtype, rows):
    with op_checks.forced_isa(isa):
        for c_in, c_out in COUNTS:
            generator = seeded(c_in * 1000 + c_out)
            weight, bias = parameters(generator, C_MAX, C_MAX, dtype)
            results = []
            for _ in range(max(1, 60 // c_out, 60 // c_in)):
                x = normal(generator, rows, c_in, dtype=dtype)
                results.append(run_three((x, weight, bias), c_out, generator))
            check_results(*(op_checks.pooled(cases) for cases in zip(*results, strict=True)))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("rows", ROWS)
def test_layouts(isa, rows):
    generator = seeded(1)
    weight, bias = parameters(generator, C_MAX, C_MAX, torch.float32)
    x = normal(generator, rows, 59)
    by_columns = weight.t().contiguous().t()
    with op_checks.forced_isa(isa):
        expected = sliced_linear(x, weight, bias, 37)
        for given in (op_checks.as_layout(x, "sliced"), x.t().contiguous().t()):
            assert torch.equal(sliced_linear(given, weight, bias, 37), expected)
            check_case((given, weight, bias), 37, generator)
        check_case((x, by_columns, None), 37, generator)


def test_leading_dimensions():
    generator = seeded(2)
    weight, bias = parameters(generator, 20, 20, torch.float32)
    for shape in ((11,), (2, 11), (2, 3, 11), (2, 3, 4, 11), (1, 1, 11), (0, 11), (3, 0, 11)):
        x = normal(generator, *shape)
        assert sliced_linear(x, weight, bias, 13).shape == (*shape[:-1], 13)
        check_case((x, weight, bias), 13, generator)
    x = normal(generator, 4, 3, 11).transpose(0, 1)
    check_case((x, weight, bias), 13, generator)


def test_float32_weight_with_bfloat16_x():
    generator = seeded(3)
    weight, bias = parameters(generator, C_MAX, C_MAX, torch.float32)
    for rows in ROWS:
        x = normal(generator, rows, 59, dtype=torch.bfloat16)
        grad_y = normal(generator, rows, 37, dtype=torch.bfloat16)
        exact = run(
            sliced_linear_ref, tuple(t.double() for t in (x, weight, bias)), 37, grad_y.double()
        )
        torchs = run(sliced_linear_ref, (x.float(), weight, bias), 37, grad_y.float())
        mine = run(sliced_linear, (x, weight, bias), 37, grad_y)
        assert [t.dtype for t in mine] == [torch.bfloat16] * 2 + [torch.float32] * 2
        for index in (0, 1):
            op_checks.check_error(mine[index], exact[index].bfloat16(), exact[index], 1.5)
        for index in (2, 3):
            op_checks.check_error(mine[index], torchs[index], exact[index], GRADIENT_RATIO)


def test_autocast_casts_x_only():
    generator = seeded(4)
    weight, bias = parameters(generator, 20, 20, torch.float32)
    weight.requires_grad_()
    x = normal(generator, 5, 11)
    with torch.autocast("cpu", torch.bfloat16):
        y = sliced_linear(x, weight, bias, 13)
    assert torch.equal(y, sliced_linear(x.bfloat16(), weight, bias, 13))
    y.float().sum().backward()
    assert weight.grad.dtype == torch.float32


@pytest.mark.parametrize("seed", range(10))
def test_gradcheck(seed):
    generator = seeded(seed)
    weight, bias = parameters(generator, 5, 7, torch.float64)
    x = normal(generator, 2, 1 + 2 * seed, 6, dtype=torch.float64)
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    assert torch.autograd.gradcheck(lambda *args: sliced_linear(*args, 4), leaves)


@pytest.mark.slow
def test_opcheck():
    samples = linear_samples()
    assert len(samples["sliced_linear"]) >= 12
    op_checks.check_ops(samples)


def test_opcheck_of_one_sample():
    op_checks.check_ops(linear_samples(), slice(1, 2))


def test_compiles_for_all_widths():
    generator = seeded(5)
    weight, bias = (p.requires_grad_() for p in parameters(generator, 44, 44, torch.float32))
    inputs = [normal(generator, 6, 4 * n).requires_grad_() for n in range(1, 12)]
    calls = [(x, weight, bias, 48 - x.shape[1]) for x in inputs]
    assert op_checks.compiled_graphs(sliced_linear, calls, backward=True) <= 2


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("rows", ROWS)
def test_nothing_outside_the_slice_is_touched(isa, rows):
    generator = seeded(6)
    weight, bias = parameters(generator, 40, 60, torch.float32)
    region = (slice(0, 21), slice(0, 19))
    weight = op_checks.poisoned(weight, *region).requires_grad_()
    bias = op_checks.poisoned(bias, region[0]).requires_grad_()
    weight.grad = op_checks.poisoned(torch.zeros_like(weight), *region)
    bias.grad = op_checks.poisoned(torch.zeros_like(bias), region[0])
    before, bias_before = weight.grad.clone(), bias.grad.clone()
    x = op_checks.as_layout(normal(generator, rows, 19), "sliced").requires_grad_()
    with op_checks.forced_isa(isa):
        y = sliced_linear(x, weight, bias, 21, accumulate_grad=True)
        (grad_x,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
        y.sum().backward()
    assert torch.isfinite(y).all()
    assert torch.isfinite(grad_x).all()
    op_checks.check_outside_unchanged(weight.grad, before, *region)
    op_checks.check_outside_unchanged(bias.grad, bias_before, region[0])


def test_accumulate_grad_equals_autograd():
    generator = seeded(7)
    weight, bias = (torch.nn.Parameter(p) for p in parameters(generator, 20, 20, torch.float32))
    x = normal(generator, 6, 11)
    results = []
    for accumulate in (False, True):
        weight.grad = bias.grad = None
        for c_out in (13, 7):
            y = sliced_linear(x, weight, bias, c_out, accumulate_grad=accumulate)
            y.square().sum().backward()
        results.append((weight.grad, bias.grad))
    for plain, added in zip(*results, strict=True):
        torch.testing.assert_close(added, plain, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("rows", [3, 70])
def test_repeatable(isa, rows):
    generator = seeded(8)
    weight, bias = parameters(generator, C_MAX, C_MAX, torch.float32)
    tensors = (normal(generator, rows, 59), weight, bias)
    grad_y = normal(generator, rows, 111)
    with op_checks.forced_isa(isa):
        op_checks.check_repeatable(lambda: [sliced_linear(*tensors, 111)], 250)
        op_checks.check_repeatable(lambda: run(sliced_linear, tensors, 111, grad_y), 50)


def test_the_number_of_threads_changes_no_bit():
    generator = seeded(9)
    weight, bias = parameters(generator, 512, 512, torch.float32)
    for rows in (8, 200):
        tensors = (normal(generator, rows, 400), weight, bias)
        grad_y = normal(generator, rows, 500)
        results = []
        for count in (1, 2, 3):
            with op_checks.threads(count):
                results.append(run(sliced_linear, tensors, 500, grad_y))
        for other in results[1:]:
            for a, b in zip(results[0], other, strict=True):
                assert torch.equal(a, b)


def test_flop_count_equals_pytorchs():
    generator = seeded(10)
    weight, bias = parameters(generator, 20, 20, torch.float32)
    x, weight = normal(generator, 2, 3, 11).requires_grad_(), weight.requires_grad_()
    counts = []
    for op in (sliced_linear, sliced_linear_ref):
        with FlopCounterMode(display=False) as counter:
            op(x, weight, bias, 13).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == 3 * 2 * 6 * 11 * 13 == counts[1]


BAD = (
    ({"c_out": 0}, "c_out is 0, weight has 20 output channels; need 1 <= c_out <= 20"),
    ({"c_out": 21}, "c_out is 21, weight has 20 output channels; need 1 <= c_out <= 20"),
    ({"c_out": "3"}, "c_out is '3', need an int"),
    ({"x": torch.ones(2, 21)}, "x has 21 features, weight has 20 input features"),
    ({"x": torch.ones(2, 0)}, "x has 0 features"),
    ({"x": torch.tensor(1.0)}, r"x has shape \[\], need at least one dimension"),
    ({"x": torch.ones(2, 11).int()}, "x has dtype torch.int32"),
    ({"x": torch.ones(2, 11).double()}, "x has dtype torch.float64, weight torch.float32"),
    ({"x": 3}, "x is int, need a torch.Tensor"),
    ({"weight": torch.ones(20, 1, 1, 1)}, "weight has shape .*; need 2 or 3 dimensions"),
    ({"bias": torch.ones(19)}, r"bias has shape \[19\], weight \[20, 20\]; need \[20\]"),
    ({"bias": torch.ones(20).double()}, "bias is torch.float64"),
    ({"accumulate_grad": 1}, "accumulate_grad is 1, need True or False"),
)


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_arguments(change, message):
    arguments = {
        "x": torch.ones(2, 11),
        "weight": torch.ones(20, 20),
        "bias": torch.ones(20),
        "c_out": 13,
    }
    with pytest.raises((TypeError, ValueError), match=f"^sliced_linear: .*{message}"):
        sliced_linear(**{**arguments, **change})
