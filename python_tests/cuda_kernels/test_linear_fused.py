"""The kernels of sliced_linear_fused on the emulator beside an fp64 reference."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from cuda_kernels import emulated, structures
from cuda_kernels.emulated import faulty_library, launches
from ops.op_checks import normal, seeded
from torch import Tensor

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
# x's and the weights'
DTYPES = ((BF16, BF16), (FP16, FP16), (FP32, FP32), (BF16, FP32), (FP16, FP32))
# One row, a part of a group of rows, two groups; a part of a tile and two tiles.
ROWS = (1, 5, 11, 40, 70)


@dataclass(frozen=True)
class Case:
    """Weights side by side; their elements beyond the active ones are NaN."""

    rows: int = 5
    c: int = 43
    c_out: tuple[int, ...] = (24, 13, 70)
    dtype: torch.dtype = BF16
    weight_dtype: torch.dtype = BF16
    c_max: int = 48  # of the weights; not a multiple of 8: their rows are not aligned
    transposed: bool = False  # the weights' memory
    ieee: bool = True
    silu: bool = False
    overlaps: bool = False
    shift: bool = False


class Tensors:
    """A case's inputs and outputs."""

    def __init__(self, case: Case) -> None:
        generator = seeded(1)
        wide = normal(generator, case.rows, case.c + 5, dtype=case.dtype)
        self.x = wide[:, : case.c] if case.rows > 1 else wide[:, : case.c].contiguous()
        self.weights, self.biases = [], []
        for c_out in case.c_out:
            weight = torch.full((c_out + 1, case.c_max), torch.nan)
            weight[:c_out, : case.c] = normal(generator, c_out, case.c)
            weight = weight.to(case.weight_dtype)
            self.weights.append(weight.t().contiguous().t() if case.transposed else weight)
            self.biases.append(normal(generator, c_out + 1, dtype=case.weight_dtype))
        self.columns = [0]
        for c_out in case.c_out:
            self.columns.append(self.columns[-1] + -(-c_out // 8) * 8)
        # Columns of a wider tensor; the others are NaN.
        added = torch.full((case.rows, case.c_out[0] + 3), torch.nan, dtype=case.dtype)
        self.shift = added[:, 1:-2] if case.shift else None  # [rows, c_out]
        if self.shift is not None:
            self.shift[:] = normal(generator, *self.shift.shape, dtype=case.dtype)
        self.y = torch.full((case.rows, self.columns[-1]), torch.nan, dtype=case.dtype)


def arguments(case: Case, tensors: Tensors) -> structures.LinearFusedArgs:
    parts = (structures.LinearPart * len(case.c_out))()
    for i, (weight, bias) in enumerate(zip(tensors.weights, tensors.biases, strict=True)):
        place = (weight.data_ptr(), bias.data_ptr(), *weight.stride())
        parts[i] = structures.LinearPart(*place, case.c_out[i], tensors.columns[i])
    args = structures.LinearFusedArgs(
        dtype=emulated.DTYPES[case.dtype],
        weight_dtype=emulated.DTYPES[case.weight_dtype],
        ieee=case.ieee,
        silu=case.silu,
        overlaps=case.overlaps,
        x=tensors.x.data_ptr(),
        x_stride=tensors.x.stride(0),
        rows=case.rows,
        c=case.c,
        parts=parts,
        part_count=len(parts),
        y=tensors.y.data_ptr(),
        y_stride=tensors.y.stride(0),
    )
    if tensors.shift is not None:
        args.shift, args.shift_stride = tensors.shift.data_ptr(), tensors.shift.stride(0)
    return args


def run(case: Case, library: object = None) -> Tensors:
    tensors = Tensors(case)
    inputs = [tensors.x, *tensors.weights, *tensors.biases, tensors.shift]
    emulated.call("linear_fused", arguments(case, tensors), inputs, [tensors.y], library)
    return tensors


def rounded(value: Tensor, case: Case) -> Tensor:
    """What the products take, in fp64: rounded to x's dtype, or to tf32 where many rows are."""
    if case.rows <= 16:
        return value.double()
    value = value.to(case.dtype)
    if case.dtype == FP32 and not case.ieee:
        value = ((value.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)
    return value.double()


def check(case: Case, library: object = None) -> None:
    """The results are the exact ones rounded once; nothing is written between them."""
    tensors = run(case, library)
    for i, c_out in enumerate(case.c_out):
        weight = rounded(tensors.weights[i][:c_out, : case.c], case)
        exact = rounded(tensors.x, case) @ weight.t() + tensors.biases[i][:c_out].double()
        exact = exact if tensors.shift is None else exact + tensors.shift.double()
        exact = F.silu(exact) if case.silu else exact
        begin, end = tensors.columns[i], tensors.columns[i] + c_out
        eps = 0 if case.dtype == FP32 else 0.501 * torch.finfo(case.dtype).eps
        torch.testing.assert_close(
            tensors.y[:, begin:end].double(),
            exact,
            rtol=eps + 2e-6,
            atol=3e-6 * exact.abs().max().item(),
        )
        assert tensors.y[:, end : tensors.columns[i + 1]].isnan().all()


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("dtype", "weight_dtype"), DTYPES, ids=str)
def test_values(rows, dtype, weight_dtype):
    case = Case(rows, dtype=dtype, weight_dtype=weight_dtype)
    check(replace(case, c=48, silu=True))
    check(replace(case, c_max=45))
    check(replace(case, transposed=True))


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("dtype", "weight_dtype"), DTYPES, ids=str)
def test_a_shift_is_added_before_silu(rows, dtype, weight_dtype):
    case = Case(rows, c_out=(69,), dtype=dtype, weight_dtype=weight_dtype, shift=True)
    check(case)
    check(replace(case, c=48, silu=True))


def test_a_shift_beside_several_weights_is_refused():
    with pytest.raises(RuntimeError, match="a shift beside several weights"):
        run(Case(c_out=(24, 24), shift=True))


@pytest.mark.parametrize("rows", ROWS)
def test_tf32(rows):
    check(Case(rows, c=48, dtype=FP32, weight_dtype=FP32, ieee=False))
    check(Case(rows, dtype=FP32, weight_dtype=FP32, ieee=False, c_max=45))


@pytest.mark.parametrize("rows", ROWS)
def test_results_repeat_and_do_not_depend_on_the_other_weights(rows):
    case = Case(rows, c=600, c_max=600, silu=True)
    alone, again, beside = (run(replace(case, c_out=c)).y for c in ((24,), (24,), (24, 13)))
    assert torch.equal(alone, again)
    assert torch.equal(alone, beside[:, :24])


def test_many_outputs_share_loads():
    """Enough outputs for four a warp on the emulated device's multiprocessors."""
    for rows in (1, 5):
        few, many = (run(Case(rows, c=300, c_max=304, c_out=(20,) * n)).y for n in (1, 9))
        check(Case(rows, c=300, c_max=304, c_out=(20,) * 9))
        assert torch.equal(few[:, :20], many[:, :20])


@pytest.mark.parametrize("rows", [1, 20])
def test_more_weights_than_a_launch_takes(rows):
    launches()
    check(Case(rows, c=8, c_max=8, c_out=(5,) * 70))
    assert len(launches()) == 2
    check(Case(rows, c=8, c_max=8, c_out=(5,) * 64))
    assert len(launches()) == 1


@pytest.mark.parametrize("rows", [1, 5, 20])
def test_overlapping_launches_wait(rows):
    with emulated.hopper():
        launches()
        check(Case(rows, overlaps=True))
        assert launches()[0][1]
        check(Case(rows, c_out=(24,), overlaps=True, shift=True))
        assert launches()[0][1]


KERNELS = "linear_fused_kernels.cuh"
# rows, a line, what a mistake would make of it, and what comes of that
PLANTED = (
    (5, "output0 + o < part.c_out ? p.c - k : 0, part.vector", "p.c - k, part.vector",
     "global memory: out of bounds"),
    (5, "image0 + i < p.rows ? p.c - k : 0", "p.c - k", "global memory: out of bounds"),
    (5, "lane ^ distance);\n      }", "lane ^ 1);\n      }", "not close"),
    (5, "value[0] += ptx::shuffle(value[0], lane ^ distance);",
     "value[0] += ptx::shuffle(value[0], lane ^ 1);", "not close"),
    (5, "lane / kLanes / kImages", "lane / kImages", "not close|out of bounds"),
    (5, "output >= part.c_out || image >= p.rows) return;", "output >= part.c_out) return;",
     "global memory: out of bounds"),
    (5, "<= block) low", "< block) low", "not close|out of bounds"),
    (20, "row < p.rows ? p.c - k : 0", "p.c - k", "global memory: out of bounds"),
    (20, "output < part.c_out ? p.c - k : 0", "p.c - k", "not close|out of bounds"),
    (20, "  tile.store_sums();\n  ptx::sync_threads();", "  tile.store_sums();",
     "no barrier is between|reads what was written by"),
    (20, "if (row0 + line >= p.rows) break;", "", "global memory: out of bounds"),
    (20, "if (p.y_vector && output + V <= part.c_out)", "if (p.y_vector)", "not NaN|False"),
)  # fmt: skip


@pytest.mark.parametrize(("rows", "line", "mistake", "finding"), PLANTED)
def test_a_planted_fault_is_found(tmp_path, rows, line, mistake, finding):
    library = faulty_library(tmp_path, KERNELS, line, mistake, "linear_fused")
    with pytest.raises((RuntimeError, AssertionError), match=finding):
        check(Case(rows, c=43, c_max=48, c_out=(24, 13)), library)


PLANTED_IN_SHIFT = (
    (5, "row * p.shift_stride", "0 * row", "not close"),
    (20, "row * p.shift_stride", "0 * row", "not close"),
    (5, "shift + output", "shift", "not close"),
    (20, "const bool inside = output + i < part.c_out;", "const bool inside = true;",
     "out of bounds|not close"),
)  # fmt: skip


@pytest.mark.parametrize(("rows", "line", "mistake", "finding"), PLANTED_IN_SHIFT)
def test_a_fault_planted_in_a_shift_is_found(tmp_path, rows, line, mistake, finding):
    library = faulty_library(tmp_path, KERNELS, line, mistake, "linear_fused")
    with pytest.raises((RuntimeError, AssertionError), match=finding):
        check(Case(rows, c_out=(21,), shift=True, silu=True), library)


@pytest.mark.parametrize("rows", [5, 20])
def test_an_overlapping_launch_that_does_not_wait_is_found(tmp_path, rows):
    line = "  ptx::wait_for_kernel_before();\n  ptx::allow_kernel_after();\n"
    library = faulty_library(tmp_path, KERNELS, line, "", "linear_fused")
    library.set_hopper(1)
    with pytest.raises(RuntimeError, match="has not waited for the kernel before"):
        check(Case(rows, overlaps=True), library)
