"""sliced_linear with weights of several blocks, an activation, a gate and a residual."""

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

from ddsm_ext.ops import activation, sliced_linear, sliced_linear_ref

C_MAX = 80
DTYPES = (torch.float32, torch.bfloat16, torch.float64)
# blocks (0: a weight of two dimensions), activation
FORMS = ((0, "gelu"), (0, "gelu_tanh"), (1, None), (2, "geglu"), (3, "gelu"), (6, None))
# rows an image, c_in, c_out: few rows are dot products, few outputs, too
SIZES = ((1, 59, 40), (3, 8, 59), (20, 59, C_MAX), (35, C_MAX, 17), (40, 33, 3))


def plain(
    x: Tensor, w: Tensor, b: Tensor | None, c: int, kind: str | None, gate: Any, residual: Any
) -> Tensor:
    """What a user writes in torch: the blocks' slices side by side, then each operation."""
    c_in = x.shape[-1]
    rows = [block[:c, :c_in] for block in (w if w.dim() == 3 else w[None])]
    row = None
    if b is not None:
        row = torch.cat([block[:c] for block in (b if w.dim() == 3 else b[None])])
    y = F.linear(x, torch.cat(rows), row)
    if kind == "geglu":
        value, half = y.chunk(2, dim=-1)
        y = value * F.gelu(half)
    elif kind is not None:
        y = F.gelu(y, approximate="tanh" if kind == "gelu_tanh" else "none")
    if gate is not None:
        y = gate[:, None] * y
    return y if residual is None else residual + y


def ours(
    x: Tensor, w: Tensor, b: Tensor | None, c: int, kind: str | None, gate: Any, residual: Any
) -> Tensor:
    return sliced_linear(x, w, b, c, activation=kind, gate=gate, residual=residual)


class Case:
    """x [N, rows, c_in], a weight of some blocks, a gate and a residual."""

    def __init__(
        self, blocks: int, kind: str | None, sizes: tuple[int, int, int], dtype: torch.dtype,
        *, fused: bool = True, images: int = 2,
    ) -> None:  # fmt: skip
        rows, c_in, self.c_out = sizes
        generator = seeded(rows + c_in)
        many = [blocks] if blocks else []
        columns = self.c_out * (1 if kind == "geglu" else max(blocks, 1))
        shape = (images, rows, columns)
        weight = normal(generator, *many, C_MAX, C_MAX, dtype=torch.float64) * c_in**-0.5
        self.kind = kind
        self.tensors: list[Tensor | None] = [
            normal(generator, images, rows, c_in, dtype=dtype),
            weight.to(dtype),
            normal(generator, *many, C_MAX, dtype=dtype),
            normal(generator, images, columns, dtype=dtype) if fused else None,
            normal(generator, *shape, dtype=dtype) if fused else None,
        ]
        self.grad_y = normal(generator, *shape, dtype=dtype)

    def call(self, op: Any, tensors: list[Tensor | None]) -> Tensor:
        x, weight, bias, gate, residual = tensors
        return op(x, weight, bias, self.c_out, self.kind, gate, residual)

    def run(self, op: Any, *, wide: bool = False) -> list[Tensor]:
        """Output and gradients."""
        given = [None if t is None else t.detach() for t in self.tensors]
        if wide:
            given = [None if t is None else t.double() for t in given]
        leaves = [t.requires_grad_() for t in given if t is not None]
        y = self.call(op, given)
        return [y.detach(), *torch.autograd.grad(y, leaves, self.grad_y.to(y.dtype))]

    def infer(self, op: Any, *, wide: bool = False) -> list[Tensor]:
        given = [t.double() if wide and t is not None else t for t in self.tensors]
        with torch.no_grad():
            return [self.call(op, given)]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("blocks", "kind"), FORMS)
@pytest.mark.parametrize("fused", [False, True])
def test_as_exact_as_torch(
    isa: str, dtype: torch.dtype, blocks: int, kind: str | None, fused: bool
) -> None:
    """In training, where the product is rounded by itself, and in inference, where it is not."""
    trained, inferred = [], []
    for sizes in SIZES:
        case = Case(blocks, kind, sizes, dtype, fused=fused)
        with forced_isa(isa):
            mine, fast = case.run(ours), case.infer(ours)
        trained.append((mine, case.run(plain), case.run(plain, wide=True)))
        inferred.append((fast, case.infer(plain), case.infer(plain, wide=True)))
    for results in (trained, inferred):
        of_all = [pooled(cases) for cases in zip(*results, strict=True)]
        for index, tensors in enumerate(zip(*of_all, strict=True)):
            check_error(*tensors, GRADIENT_RATIO if index else FORWARD_RATIO)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("rows", [1, 30])
