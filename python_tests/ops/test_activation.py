"""activation beside PyTorch's gelu and an fp64 reference, in every instruction set of this CPU."""

from __future__ import annotations

import itertools
import math
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
    check_repeatable,
    compiled_graphs,
    forced_isa,
    normal,
    pooled,
    seeded,
    threads,
)
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ddsm_ext.ops import activation, activation_ref

KINDS = (None, "gelu", "gelu_tanh", "geglu")
NAMES = KINDS[1:]
DTYPES = (torch.float32, torch.bfloat16, torch.float64)
# c on either side of a vector's lanes, of four vectors', and of a thread's part of a gate
SHAPES = ((3, 1, 1), (2, 5, 8), (2, 3, 59), (2, 2, 3, 111), (1, 70, 300), (4, 257))


def plain(z: Tensor, kind: str | None, gate: Tensor | None, residual: Tensor | None) -> Tensor:
    """What a user writes in torch, each operation rounded by itself."""
    if kind == "geglu":
        value, half = z.chunk(2, dim=-1)
        y = value * F.gelu(half)
    elif kind == "gelu":
        y = F.gelu(z)
    else:
        y = z if kind is None else F.gelu(z, approximate="tanh")
    if gate is not None:
        y = gate.view(len(gate), *[1] * (y.dim() - 2), -1) * y
    return y if residual is None else residual + y


def tensors(
    seed: int, shape: tuple[int, ...], kind: str | None, dtype: torch.dtype, *, fused: bool
) -> list[Tensor | None]:
    generator = seeded(seed)
    c = shape[-1] * (2 if kind == "geglu" else 1)
    z = normal(generator, *shape[:-1], c, dtype=torch.float64) * 2
    gate = normal(generator, shape[0], shape[-1], dtype=dtype) if fused else None
    residual = normal(generator, *shape, dtype=dtype) if fused else None
    return [z.to(dtype), gate, residual]


def run(op: Any, kind: str | None, given: list[Tensor | None], grad_y: Tensor) -> list[Tensor]:
    z, gate, residual = (None if t is None else t.detach().requires_grad_() for t in given)
    if op is activation:
        y = activation(z, kind, gate=gate, residual=residual)
    else:
        y = plain(z, kind, gate, residual)
    leaves = [t for t in (z, gate, residual) if t is not None]
    return [y.detach(), *torch.autograd.grad(y, leaves, grad_y)]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fused", [False, True])
def test_as_exact_as_torch(isa: str, dtype: torch.dtype, kind: str | None, fused: bool) -> None:
    results = []
    for seed, shape in enumerate(SHAPES):
        given = tensors(seed, shape, kind, dtype, fused=fused)
        grad_y = normal(seeded(seed), *shape, dtype=dtype)
        wide = [None if t is None else t.double() for t in given]
        with forced_isa(isa):
            ours = run(activation, kind, given, grad_y)
        assert ours[0].is_contiguous()
        torchs = run(plain, kind, given, grad_y)
        results.append((ours, torchs, run(plain, kind, wide, grad_y.double())))
    of_all = [pooled(cases) for cases in zip(*results, strict=True)]
    for index, tensors_of_all in enumerate(zip(*of_all, strict=True)):
        check_error(*tensors_of_all, GRADIENT_RATIO if index else FORWARD_RATIO)


@pytest.mark.parametrize("isa", ISAS)
def test_gelu_in_the_tails(isa: str) -> None:
    """Relative to x Phi(x) by erfc: no cancellation where Phi is small; 0 where it has no float."""
    x = torch.linspace(-12.5, 12.5, 40001)
    wide = x.double()
    phi = 0.5 * torch.erfc(-wide / math.sqrt(2))
    with forced_isa(isa):
        y = activation(x[None], "gelu")[0].double()
    torch.testing.assert_close(y, wide * phi, rtol=6e-6, atol=0)
    near = x.abs() <= 5
    torch.testing.assert_close(y[near], (wide * phi)[near], rtol=7e-7, atol=0)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", NAMES)
