"""The kernels of sliced_activation on the emulator beside an fp64 reference. No GPU takes part."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from cuda_kernels import emulated, structures
from cuda_kernels.activation_cases import KINDS, activated
from cuda_kernels.emulated import faulty_library
from ops.op_checks import as_layout, normal, seeded
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Call:
    """One call; "sliced": rows are part of wider ones, NaN lies between them."""

    dtype: torch.dtype = torch.bfloat16
    kind: str | None = "gelu"
    n: int = 2
    rows: int = 5
    c: int = 24
    gate: bool = True
    residual: bool = True
    layout: str = "contiguous"
    scale: float = 1.0  # of z's numbers

    def tensor(self, generator: torch.Generator, *size: int) -> Tensor:
        """[..., columns], as rows of its layout."""
        values = normal(generator, *size, dtype=self.dtype).flatten(0, -2)
        return as_layout(values, self.layout)

    def z(self, generator: torch.Generator) -> Tensor:
        columns = 2 * self.c if self.kind == "geglu" else self.c
        wide = self.tensor(generator, self.n, self.rows, columns)
        return wide.mul_(self.scale)  # [N rows, columns]

    def activated(self, z: Tensor) -> Tensor:
        """Of z in fp64."""
        value, half = z.chunk(2, dim=-1) if self.kind == "geglu" else (z, z)
        return activated(self.kind, value, half)

    def args(self, z: Tensor, gate: Tensor | None) -> structures.ActivationArgs:
        args = structures.ActivationArgs(
            dtype=emulated.DTYPES[self.dtype],
            activation=KINDS.index(self.kind),
            images=self.n,
            rows=self.rows,
            columns=self.c,
            z=z.data_ptr(),
            z_stride=z.stride(0),
        )
        if gate is not None:
            args.gate, args.gate_stride = gate.data_ptr(), gate.stride(0)
        return args

    def check(self, got: Tensor, exact: Tensor, steps: float = 0.51) -> None:
        """The exact result, rounded once; of float32 the errors of its functions are larger."""
        rounding = 4e-6 if got.dtype == torch.float32 else steps * torch.finfo(got.dtype).eps
        atol = 1e-6 * exact.abs().max().item() + 1e-7
        torch.testing.assert_close(got.double(), exact, rtol=rounding, atol=atol)


def forward(call: Call, library: object = None) -> tuple[Tensor, Tensor]:
    """y and the reference's."""
    generator = seeded(1)
    z = call.z(generator)
    gate = call.tensor(generator, call.n, call.c) if call.gate else None
    residual = call.tensor(generator, call.n, call.rows, call.c) if call.residual else None
    y = torch.full((call.n * call.rows, call.c), torch.nan, dtype=call.dtype)
    args = call.args(z, gate)
    args.y = y.data_ptr()
    exact = call.activated(z.double())
    if gate is not None:
        exact = exact * gate.double().repeat_interleave(call.rows, 0)
    if residual is not None:
        args.residual, args.residual_stride = residual.data_ptr(), residual.stride(0)
        exact = exact + residual.double()
    emulated.call("activation", args, [z, gate, residual], [y], library)
    return y, exact


def backward(call: Call, library: object = None) -> list[tuple[Tensor, Tensor]]:
    """Gradients of z and of the gate, ours and the reference's."""
    generator = seeded(2)
    z, grad_y = call.z(generator), call.tensor(generator, call.n, call.rows, call.c)
    gate = call.tensor(generator, call.n, call.c) if call.gate else None
    grad_z = torch.full((call.n * call.rows, z.size(1)), torch.nan, dtype=call.dtype)
    grad_gate = torch.full((call.n, call.c), torch.nan) if call.gate else None
    args = call.args(z, gate)
    args.grad_y, args.grad_y_stride = grad_y.data_ptr(), grad_y.stride(0)
    args.grad_z = grad_z.data_ptr()
    leaves = [z.double().requires_grad_()]
    y = call.activated(leaves[0])
    if gate is not None:
        args.grad_gate = grad_gate.data_ptr()
        leaves.append(gate.double().requires_grad_())
        y = y * leaves[1].repeat_interleave(call.rows, 0)
    emulated.call("activation_backward", args, [z, gate, grad_y], [grad_z, grad_gate], library)
    exact = torch.autograd.grad(y, leaves, grad_y.double())
    return list(zip([grad_z, grad_gate], exact, strict=False))