def test_layouts(isa: str, rows: int) -> None:
    """Any strides of weights and rows; blocks need not follow one another in memory."""
    case = Case(2, "geglu", (rows, 21, 37), torch.float32)
    x, weight, bias, gate, residual = case.tensors
    with forced_isa(isa):
        expected = case.infer(ours)[0]
        last = weight.permute(1, 2, 0).contiguous().permute(2, 0, 1)
        by_columns = weight.transpose(1, 2).contiguous().transpose(1, 2)
        apart = torch.full((2, C_MAX + 3, C_MAX + 5), torch.nan)
        apart[:, :C_MAX, :C_MAX] = weight
        for given in (last, by_columns, apart[:, :C_MAX, :C_MAX], weight.flip(0).flip(0)):
            case.tensors[1] = given
            y = case.infer(ours)[0]
            torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
            mine, torchs = case.run(ours), case.run(plain, wide=True)
            for a, b in zip(mine, torchs, strict=True):
                torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4)
        case.tensors = [as_layout(x, "sliced"), weight, bias.t().contiguous().t(),
                        as_layout(gate, "sliced"), as_layout(residual, "sliced")]  # fmt: skip
        assert torch.equal(case.infer(ours)[0], expected)


@pytest.mark.parametrize("blocks", [0, 3])
def test_leading_dimensions(blocks: int) -> None:
    case = Case(blocks, "gelu", (4, 21, 5), torch.float32)
    x, weight, bias, _, _ = case.tensors
    columns = 5 * max(blocks, 1)
    for shape in ((), (4,), (2, 4), (2, 3, 4), (0, 4), (4, 0), (0,)):
        x = normal(seeded(1), *shape, 21)
        gate = normal(seeded(2), shape[0], columns) if shape else None
        y = sliced_linear(x, weight, bias, 5, activation="gelu", gate=gate)
        z = sliced_linear(x, weight, bias, 5)
        torch.testing.assert_close(y, activation(z, "gelu", gate=gate), rtol=1e-5, atol=1e-6)
        assert y.shape == (*shape, columns)
        weight.requires_grad_()
        sliced_linear(x, weight, bias, 5, activation="gelu", gate=gate).sum().backward()
        assert weight.grad is not None
        weight = weight.detach()


