"""sliced_layer_norm against fp64 and PyTorch: values, gradients, locality."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from ops.op_checks import (
    FORWARD_RATIO,
    GRADIENT_RATIO,
    ISAS,
    check_error,
    check_op,
    check_outside_unchanged,
    check_repeatable,
    compiled_graphs,
    forced_isa,
    normal,
    poisoned,
    pooled,
    seeded,
    threads,
)
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ddsm_ext.ops import sliced_layer_norm, sliced_layer_norm_ref

C_MAX = 128
WIDTHS = [1, 3, 8, 59, 111, C_MAX]
DTYPES = [torch.float32, torch.bfloat16]
KINDS = ["plain", "affine", "modulated", "both"]
Given = dict[str, Tensor]


def torch_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    """What a user writes, in x's dtype, of [N, T, c]."""
    c = x.shape[-1]
    affine = [None if p is None else p[:c] for p in (weight, bias)]
    y = F.layer_norm(x, (c,), *affine)
    return y if scale is None or shift is None else y * (1 + scale[:, None]) + shift[:, None]


def ours(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, **more: Any
) -> Tensor:
    return sliced_layer_norm(x, weight, bias, **more)


def inputs(c: int, dtype: torch.dtype, kind: str = "both", seed: int = 0, rows: int = 37) -> Given:
    """x [4, rows, c] and what its kind has, scale and shift as columns of one tensor."""
    generator = seeded(100 * seed + c)
    # A mean of three standard deviations: a one-pass variance would lose digits here.
    given = {"x": normal(generator, 4, rows, c) * 2 + 6}
    if kind in ("affine", "both"):
        given |= {name: normal(generator, C_MAX) for name in ("weight", "bias")}
    film = normal(generator, 4, 2 * c).to(dtype)
    given = {name: value.to(dtype) for name, value in given.items()}
    if kind in ("modulated", "both"):
        given |= {"scale": film[:, :c], "shift": film[:, c:]}
    return given


def with_gradients(norm: Any, given: Given, grad_y: Tensor) -> list[Tensor]:
    """The output, then the gradient of each input."""
    leaves = {name: t.detach().requires_grad_() for name, t in given.items()}
    y = norm(**leaves)
    grads = torch.autograd.grad(y, list(leaves.values()), grad_y.to(y.dtype))
    return [y.detach(), *grads]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("c", WIDTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_as_exact_as_torch(isa: str, dtype: torch.dtype, c: int, kind: str) -> None:
    results: list[list[list[Tensor]]] = [[], [], []]
    for seed in range(8 if c < 16 else 1):  # the largest error of a few numbers is mostly luck
        given = inputs(c, dtype, kind, seed)
        grad_y = normal(seeded(seed), *given["x"].shape, dtype=dtype)
        with forced_isa(isa):
            results[0].append(with_gradients(ours, given, grad_y))
        results[1].append(with_gradients(torch_norm, given, grad_y))
        wide = {name: t.double() for name, t in given.items()}
        results[2].append(with_gradients(torch_norm, wide, grad_y))
    y, grad_x, *rest = zip(*map(pooled, results), strict=True)
    check_error(*y, FORWARD_RATIO)
    for triple in rest:
        check_error(*triple, GRADIENT_RATIO)
    if c == 1:  # it is 0, times 1 / sqrt(eps) what cancels is rounded to
        assert grad_x[0].abs().max() < 1e-3
    else:
        check_error(*grad_x, GRADIENT_RATIO)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("c", [1000, 1152])
def test_long_rows_in_double_and_float(isa: str, c: int) -> None:
    for dtype in (torch.float32, torch.float64):
        x, grad_y = (normal(seeded(s), 2, 9, c, dtype=dtype) for s in (0, 1))
        with forced_isa(isa):
            found = with_gradients(ours, {"x": x + 3}, grad_y)
        torchs = with_gradients(torch_norm, {"x": x + 3}, grad_y)
        exact = with_gradients(torch_norm, {"x": (x + 3).double()}, grad_y)
        check_error(found[0], torchs[0], exact[0], FORWARD_RATIO)
        check_error(found[1], torchs[1], exact[1], GRADIENT_RATIO)


def layouts(x: Tensor) -> dict[str, Tensor]:
    """x [N, T, c] in memory of other strides."""
    n, t, c = x.shape
    wide, long = x.new_full((n, t, c + 5), torch.nan), x.new_full((n, t + 2, c), torch.nan)
    wide[:, :, :c], long[:, 1:-1] = x, x
    return {
        "channels": wide[:, :, :c],
        "rows": long[:, 1:-1],
        "channels first": x.transpose(1, 2).contiguous().transpose(1, 2),
        "images last": x.permute(1, 2, 0).contiguous().permute(2, 0, 1),
        "rows first": x.transpose(0, 1).contiguous().transpose(0, 1),
    }


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
@pytest.mark.parametrize("c", [1, 8, 59])
@pytest.mark.parametrize("kind", ["affine", "both"])
def test_strides_do_not_change_a_bit(dtype: torch.dtype, c: int, kind: str) -> None:
    given = inputs(c, dtype, kind, rows=35)
    grad_y = normal(seeded(1), 4, 35, c, dtype=dtype)
    first = with_gradients(ours, given, grad_y)
    for (name, x), grad in zip(layouts(given["x"]).items(), layouts(grad_y).values(), strict=True):
        for a, b in zip(with_gradients(ours, {**given, "x": x}, grad), first, strict=True):
            assert torch.equal(a, b), name
            assert a.is_contiguous()
    row = given["x"][:, :1].expand(-1, 6, -1)
    more = {**given, "x": row}
    assert torch.equal(ours(**more), ours(**{**more, "x": row.contiguous()}))


@pytest.mark.parametrize("shape", [(4, 12), (4, 1, 12), (4, 3, 2, 12), (4, 2, 1, 3, 12)])
def test_dimensions_in_between(shape: tuple[int, ...]) -> None:
    """All are rows of their image."""
    given = inputs(12, torch.float32)
    x = normal(seeded(3), *shape)
    rows = {**given, "x": x.reshape(4, -1, 12)}
    grad_y = normal(seeded(4), *shape)
    found = with_gradients(ours, {**given, "x": x}, grad_y)
    expected = with_gradients(torch_norm, rows, grad_y.reshape(4, -1, 12))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.reshape(b.shape), b, rtol=1e-4, atol=1e-4)
    assert found[0].shape == shape


