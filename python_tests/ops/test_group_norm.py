"""sliced_group_norm against fp64 and PyTorch: values, gradients, locality, refusals."""

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
    as_layout,
    check_error,
    check_op,
    check_outside_unchanged,
    check_repeatable,
    compiled_graphs,
    forced_isa,
    normal,
    poisoned,
    seeded,
    threads,
)
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ddsm_ext.ops import sliced_group_norm, sliced_group_norm_ref

C_MAX = 128
WIDTHS = [(1, 1), (3, 3), (8, 4), (59, 1), (111, 3), (128, 32)]  # (channels, groups)
# (c, c2, groups): in the last three, groups hold channels of both sources.
PAIRS = [(8, 8, 4), (5, 4, 3), (59, 31, 6), (64, 32, 1)]
C2_OFFSET = 70
DTYPES = [torch.float32, torch.bfloat16]


def torch_norm(
    z: Tensor, gamma: Tensor, beta: Tensor, groups: int, silu: bool, eps: float = 1e-5
) -> Tensor:
    """PyTorch's own two calls, in z's dtype."""
    y = torch.group_norm(z, groups, gamma, beta, eps)
    return F.silu(y) if silu else y


def parameters(dtype: torch.dtype, seed: int = 7) -> tuple[Tensor, Tensor]:
    generator = seeded(seed)
    return normal(generator, C_MAX, dtype=dtype), normal(generator, C_MAX, dtype=dtype)


def leaf(x: Tensor) -> Tensor:
    return x.detach().clone().requires_grad_()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("c", "groups"), WIDTHS)
@pytest.mark.parametrize("silu", [False, True])
def test_forward_is_as_exact_as_torch(
    isa: str, dtype: torch.dtype, c: int, groups: int, silu: bool
) -> None:
    # A mean of three standard deviations: a one-pass variance would lose digits here.
    x = (normal(seeded(c), 4, c, 15, 16) * 2 + 6).to(dtype)
    weight, bias = parameters(dtype)
    with forced_isa(isa):
        ours = sliced_group_norm(x, weight, bias, groups, silu=silu)
    exact = torch_norm(x.double(), weight[:c].double(), bias[:c].double(), groups, silu)
    check_error(ours, torch_norm(x, weight[:c], bias[:c], groups, silu), exact, FORWARD_RATIO)
    assert ours.is_contiguous(memory_format=torch.channels_last)


def gradients(norm: Any, inputs: list[Tensor], grad: Tensor) -> list[Tensor]:
    leaves = [leaf(tensor) for tensor in inputs]
    norm(*leaves).backward(grad.to(leaves[0].dtype))
    return [tensor.grad for tensor in leaves]  # type: ignore[misc]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("c", "groups"), WIDTHS)
@pytest.mark.parametrize("silu", [False, True])
def test_gradients_are_as_exact_as_torchs(
    isa: str, dtype: torch.dtype, c: int, groups: int, silu: bool
) -> None:
    x = (normal(seeded(c), 4, c, 15, 16) * 2 + 1).to(dtype)
    grad = normal(seeded(c + 1), 4, c, 15, 16, dtype=dtype)
    weight, bias = parameters(dtype)

    def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch_norm(x, weight[:c], bias[:c], groups, silu)

    with forced_isa(isa):
        ours = gradients(
            lambda *a: sliced_group_norm(*a, groups, silu=silu), [x, weight, bias], grad
        )
    torchs = gradients(plain, [x, weight, bias], grad)
    exact = gradients(plain, [x.double(), weight.double(), bias.double()], grad)
    for triple in zip(ours, torchs, exact, strict=True):
        check_error(*triple, GRADIENT_RATIO)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("c", "c2", "groups"), PAIRS)