def test_the_raw_op_has_the_gradients_of_its_parts() -> None:
    """A fused call that needs a gradient after all computes z again."""
    for (blocks, kind), rows in itertools.product(FORMS, (1, 20)):
        case = Case(blocks, kind, (rows, 21, 13), torch.float32)
        number = (None, "gelu", "gelu_tanh", "geglu").index(kind)

        def raw(x: Any, w: Any, b: Any, c: int, _: Any, *more: Any, number: int = number) -> Tensor:
            return torch.ops.ddsm_ext.sliced_linear(x, w, b, c, False, number, *more)

        for a, b in zip(case.run(raw), case.run(ours), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_float32_weights_with_bfloat16_x() -> None:
    for rows in (1, 30):
        case = Case(2, "geglu", (rows, 59, 37), torch.float32)
        x, weight, bias, gate, residual = case.tensors
        low = [t.bfloat16() for t in (x, gate, residual)]
        case.tensors = [low[0], weight, bias, low[1], low[2]]
        exact = case.run(plain, wide=True)
        mine, fast = case.run(ours), case.infer(ours)[0]
        assert [t.dtype for t in mine[:4]] == [torch.bfloat16] * 2 + [torch.float32] * 2
        # Fused, y alone is rounded; in training z is, too, which bends what follows.
        check_error(fast, exact[0].bfloat16(), exact[0], 1.5)
        for got, wanted in zip(mine, exact, strict=True):
            atol = 0.02 * wanted.abs().max().item()
            torch.testing.assert_close(got.double(), wanted, rtol=0, atol=atol)


def test_autocast_casts_all_but_the_parameters() -> None:
    case = Case(2, "geglu", (5, 11, 13), torch.float32)
    x, weight, bias, gate, residual = case.tensors
    low = [t.bfloat16() for t in (x, gate, residual)]
    for grad in (False, True):
        weight.requires_grad_(grad)
        with torch.autocast("cpu", torch.bfloat16):
            y = case.call(ours, case.tensors)
        assert torch.equal(y, case.call(ours, [low[0], weight, bias, low[1], low[2]]))
    y.float().sum().backward()
    assert weight.grad.dtype == torch.float32


@pytest.mark.parametrize("seed", range(10))
def test_gradcheck(seed: int) -> None:
    blocks, kind = FORMS[seed % len(FORMS)]
    case = Case(blocks, kind, (1 + 2 * seed, 4, 2), torch.float64)
    case.tensors[1] = case.tensors[1][..., :3, :5].contiguous()
    case.tensors[2] = case.tensors[2][..., :3].contiguous()
    leaves = [t.requires_grad_() for t in case.tensors]
    assert torch.autograd.gradcheck(lambda *given: case.call(ours, list(given)), leaves)


@pytest.mark.parametrize("kind", [None, "geglu"])
def test_compiles_for_all_widths(kind: str | None) -> None:
    generator = seeded(5)
    weight, bias = (normal(generator, *s).requires_grad_() for s in ((2, 44, 44), (2, 44)))
    calls: list[tuple[Any, ...]] = []
    for n in range(1, 12):
        c, c_out = 4 * n, 48 - 4 * n
        x = normal(generator, 2, 3, c).requires_grad_()
        gate = normal(generator, 2, c_out * (1 if kind else 2)).requires_grad_()
        calls.append((x, weight, bias, c_out, kind, gate, None))
    assert compiled_graphs(ours, calls, backward=True) <= 2
    with torch.no_grad():
        assert compiled_graphs(ours, calls) <= 2


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("rows", [1, 35])
@pytest.mark.parametrize(("blocks", "kind"), FORMS)
def test_nothing_outside_the_slices_is_touched(
    isa: str, rows: int, blocks: int, kind: str | None
) -> None:
    case = Case(blocks, kind, (rows, 19, 21), torch.float32)
    x, weight, bias, gate, residual = case.tensors
    region = (*([slice(None)] if blocks else []), slice(0, 21), slice(0, 19))
    weight = poisoned(weight, *region).requires_grad_()
    bias = poisoned(bias, *region[:-1]).requires_grad_()
    weight.grad = poisoned(torch.zeros_like(weight), *region)
    bias.grad = poisoned(torch.zeros_like(bias), *region[:-1])
    before, bias_before = weight.grad.clone(), bias.grad.clone()
    x = as_layout(x, "sliced").requires_grad_()
    with forced_isa(isa):
        y = sliced_linear(
            x, weight, bias, 21, activation=kind, gate=gate, residual=residual,
            accumulate_grad=True,
        )  # fmt: skip
        y.sum().backward()
        with torch.no_grad():
            fast = case.call(ours, [x, weight, bias, gate, residual])
    assert torch.isfinite(y).all()
    assert torch.isfinite(fast).all()
    assert torch.isfinite(x.grad).all()
    check_outside_unchanged(weight.grad, before, *region)
    check_outside_unchanged(bias.grad, bias_before, *region[:-1])


def test_accumulate_grad_equals_autograd() -> None:
    case = Case(2, "geglu", (6, 11, 13), torch.float32)
    x, weight, bias, gate, residual = case.tensors
    weight, turned = torch.nn.Parameter(weight), torch.nn.Parameter(bias.t().contiguous().t())
    results = []
    for accumulate in (False, True):
        weight.grad = turned.grad = None
        for _ in range(2):
            y = sliced_linear(
                x, weight, turned, 13, activation="geglu", gate=gate, residual=residual,
                accumulate_grad=accumulate,
            )  # fmt: skip
            y.square().sum().backward()
        results.append((weight.grad, turned.grad))
    for plain_grad, added in zip(*results, strict=True):
        torch.testing.assert_close(added, plain_grad, rtol=1e-6, atol=1e-5)
    turned.grad = torch.zeros(C_MAX, 2).t()
    y = sliced_linear(x, weight, turned, 13, accumulate_grad=True)
    with pytest.raises(ValueError, match=r"bias.grad has stride 1, 2; need a contiguous one"):
        y.sum().backward()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("rows", [1, 35])
def test_repeatable(isa: str, rows: int) -> None:
    case = Case(2, "geglu", (rows, 59, 37), torch.float32)
    with forced_isa(isa):
        check_repeatable(lambda: case.infer(ours), 250)
        check_repeatable(lambda: case.run(ours), 50)


def test_the_number_of_threads_changes_no_bit() -> None:
    generator = seeded(9)
    weight, bias = normal(generator, 2, 512, 512) / 20, normal(generator, 2, 512)
    case = Case(2, "geglu", (1, 1, 1), torch.float32)
    case.c_out = 500
    for rows in (2, 100):
        x, gate = normal(generator, 2, rows, 400), normal(generator, 2, 500)
        case.tensors = [x, weight, bias, gate, normal(generator, 2, rows, 500)]
        case.grad_y = normal(generator, 2, rows, 500)
        results = []
        for count in (1, 2, 3):
            with threads(count):
                results.append([*case.run(ours), *case.infer(ours)])
        for other in results[1:]:
            for a, b in zip(results[0], other, strict=True):
                assert torch.equal(a, b)


def test_flop_count_equals_pytorchs() -> None:
    case = Case(3, "gelu", (6, 11, 13), torch.float32)
    counts = []
    for op in (ours, plain):
        with FlopCounterMode(display=False) as counter:
            case.run(op)
        counts.append(counter.get_total_flops())
        with FlopCounterMode(display=False) as counter:
            case.infer(op)
        counts.append(counter.get_total_flops())
    assert counts[:2] == [3 * 2 * 12 * 11 * 39, 2 * 12 * 11 * 39] == counts[2:]


def test_reference_equals_the_kernel() -> None:
    for blocks, kind in FORMS:
        case = Case(blocks, kind, (4, 11, 13), torch.float32)
        x, weight, bias, gate, residual = case.tensors
        y = sliced_linear_ref(x, weight, bias, 13, activation=kind, gate=gate, residual=residual)
        torch.testing.assert_close(y, case.infer(ours)[0], rtol=1e-5, atol=1e-5)


BAD = (
    ({"weight": torch.ones(2)}, ValueError, r"weight has shape \[2\]; need 2 or 3 dimensions"),
    ({"weight": torch.ones(0, 8, 8)}, ValueError, "weight has 0 blocks; need 1 to 1024"),
    (
        {"weight": torch.ones(1, 1).expand(1025, 1, 1), "bias": None, "c_out": 1},
        ValueError,
        "weight has 1025 blocks; need 1 to 1024",
    ),
    (
        {"weight": torch.ones(3, 20, 20), "bias": None, "activation": "geglu"},
        ValueError,
        r"weight has shape \[3, 20, 20\]; need 2 blocks for 'geglu'",
    ),
    ({"bias": torch.ones(20)}, ValueError, r"bias has shape \[20\], weight .*; need \[2, 20\]"),
    ({"activation": "silu"}, ValueError, "the activation is 'silu'; need None or one of gelu"),
    ({"activation": 1}, TypeError, "the activation is 1; need None or a name"),
    ({"gate": torch.ones(2, 13)}, ValueError, r"gate has shape \[2, 13\]; need \[2, 26\]"),
    ({"x": torch.ones(11), "gate": torch.ones(1, 26)}, ValueError, r"need a result \[N, ..., c\]"),
    ({"residual": torch.ones(2, 13)}, ValueError, r"residual has shape \[2, 13\]; need \[2, 26\]"),
    ({"residual": torch.ones(2, 26).bfloat16()}, TypeError, "residual has dtype torch.bfloat16"),
)


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_bad_arguments(change: dict[str, Any], error: type, message: str) -> None:
    arguments = {
        "x": torch.ones(2, 11),
        "weight": torch.ones(2, 20, 20),
        "bias": torch.ones(2, 20),
        "c_out": 13,
    }
    with pytest.raises(error, match=f"^sliced_linear: .*{message}"):
        sliced_linear(**{**arguments, **change})


def test_raw_refusals() -> None:
    x, w = torch.ones(2, 11), torch.ones(3, 20, 20)
    raw = torch.ops.ddsm_ext
    with pytest.raises(RuntimeError, match="sliced_linear: weight has 3 blocks; geglu needs 2"):
        raw.sliced_linear(x, w, None, 13, False, 3)
    with pytest.raises(RuntimeError, match=r"sliced_linear: bias is not \[3, 20\] of weight's"):
        raw.sliced_linear(x, w, torch.ones(20), 13)
    with pytest.raises(RuntimeError, match="sliced_linear_grad_x: 13 features do not match"):
        raw.sliced_linear_grad_x(torch.ones(2, 13), w, 11)
    with pytest.raises(RuntimeError, match="sliced_linear_grad_weight: 63 features do not match"):
        raw.sliced_linear_grad_weight(torch.ones(2, 63), x, w, None)