def test_pixels_of_an_image_in_channels_last() -> None:
    """Read and written where they are: no copy, whose address would be another."""
    x = normal(seeded(0), 2, 12, 5, 4).contiguous(memory_format=torch.channels_last)
    y = sliced_layer_norm(x.permute(0, 2, 3, 1), None, None).permute(0, 3, 1, 2)
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, F.layer_norm(x.permute(0, 2, 3, 1), (12,)).permute(0, 3, 1, 2))


def test_only_one_of_scale_and_shift_has_a_gradient() -> None:
    given = inputs(6, torch.float32)
    for wanted in ("scale", "shift"):
        leaf = given[wanted].clone().requires_grad_()
        ours(**{**given, wanted: leaf}).square().sum().backward()
        expected = given[wanted].clone().requires_grad_()
        torch_norm(**{**given, wanted: expected}).square().sum().backward()
        torch.testing.assert_close(leaf.grad, expected.grad, rtol=1e-4, atol=1e-4)


def test_strides_of_scale_and_shift_do_not_change_a_bit() -> None:
    """Columns of a wider tensor, rows of their own, a transposed one, one row for all images."""
    given = inputs(10, torch.float32)
    scale, shift = given["scale"], given["shift"]
    dense = scale.contiguous(), shift.contiguous()
    first = ours(**given)
    for a, b in (dense, (dense[0].t().contiguous().t(), shift), (dense[0], shift)):
        assert torch.equal(ours(**{**given, "scale": a, "shift": b}), first)
    row = scale[:1].expand(4, -1)
    one = [{**given, "scale": r, "shift": r} for r in (row, row.contiguous())]
    assert torch.equal(ours(**one[0]), ours(**one[1]))


@pytest.mark.parametrize("shape", [(0, 8), (0, 3, 8), (2, 0, 8), (2, 3, 0, 8)])
def test_empty_input_gives_empty_output_and_zero_gradients(shape: tuple[int, ...]) -> None:
    given = {name: torch.ones(16, requires_grad=True) for name in ("weight", "bias")}
    film = torch.ones(shape[0], 16, requires_grad=True)
    x = torch.zeros(shape, requires_grad=True)
    y = ours(x, **given, scale=film[:, :8], shift=film[:, 8:])
    assert y.shape == shape
    y.sum().backward()
    for tensor in (x, film, *given.values()):
        assert tensor.grad is not None
        assert not tensor.grad.any()