def test_two_sources_are_one_concat(
    isa: str, dtype: torch.dtype, c: int, c2: int, groups: int
) -> None:
    z = (normal(seeded(c), 3, c + c2, 9, 8) * 2 + 1).to(dtype)
    grad = normal(seeded(c + 1), 3, c + c2, 9, 8, dtype=dtype)
    weight, bias = parameters(dtype)
    part = slice(C2_OFFSET, C2_OFFSET + c2)

    def plain(z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        gamma = torch.cat([weight[:c], weight[part]])
        return torch_norm(z, gamma, torch.cat([bias[:c], bias[part]]), groups, True)

    def two(z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y, y2 = sliced_group_norm(
            z[:, :c], weight, bias, groups, x2=z[:, c:], c2_offset=C2_OFFSET, silu=True
        )
        assert y.shape[1] == c
        assert y2.shape[1] == c2
        return torch.cat([y, y2], dim=1)

    inputs = [z, weight, bias]
    exact_inputs = [tensor.double() for tensor in inputs]
    with forced_isa(isa):
        check_error(two(*inputs), plain(*inputs), plain(*exact_inputs), FORWARD_RATIO)
        ours = gradients(two, inputs, grad)
    torchs, exact = gradients(plain, inputs, grad), gradients(plain, exact_inputs, grad)
    for triple in zip(ours, torchs, exact, strict=True):
        check_error(*triple, GRADIENT_RATIO)


def test_only_one_of_two_outputs_used() -> None:
    x, x2 = (normal(seeded(s), 2, 8, 4, 4).requires_grad_() for s in (0, 1))
    weight, bias = parameters(torch.float32)
    for used in (0, 1):
        results = [
            torch.autograd.grad(norm(x, weight, bias, 4, x2=x2, silu=True)[used].sum(), [x, x2])
            for norm in (sliced_group_norm, sliced_group_norm_ref)
        ]
        for ours, reference in zip(*results, strict=True):
            torch.testing.assert_close(ours, reference)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("c", [1, 8, 59])
def test_memory_format_does_not_change_a_bit(dtype: torch.dtype, c: int) -> None:
    x, grad = (normal(seeded(s), 2, c, 6, 5, dtype=dtype) for s in (0, 1))
    weight, bias = parameters(dtype)

    def run(layout: str) -> list[Tensor]:
        leaves = [as_layout(x, layout).detach().requires_grad_(), leaf(weight), leaf(bias)]
        y = sliced_group_norm(*leaves, 1, silu=True)
        y.backward(as_layout(grad, layout))
        return [y, *(tensor.grad for tensor in leaves)]  # type: ignore[list-item]

    expected = run("contiguous")
    for layout in ("channels_last", "sliced"):
        for ours, first in zip(run(layout), expected, strict=True):
            assert torch.equal(ours, first)
    expanded = x[:, :, :, :1].expand(-1, -1, -1, 5)
    dense = expanded.contiguous()
    assert torch.equal(*(sliced_group_norm(z, weight, bias, 1) for z in (expanded, dense)))


@pytest.mark.parametrize("shape", [(0, 8, 4, 4), (2, 8, 0, 4)])
def test_empty_input_gives_empty_output_and_zero_gradients(shape: tuple[int, ...]) -> None:
    x, (weight, bias) = leaf(torch.zeros(shape)), parameters(torch.float32)
    weight, bias = leaf(weight), leaf(bias)
    y = sliced_group_norm(x, weight, bias, 4, silu=True)
    assert y.shape == shape
    y.sum().backward()
    for tensor in (x, weight, bias):
        assert tensor.grad is not None
        assert not tensor.grad.any()


def test_constant_input_gives_beta() -> None:
    weight, bias = parameters(torch.float32)
    y = sliced_group_norm(torch.full((2, 8, 70, 3), 1e4), weight, bias, 2)
    torch.testing.assert_close(y, bias[:8].view(1, 8, 1, 1).expand_as(y), rtol=0, atol=0)


def test_infinity_and_nan_are_not_hidden() -> None:
    weight, bias = parameters(torch.float32)
    for bad in (float("nan"), float("inf")):
        x = normal(seeded(0), 2, 8, 4, 4)
        x[0, 0, 1, 1] = bad
        y = sliced_group_norm(x, weight, bias, 2, silu=True)
        assert y[0, :4].isnan().all()
        assert y[0, 4:].isfinite().all()
        assert y[1].isfinite().all()


@pytest.mark.parametrize("seed", range(10))
def test_gradcheck(seed: int) -> None:
    generator = seeded(seed)
    c, c2 = 3 + seed % 3, 3 * (seed % 2) + (-seed) % 3 + 1
    groups = next(g for g in (3, 2, 1) if (c + c2) % g == 0)
    tensors = [normal(generator, 2, k, 3, 2, dtype=torch.float64).requires_grad_() for k in (c, c2)]
    params = [normal(generator, 20, dtype=torch.float64).requires_grad_() for _ in range(2)]

    def norm(x: Tensor, x2: Tensor, weight: Tensor, bias: Tensor) -> Any:
        return sliced_group_norm(
            x, weight, bias, groups, x2=x2, c2_offset=10, silu=seed % 4 > 0, eps=1e-3
        )

    assert torch.autograd.gradcheck(norm, [*tensors, *params])


def test_opcheck() -> None:
    samples = []
    for dtype, c2, silu, layout in itertools.product(
        DTYPES, (0, 5), (False, True), ("contiguous", "channels_last", "sliced")
    ):
        x = as_layout(normal(seeded(0), 2, 7, 4, 3, dtype=dtype), layout).requires_grad_()
        x2 = normal(seeded(1), 2, c2, 4, 3, dtype=dtype).requires_grad_() if c2 else None
        weight, bias = (tensor.requires_grad_() for tensor in parameters(dtype))
        groups = 3 if c2 else 7
        samples.append((x, x2, weight, bias, groups, 9, 1e-5, silu))
    check_op(torch.ops.ddsm_ext.sliced_group_norm.default, samples)


def test_opcheck_backward() -> None:
    samples = []
    for c2, silu, wanted in itertools.product((0, 5), (False, True), (0, 1, 2)):
        x, grad = (normal(seeded(s), 2, 7, 4, 3) for s in (0, 1))
        x2, grad2 = (normal(seeded(s), 2, 5, 4, 3) if c2 else None for s in (2, 3))
        weight, bias = parameters(torch.float32)
        groups = 3 if c2 else 7
        _, _, mean, rstd = torch.ops.ddsm_ext.sliced_group_norm(
            x, x2, weight, bias, groups, 9, 1e-5, silu
        )
        targets = [torch.zeros(C_MAX) if i < wanted else None for i in range(2)]
        samples.append((grad, grad2, x, x2, weight, bias, mean, rstd, groups, 9, silu, *targets))
    check_op(torch.ops.ddsm_ext.sliced_group_norm_backward.default, samples)


def test_eleven_widths_compile_to_two_graphs() -> None:
    weight, bias = (tensor.requires_grad_() for tensor in parameters(torch.float32))
    calls = [
        (normal(seeded(c), 2, c, 4, 4).requires_grad_(), weight, bias, c // 4)
        for c in range(8, 96, 8)
    ]

    def one(x: Tensor, weight: Tensor, bias: Tensor, groups: int) -> Tensor:
        return sliced_group_norm(x, weight, bias, groups, silu=True)

    def two(x: Tensor, weight: Tensor, bias: Tensor, groups: int) -> Tensor:
        y, y2 = sliced_group_norm(x, weight, bias, groups, x2=x[:, ::2], silu=True)
        return torch.cat([y, y2], dim=1)

    assert compiled_graphs(one, calls, backward=True) <= 2
    assert compiled_graphs(two, [(*c[:3], 4) for c in calls[:10]], backward=True) <= 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("accumulate", [False, True])
def test_nothing_outside_the_slices_is_touched(dtype: torch.dtype, accumulate: bool) -> None:
    c, c2 = 9, 6
    x, x2 = (
        as_layout(normal(seeded(k), 2, k, 5, 4, dtype=dtype), "sliced").detach().requires_grad_()
        for k in (c, c2)
    )
    used = torch.zeros(C_MAX, dtype=torch.bool)
    used[:c] = used[C2_OFFSET : C2_OFFSET + c2] = True
    weight, bias = (
        torch.where(used, tensor, float("nan")).requires_grad_() for tensor in parameters(dtype)
    )
    if accumulate:
        weight.grad, bias.grad = (torch.where(used, 1.0, float("nan")).to(dtype) for _ in "wb")
    before = [None if t.grad is None else t.grad.clone() for t in (weight, bias)]
    y, y2 = sliced_group_norm(
        x,
        weight,
        bias,
        5,
        x2=x2,
        c2_offset=C2_OFFSET,
        silu=True,
        accumulate_grad=accumulate,
    )
    (y.sum() + 2 * y2.sum()).backward()
    for tensor in (y, y2, x.grad, x2.grad):
        assert torch.isfinite(tensor).all()  # type: ignore[arg-type]
    for tensor, old in zip((weight, bias), before, strict=True):
        start = torch.zeros_like(tensor) if old is None else old
        assert tensor.grad is not None
        check_outside_unchanged(tensor.grad, start, used)  # type: ignore[arg-type]


def test_accumulate_grad_adds_what_autograd_adds() -> None:
    x = normal(seeded(0), 2, 12, 5, 4)
    results = []
    for accumulate in (False, True):
        weight, bias = (leaf(tensor) for tensor in parameters(torch.float32))
        for groups in (3, 4):
            y = sliced_group_norm(x, weight, bias, groups, accumulate_grad=accumulate, silu=True)
            y.square().sum().backward()
        results.append((weight.grad, bias.grad))
    for plain, accumulated in zip(*results, strict=True):
        torch.testing.assert_close(plain, accumulated)


def test_frozen_parameters_and_frozen_input() -> None:
    x = normal(seeded(0), 2, 8, 4, 4)
    weight, bias = parameters(torch.float32)
    for frozen in range(3):
        leaves = [leaf(t).requires_grad_(i != frozen) for i, t in enumerate((x, weight, bias))]
        sliced_group_norm(*leaves, 4).square().sum().backward()
        assert [tensor.grad is None for tensor in leaves] == [i == frozen for i in range(3)]


def test_float32_parameters_with_bfloat16_activations() -> None:
    x = normal(seeded(0), 2, 24, 7, 5, dtype=torch.bfloat16)
    grad = normal(seeded(1), 2, 24, 7, 5, dtype=torch.bfloat16)
    weight, bias = parameters(torch.float32)
    inputs = [leaf(tensor) for tensor in (x, weight, bias)]
    y = sliced_group_norm(*inputs, 6, silu=True)
    y.backward(grad)
    exact = [leaf(tensor.double()) for tensor in (x, weight, bias)]
    z = torch_norm(exact[0], exact[1][:24], exact[2][:24], 6, True)
    z.backward(grad.double())
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), z, rtol=2**-8, atol=1e-6)
    for tensor, expected, tolerance in zip(inputs, exact, (2**-8, 1e-5, 1e-5), strict=True):
        assert tensor.grad is not None
        assert tensor.grad.dtype == tensor.dtype
        torch.testing.assert_close(
            tensor.grad.double(), expected.grad, rtol=tolerance, atol=tolerance
        )


def test_autocast_keeps_the_activations_dtype() -> None:
    weight, bias = parameters(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for dtype in (torch.float32, torch.bfloat16):
            x = normal(seeded(0), 2, 8, 4, 4, dtype=dtype)
            assert sliced_group_norm(x, weight, bias, 4).dtype == dtype


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_repeatable(dtype: torch.dtype) -> None:
    x = normal(seeded(0), 3, 40, 16, 16, dtype=dtype).requires_grad_()
    weight, bias = (tensor.requires_grad_() for tensor in parameters(dtype))

    def backward() -> list[Tensor]:
        y = sliced_group_norm(x, weight, bias, 5, silu=True)
        return [y, *torch.autograd.grad(y.square().sum(), [x, weight, bias])]

    for count in (1, 2):
        with threads(count):
            check_repeatable(lambda: [sliced_group_norm(x, weight, bias, 5, silu=True)], 250)
            check_repeatable(backward, 50)
    with threads(1):
        one = backward()
    with threads(2):
        assert all(torch.equal(a, b) for a, b in zip(one, backward(), strict=True))


def test_reference_equals_the_kernel() -> None:
    x, x2 = normal(seeded(0), 2, 9, 4, 4), normal(seeded(1), 2, 6, 4, 4)
    weight, bias = parameters(torch.float32)
    more: dict[str, Any] = {"x2": x2, "c2_offset": 20, "silu": True, "eps": 1e-3}
    ours = sliced_group_norm(x, weight, bias, 5, **more)
    for pair in zip(ours, sliced_group_norm_ref(x, weight, bias, 5, **more), strict=True):
        torch.testing.assert_close(*pair)


def test_norm_counts_no_flops() -> None:
    weight, bias = parameters(torch.float32)
    with FlopCounterMode(display=False) as counter:
        sliced_group_norm(normal(seeded(0), 1, 8, 4, 4), weight, bias, 4)
    assert counter.get_total_flops() == 0


def test_poisoned_helper_keeps_the_prefix() -> None:
    weight, bias = parameters(torch.float32)
    x = normal(seeded(0), 1, 8, 4, 4)
    clean = sliced_group_norm(x, weight, bias, 4)
    ours = sliced_group_norm(x, poisoned(weight, slice(8)), poisoned(bias, slice(8)), 4)
    assert torch.equal(ours, clean)