def test_ends_of_the_numbers(isa: str, dtype: torch.dtype, kind: str) -> None:
    """Large numbers are kept or vanish, with slopes 1 and 0, and what is no number stays none."""
    x = torch.tensor([[-1e30, -100.0, -0.0, 0.0, 100.0, 1e30]], dtype=dtype)
    z = torch.cat([torch.ones_like(x), x], dim=1) if kind == "geglu" else x
    z.requires_grad_()
    with forced_isa(isa):
        y = activation(z, kind)
        (slope,) = torch.autograd.grad(y.sum(), z)
        broken = activation(torch.full_like(z, torch.nan), kind)
    torch.testing.assert_close(y, F.relu(x), rtol=0, atol=1e-6)
    expected = torch.tensor([[0, 0, 0.5, 0.5, 1, 1]], dtype=dtype)
    torch.testing.assert_close(slope[:, -6:], expected, rtol=0, atol=1e-5)
    assert broken.isnan().all()


@pytest.mark.parametrize("kind", KINDS)
def test_any_layout(kind: str | None) -> None:
    """Columns of a wider tensor are read where they are, rows in another order are copied."""
    z, gate, residual = tensors(1, (3, 4, 21), kind, torch.float32, fused=True)
    expected = activation(z, kind, gate=gate, residual=residual)

    def columns(x: Tensor) -> Tensor:
        return F.pad(x, (3, 2), value=torch.nan)[..., 3:-2]

    assert torch.equal(
        activation(columns(z), kind, gate=columns(gate), residual=columns(residual)), expected
    )
    turned = [t.transpose(0, 1).contiguous().transpose(0, 1) for t in (z, residual)]
    by_columns = gate.t().contiguous().t()
    assert torch.equal(activation(turned[0], kind, gate=by_columns, residual=turned[1]), expected)
    one = z[:1].expand(3, -1, -1)
    assert torch.equal(activation(one, kind), activation(one.contiguous(), kind))


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_alone_and_nothing_at_all(kind: str | None) -> None:
    blocks = 2 if kind == "geglu" else 1
    row = normal(seeded(2), blocks * 5)
    torch.testing.assert_close(activation(row, kind), plain(row, kind, None, None))
    for shape in ((0, 3), (0, 2, 3), (2, 0, 3)):
        z = torch.ones(*shape[:-1], blocks * 3, requires_grad=True)
        gate = torch.ones(shape[0], 3, requires_grad=True)
        for op in (activation, activation_ref):
            y = op(z, kind, gate=gate, residual=torch.ones(shape))
            assert y.shape == shape
            grads = torch.autograd.grad(y.sum(), [z, gate])
            assert [g.shape for g in grads] == [z.shape, gate.shape]
            assert not grads[1].any()


@pytest.mark.filterwarnings("ignore:ddsm_ext. the backward of sliced_activation has no kernels")
@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck_twice(kind: str | None) -> None:
    given = tensors(3, (2, 3, 5), kind, torch.float64, fused=True)
    leaves = [t.requires_grad_() for t in given]

    def call(z: Tensor, gate: Tensor, residual: Tensor) -> Tensor:
        return activation(z, kind, gate=gate, residual=residual).square()

    assert torch.autograd.gradcheck(call, leaves)
    assert torch.autograd.gradgradcheck(call, leaves)


@pytest.mark.parametrize("wanted", list(itertools.product([False, True], repeat=3)))
def test_only_what_is_wanted_gets_a_gradient(wanted: tuple[bool, ...]) -> None:
    given = tensors(4, (2, 3, 5), "geglu", torch.float32, fused=True)
    leaves = [t.requires_grad_(w) for t, w in zip(given, wanted, strict=True)]
    y = activation(leaves[0], "geglu", gate=leaves[1], residual=leaves[2])
    assert y.requires_grad == any(wanted)
    if not any(wanted):
        return
    y.sum().backward()
    everything = run(activation, "geglu", given, torch.ones(2, 3, 5))[1:]
    for leaf, want, expected in zip(leaves, wanted, everything, strict=True):
        assert (leaf.grad is not None) == want
        if want:
            assert torch.equal(leaf.grad, expected)