def check(call: Call, library: object = None) -> None:
    call.check(*forward(call, library))
    for got, exact in backward(call, library):
        call.check(got, exact, 0.52)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("c", [24, 7, 1, 272])
def test_values(dtype, kind, c):
    """Columns in packs and one by one, more of them than a block has."""
    call = Call(dtype=dtype, kind=kind, c=c)
    check(call)
    check(replace(call, gate=False, residual=False, layout="sliced"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_wide_range_of_numbers(kind):
    """Far from 0, where GELU and its derivatives are 0 or the identity."""
    for scale in (1e-3, 8.0, 1e4):
        check(Call(dtype=torch.float32, kind=kind, scale=scale, c=64, rows=9))


@pytest.mark.parametrize("kind", ["gelu", "geglu"])
@pytest.mark.parametrize(("n", "rows", "c"), [(3, 300, 8), (2, 70, 40), (1, 1, 264)])
def test_many_rows(kind, n, rows, c):
    """Several strips of an image, whose sums one thread adds in their order."""
    call = Call(kind=kind, n=n, rows=rows, c=c)
    check(call)
    first, again = backward(call), backward(call)
    assert all(a.equal(b) for (a, _), (b, _) in zip(first, again, strict=True))


def test_launches():
    """A gradient of the gate takes a second one."""
    for gate in (True, False):
        emulated.take_launches()
        check(Call(gate=gate))
        names = [name for name, _ in emulated.launches()]
        assert names == ["activation", "activation_grad", "activation_grad_gate"][: 2 + gate]


def test_an_image_without_rows_has_a_gradient_of_its_gate():
    call = Call(rows=0)
    (_, _), (grad_gate, _) = backward(call)
    assert grad_gate.eq(0).all()
    assert forward(call)[0].numel() == 0


def check_several(library: object) -> None:
    """Strips of an image, columns one by one of wider rows and of one row."""
    check(Call(kind="geglu", n=3, rows=70, c=264), library)
    check(Call(kind="gelu_tanh", rows=3, c=20, layout="sliced"), library)
    check(Call(n=1, rows=1, c=13), library)


KERNELS = "activation_kernels.cuh"
PLANTED = (
    (KERNELS, "  if (index >= rows * p.packs.divisor) return;\n", "", "out of bounds"),
    (KERNELS, "p.rows.quotient(row) * p.gate_stride", "0 * p.gate_stride", "not close"),
    (KERNELS, "row * p.residual_stride", "row * p.z_stride", "not close|out of bounds"),
    (KERNELS, "activate(Activation::kGelu, gate_half, slope);",
     "activate(Activation::kGeluTanh, gate_half, slope);", "not close"),
    (KERNELS, "grad[i] * value[i] * slope[i]", "grad[i] * slope[i]", "not close"),
    (KERNELS, "  ptx::sync_threads();\n", "", "no barrier is between|nobody wrote"),
    (KERNELS, "first_column + thread >= p.columns) return;", "false) return;",
     "another thread of the launch|out of bounds"),
    (KERNELS, "(strip + 1) * p.strip_rows < rows ? (strip + 1) * p.strip_rows : rows;",
     "(strip + 1) * p.strip_rows;", "out of bounds|another thread of the launch"),
    (KERNELS, "  if (column < p.columns) {\n", "  {\n", "out of bounds|another thread"),
    (KERNELS, "strip < p.strips.divisor; ++strip", "strip + 1 < p.strips.divisor; ++strip",
     "not close"),
    ("activation.cu", "args.columns % pack == 0 && ", "", "not aligned|out of bounds"),
)  # fmt: skip


@pytest.mark.parametrize(("file", "line", "mistake", "finding"), PLANTED)
def test_a_planted_fault_is_found(tmp_path, file, line, mistake, finding):
    library = faulty_library(tmp_path, file, line, mistake, "activation")
    with pytest.raises((RuntimeError, AssertionError), match=finding):
        check_several(library)