def test_constant_rows_give_beta() -> None:
    weight, bias = (normal(seeded(s), 64) for s in (0, 1))
    for value in (1e4, 0.1, -7.3):
        y = sliced_layer_norm(torch.full((2, 5, 59), value), weight, bias)
        torch.testing.assert_close(y, bias[:59].expand_as(y), rtol=0, atol=0)


def test_infinity_and_nan_are_not_hidden() -> None:
    for bad in (float("nan"), float("inf")):
        x = normal(seeded(0), 2, 6, 20)
        x[0, 2, 17] = bad
        y = sliced_layer_norm(x, None, None)
        assert y[0, 2].isnan().all()
        assert y[0, [0, 1, 3, 4, 5]].isfinite().all()
        assert y[1].isfinite().all()


@pytest.mark.parametrize("seed", range(10))
def test_gradcheck(seed: int) -> None:
    c = 3 + seed % 4
    given = inputs(c, torch.float64, KINDS[seed % 4], seed, rows=3)
    leaves = [t.detach()[:2].clone().requires_grad_() if name in ("x", "scale", "shift")
              else t.requires_grad_() for name, t in given.items()]  # fmt: skip

    def norm(*tensors: Tensor) -> Tensor:
        return ours(**dict(zip(given, tensors, strict=True)), eps=1e-3)

    assert torch.autograd.gradcheck(norm, leaves)


def test_opcheck() -> None:
    forward, backward = [], []
    for dtype, kind, wanted in itertools.product(DTYPES, KINDS, (False, True)):
        given: dict[str, Any] = inputs(7, dtype, kind, rows=3)
        x, weight, bias, scale, shift = (
            given.get(name) for name in ("x", "weight", "bias", "scale", "shift")
        )
        y, mean, rstd = torch.ops.ddsm_ext.sliced_layer_norm(x, weight, bias, 1e-5, scale, shift)
        grads = [
            torch.zeros_like(t, memory_format=torch.contiguous_format)
            if wanted and t is not None
            else None
            for t in (weight, bias, scale, shift)
        ]
        backward.append((y, x, weight, bias, mean, rstd, *grads[:2], scale, shift, *grads[2:]))
        leaves = [
            t if t is None else t.detach().requires_grad_(wanted)
            for t in (x, weight, bias, scale, shift)
        ]
        forward.append((*leaves[:3], 1e-5, *leaves[3:]))
    check_op(torch.ops.ddsm_ext.sliced_layer_norm.default, forward)
    check_op(torch.ops.ddsm_ext.sliced_layer_norm_backward.default, backward)


def test_eleven_widths_compile_to_two_graphs() -> None:
    weight, bias = (normal(seeded(s), 96).requires_grad_() for s in (0, 1))
    film = normal(seeded(2), 2, 192).requires_grad_()
    calls = [
        (normal(seeded(c), 2, 6, c).requires_grad_(), weight, bias, film) for c in range(8, 96, 8)
    ]

    def modulated(x: Tensor, weight: Tensor, bias: Tensor, film: Tensor) -> Tensor:
        scale, shift = film[:, : x.shape[-1]], film[:, 96 : 96 + x.shape[-1]]
        return sliced_layer_norm(x, weight, bias, scale=scale, shift=shift)

    assert compiled_graphs(modulated, calls, backward=True) <= 2
    assert compiled_graphs(sliced_layer_norm, [c[:3] for c in calls], backward=True) <= 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("accumulate", [False, True])