def samples() -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = []
    cases = itertools.product(range(4), (torch.float32, torch.bfloat16), (False, True))
    for seed, (number, dtype, fused) in enumerate(cases):
        z, gate, residual = tensors(seed, (2, 3, 7), KINDS[number], dtype, fused=fused)
        if seed % 3 == 0:
            z = as_layout(z, "sliced")
        found.append((z.requires_grad_(seed % 4 != 1), number, gate, residual))
    return found


@pytest.mark.slow
def test_opcheck() -> None:
    check_op(torch.ops.ddsm_ext.sliced_activation.default, samples())
    backward = []
    for z, number, gate, residual in samples():
        grad_y = torch.ones(2, 3, 7, dtype=z.dtype)
        grad_gate = None if gate is None else torch.empty(gate.shape)
        backward.append((grad_y, z.detach(), number, gate, grad_gate))
        del residual
    check_op(torch.ops.ddsm_ext.sliced_activation_backward.default, backward)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["gelu", "gelu_tanh"])
def test_far_from_zero_it_is_zero_or_the_number(isa: str, dtype: torch.dtype, kind: str) -> None:
    far = torch.finfo(dtype).max * torch.tensor([1e-30, 1e-10, 1e-3, 1.0], dtype=torch.float64)
    z = torch.cat((far, -far)).to(dtype).requires_grad_()
    with forced_isa(isa):
        y = activation(z, kind)
        (grad,) = torch.autograd.grad(y.sum(), z)
    assert torch.equal(y[:4], z[:4])
    assert y[4:].abs().max() < 1e-30
    torch.testing.assert_close(grad, torch.tensor([1, 0]).repeat_interleave(4).to(dtype))


def test_opcheck_of_one_sample() -> None:
    check_op(torch.ops.ddsm_ext.sliced_activation.default, samples()[-1:])


@pytest.mark.parametrize("kind", ["gelu_tanh", "geglu"])
def test_eleven_widths_compile_to_two_graphs(kind: str) -> None:
    calls = [
        tuple(
            t.requires_grad_() for t in tensors(n, (2, 3, 8 * n), kind, torch.float32, fused=True)
        )
        for n in range(1, 12)
    ]
    call = lambda z, gate, residual: activation(z, kind, gate=gate, residual=residual)  # noqa: E731
    assert compiled_graphs(call, calls, backward=True) <= 2


@pytest.mark.parametrize("shape", [(2, 300, 130), (5, 7, 520)], ids=str)
def test_repeatable_on_any_number_of_threads(shape: tuple[int, ...]) -> None:
    given = tensors(5, shape, "geglu", torch.float32, fused=True)
    grad_y = normal(seeded(5), *shape)
    with threads(1):
        expected = run(activation, "geglu", given, grad_y)
    for count in (1, 2, 3):
        with threads(count):
            check_repeatable(lambda: [*run(activation, "geglu", given, grad_y), *expected], 10)
            for a, b in zip(run(activation, "geglu", given, grad_y), expected, strict=True):
                assert torch.equal(a, b)