def test_nothing_outside_the_slices_is_touched(dtype: torch.dtype, accumulate: bool) -> None:
    c = 9
    given: dict[str, Any] = inputs(c, dtype, rows=5)
    keep = slice(c)
    given["x"] = layouts(given["x"])["channels"].detach().requires_grad_()
    for name in ("weight", "bias"):
        given[name] = poisoned(given[name], keep).requires_grad_()
        if accumulate:
            given[name].grad = poisoned(torch.ones_like(given[name]), keep)
    before = [None if given[p].grad is None else given[p].grad.clone() for p in ("weight", "bias")]
    y = ours(**given, accumulate_grad=accumulate)
    y.sum().backward()
    assert torch.isfinite(y).all()
    assert torch.isfinite(given["x"].grad).all()
    for name, old in zip(("weight", "bias"), before, strict=True):
        grad = given[name].grad
        check_outside_unchanged(grad, torch.zeros_like(grad) if old is None else old, keep)


def test_accumulate_grad_adds_what_autograd_adds() -> None:
    given = inputs(12, torch.float32)
    results = []
    for accumulate in (False, True):
        leaves = {name: t.clone().requires_grad_() for name, t in given.items() if name != "x"}
        for factor in (1.0, 2.0):
            y = ours(given["x"] * factor, **leaves, accumulate_grad=accumulate)
            y.square().sum().backward()
        results.append([leaf.grad for leaf in leaves.values()])
    for plain, accumulated in zip(*results, strict=True):
        torch.testing.assert_close(plain, accumulated)


def test_frozen_parameters_and_frozen_input() -> None:
    given = inputs(8, torch.float32)
    for frozen in given:
        leaves = {name: t.clone().requires_grad_(name != frozen) for name, t in given.items()}
        ours(**leaves).square().sum().backward()
        assert [name for name, t in leaves.items() if t.grad is None] == [frozen]


def test_float32_parameters_with_bfloat16_activations() -> None:
    given = inputs(24, torch.bfloat16)
    given |= {name: normal(seeded(1), C_MAX) for name in ("weight", "bias")}
    grad_y = normal(seeded(2), *given["x"].shape, dtype=torch.bfloat16)
    found = with_gradients(ours, given, grad_y)
    exact = with_gradients(torch_norm, {k: t.double() for k, t in given.items()}, grad_y)
    for got, expected, like in zip(found, exact, (given["x"], *given.values()), strict=True):
        assert got.dtype == like.dtype
        relative = 1e-5 if got.dtype == torch.float32 else 2**-8
        atol = relative * expected.abs().max().item()
        torch.testing.assert_close(got.double(), expected, rtol=0, atol=atol)


def test_autocast_keeps_the_activations_dtype_and_takes_what_a_linear_layer_gives() -> None:
    given = inputs(8, torch.float32)
    film = {name: given[name].to(torch.bfloat16) for name in ("scale", "shift")}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for dtype in (torch.float32, torch.bfloat16):
            x = given["x"].to(dtype)
            y = ours(x, given["weight"], given["bias"], **film)
            assert y.dtype == dtype
    y = ours(**{**given, **{name: t.float() for name, t in film.items()}})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ours(**{**given, **film}), y)


@pytest.mark.filterwarnings("ignore:ddsm_ext. sliced_layer_norm has no")
def test_other_dtypes_run_plain_torch() -> None:
    given = inputs(6, torch.float16)
    exact = torch_norm(**{name: t.double() for name, t in given.items()})
    torch.testing.assert_close(ours(**given).double(), exact, rtol=1e-2, atol=1e-2)


def test_reference_equals_the_kernel() -> None:
    given = inputs(9, torch.float32)
    x, weight, bias, scale, shift = given.values()
    more: dict[str, Any] = {"scale": scale, "shift": shift, "eps": 1e-3}
    expected = sliced_layer_norm_ref(x, weight, bias, **more)
    torch.testing.assert_close(sliced_layer_norm(x, weight, bias, **more), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_repeatable(dtype: torch.dtype) -> None:
    given = inputs(40, dtype, rows=301)
    grad_y = normal(seeded(1), *given["x"].shape, dtype=dtype)
    for count in (1, 2):
        with threads(count):
            check_repeatable(lambda: [ours(**given)], 250)
            check_repeatable(lambda: with_gradients(ours, given, grad_y), 50)
    found = []
    for count in (1, 2, 3):
        with threads(count):
            found.append(with_gradients(ours, given, grad_y))
    for again in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(again, found[0], strict=True))


def test_norm_counts_no_flops() -> None:
    with FlopCounterMode(display=False) as counter:
        sliced_layer_norm(normal(seeded(0), 1, 4, 8), None, None)
    assert counter.get_total_flops() == 0