def test_autocast_casts_the_gate_and_the_residual() -> None:
    z, gate, residual = tensors(6, (2, 3, 8), "gelu", torch.bfloat16, fused=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = activation(z, "gelu", gate=gate.float(), residual=residual.float())
        wide = activation(z.float(), "gelu", gate=gate, residual=residual)
    assert torch.equal(y, activation(z, "gelu", gate=gate, residual=residual))
    assert wide.dtype == torch.float32


@pytest.mark.filterwarnings("ignore:ddsm_ext. sliced_activation has no")
def test_other_dtypes_run_plain_torch() -> None:
    z, gate, residual = tensors(7, (2, 3, 8), "geglu", torch.float16, fused=True)
    y = activation(z, "geglu", gate=gate, residual=residual)
    assert y.dtype == torch.float16
    wide = plain(z.double(), "geglu", gate.double(), residual.double())
    torch.testing.assert_close(y.double(), wide, rtol=1e-3, atol=1e-3)


def test_counts_no_flops() -> None:
    with FlopCounterMode(display=False) as counter:
        activation(torch.ones(2, 8, requires_grad=True), "geglu").sum().backward()
    assert counter.get_total_flops() == 0


BAD = (
    ({"z": 3}, TypeError, "z is int, need a torch.Tensor"),
    ({"z": torch.ones(2, 8).int()}, TypeError, "z has dtype torch.int32"),
    (
        {"z": torch.tensor(1.0)},
        ValueError,
        r"z has shape \[\] and kind is 'gelu'; need at least one",
    ),
    (
        {"z": torch.ones(2, 0)},
        ValueError,
        r"z has shape \[2, 0\] and kind is 'gelu'; need at least",
    ),
    (
        {"z": torch.ones(2, 7), "kind": "geglu"},
        ValueError,
        r"z has shape \[2, 7\] and kind is 'geglu'; need an even number of columns",
    ),
    ({"kind": 1}, TypeError, "the activation is 1; need None or a name"),
    (
        {"kind": "relu"},
        ValueError,
        "the activation is 'relu'; need None or one of gelu, gelu_tanh, geglu",
    ),
    ({"gate": torch.ones(3, 8)}, ValueError, r"gate has shape \[3, 8\]; need \[2, 8\]"),
    ({"gate": torch.ones(8)}, ValueError, r"gate has shape \[8\], need 2 dimensions"),
    (
        {"z": torch.ones(8), "gate": torch.ones(1, 8)},
        ValueError,
        r"gate has shape \[1, 8\]; need a result \[N, ..., c\]",
    ),
    (
        {"gate": torch.ones(2, 8).double()},
        TypeError,
        "gate has dtype torch.float64, x torch.float32; need one dtype",
    ),
    ({"residual": torch.ones(2, 4)}, ValueError, r"residual has shape \[2, 4\]; need \[2, 8\]"),
    (
        {"residual": torch.ones(2, 8, device="meta")},
        ValueError,
        "residual is on meta, x on cpu; need one device",
    ),
)


@pytest.mark.parametrize(("change", "error", "text"), BAD)
def test_refusals_name_the_values(change: dict[str, Any], error: type, text: str) -> None:
    arguments = {"z": torch.ones(2, 8), "kind": "gelu", **change}
    with pytest.raises(error, match=f"^activation: {text}"):
        activation(**arguments)


def test_raw_refusals() -> None:
    z, gate = torch.ones(2, 3, 8), torch.ones(2, 8)
    raw, backward = (
        torch.ops.ddsm_ext.sliced_activation,
        torch.ops.ddsm_ext.sliced_activation_backward,
    )
    for arguments, text in (
        ((z, 4), "activation is 4; need 0 to 3"),
        ((z, -1), "activation is -1; need 0 to 3"),
        ((z[..., :7], 3), "z has 7 columns; geglu needs two blocks"),
        ((z.half(), 1), "z is float16; the CPU kernel needs"),
        ((z, 1, gate[:1]), r"gate is not \[N, 8\]"),
        ((z, 1, None, gate), r"residual is not of the result's shape \[2, 3, 8\]"),
    ):
        with pytest.raises(RuntimeError, match=f"sliced_activation: {text}"):
            raw(*arguments)
    for arguments, text in (
        ((z[..., :4], z, 1, None, None), r"grad_y is not \[2, 3, 8\]"),
        ((z, z, 1, gate, gate.double()), r"grad_gate is not a contiguous \[2, 8\]"),
        ((z, z, 1, gate, torch.ones(1, 8).expand(2, 8)), r"grad_gate is not a contiguous"),
    ):
        with pytest.raises(RuntimeError, match=f"sliced_activation_backward: {text}"):
            backward(*arguments)
