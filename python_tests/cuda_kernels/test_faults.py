"""The emulator finds faults: in small kernels, and planted in the real ones."""

from __future__ import annotations

from ctypes import c_char_p, c_void_p

import pytest
import torch
from cuda_kernels import attention_cases, emulated
from cuda_kernels.conv2d_cases import Case, check_rounded, run_forward
from cuda_kernels.emulated import faulty_library

FAULTS = (
    (0, None),
    (1, "reads what was written by thread"),
    (2, "overwrites what was read by several threads and no barrier is between"),
    (3, "shared byte 256: out of bounds"),
    (4, "reads what nobody wrote"),
    (5, "global memory: out of bounds, thread 63 of block 0,0 touches 4 bytes at byte 256 of 256"),
    (6, "touches what another thread of the launch wrote"),
    (7, "32 threads wait at a barrier"),
    (8, "touches what is being copied"),
    (9, "reads what was written by thread"),
    (10, "cp.async: the global address is not aligned to 16 bytes"),
    (11, "not aligned to 4"),
    (12, None),
    (13, "reads what was written by thread"),
    (14, "62 at a warp instruction that not all reach"),
    (15, "cp.async: an odd number of bytes"),
)


@pytest.mark.parametrize(("fault", "message"), FAULTS)
def test_a_fault_is_named(fault, message):
    library = emulated.library()
    library.run_faulty.restype = c_char_p
    memory = torch.zeros(64)
    library.forget_memory()
    library.allow_memory(c_void_p(memory.data_ptr()), 256, 1)
    shared_bytes = 1024 if fault in (8, 9, 10, 15) else 256
    found = library.run_faulty(fault, c_void_p(memory.data_ptr()), shared_bytes)
    if message is None:
        assert found is None
    else:
        assert message in found.decode()


def test_an_input_cannot_be_written():
    library = emulated.library()
    library.run_faulty.restype = c_char_p
    memory = torch.zeros(64)
    library.forget_memory()
    library.allow_memory(c_void_p(memory.data_ptr()), 256, 0)
    assert b"writes an input" in library.run_faulty(6, c_void_p(memory.data_ptr()), 0)


WRONG = "not close"
# file, a line of it, what a mistake would make of it, and what comes of that
PLANTED = (
    ("gemm_tile.cuh", "    ptx::sync_threads();  // all copies", "    // all copies",
     "reads what was written by"),
    ("gemm_tile.cuh", "ptx::cp_async_wait<kStages - 2>();", "ptx::cp_async_wait<kStages - 1>();",
     "is being copied"),
    ("gemm_tile.cuh", "  ptx::cp_async_wait<0>();\n  ptx::sync_threads();",
     "  ptx::cp_async_wait<0>();", "overwrites what was read by"),
    ("conv2d_kernels.cuh", "  tile.store_sums();\n  ptx::sync_threads();", "  tile.store_sums();",
     "no barrier is between"),
    ("gemm_tile.cuh", "kStages ? 0 : writing", "kStages ? 1 : writing",
     "reads what was written by|is being copied"),
    ("gemm_tile.cuh", "half = kRowsFirst ? matrix / 2 : matrix % 2",
     "half = kRowsFirst ? matrix / 2 : 1 - matrix % 2", WRONG),
    ("gemm_tile.cuh", "b[nt / 2][nt % 2 * 2], ", "b[nt / 2][nt % 2], ", WRONG),
    ("gemm_tile.cuh", "kM * kOutPitch * 4", "kM * kN * 4", "shared byte .* out of bounds"),
    ("conv2d_loaders.cuh", "? 0 : source.channels - channel)", "? 0 : A::kVector)",
     "global memory: out of bounds|not close"),
    ("conv2d_loaders.cuh", "params.h.valid(up_h) && ", "", "global memory: out of bounds"),
    ("conv2d_epilogue.cuh", "if (m >= p.m || n >= p.n) continue;", "if (n >= p.n) continue;",
     "global memory: out of bounds"),
)  # fmt: skip


PRODUCTS, KERNELS = "attention_products.cuh", "attention_kernels.cuh"
PLANTED_IN_ATTENTION = (
    (KERNELS, "      ptx::sync_threads();  // the first buffer is filled", "      // the first",
     "is being copied|reads what was written by|overwrites"),
    (KERNELS, "      ptx::sync_threads();  // and the other way round", "      // and",
     "is being copied|reads what was written by|overwrites"),
    (KERNELS, "    stage();\n    ptx::sync_warp();", "    stage();", "no barrier is between"),
    (KERNELS, "kSecond = kFirst + ColumnTile::kBytes", "kSecond = kFirst + 256",
     "no barrier is between|is being copied"),
    (KERNELS, "kSharedBytes = kStatistics + (", "kSharedBytes = kStatistics - 16 + (",
     "shared byte .* out of bounds"),
    (KERNELS, "inside ? left[slab] : 0", "left[slab]",
     "global memory: out of bounds"),
    (KERNELS, "if (row >= p.rows || feature >= p.d) continue;", "if (feature >= p.d) continue;",
     "global memory: out of bounds"),
    (KERNELS, "    mask(scores, first_column, -INFINITY);", "", "too far"),
    (KERNELS, "float total = sum[rt][half] * rescale;", "float total = sum[rt][half];", "too far"),
    (KERNELS, "        tile[half * 2] *= scale;", "        tile[0] *= scale;", "too far"),
    (PRODUCTS, "address_of_lane(matrix % 2, matrix / 2, first, step)",
     "address_of_lane(matrix / 2, matrix % 2, first, step)", "too far"),
    (PRODUCTS, "ptx::mma(out[rt][n], a[rt], b[0], b[1], T{});",
     "ptx::mma(out[rt][n], a[rt], b[0], b[2], T{});", "too far"),
)  # fmt: skip
PLANTED_IN_ATTENTION_GRADIENTS = (
    (KERNELS, "lane[0] = ptx::load_global(p.lse + index) * kLog2E", "lane[0] = 0", "too far"),
    (KERNELS, "load_statistics(false, column);\n      clear(first);", "clear(first);",
     "reads what nobody wrote"),
    (KERNELS, "by_rows ? row_of(0, 0) : column_of(0, 0)", "row_of(0, 0)",
     "shared byte .* out of bounds|reads what nobody wrote|too far"),
    ("attention_delta.cuh", "if (row >= p.rows) return;", "", "global memory: out of bounds"),
    ("attention_delta.cuh", "lane ^ distance", "lane ^ 1", "too far"),
)  # fmt: skip


@pytest.mark.parametrize(("file", "line", "mistake", "finding"), PLANTED)
def test_a_planted_fault_is_found(tmp_path, file, line, mistake, finding):
    library = faulty_library(tmp_path, file, line, mistake, "conv2d_bf16")
    # An odd count of channels, more steps than stages, and a tile past the end.
    case = Case(c=43, sliced=True, c_out=24, tile=1, splits=1)
    with pytest.raises((RuntimeError, AssertionError), match=finding):
        check_rounded(*run_forward(case, library))


# More columns than a tile, a tile past the end, and a part of a slab.
ATTENTION = attention_cases.Case(heads=1, t_q=70, t_k=150, d=40)


@pytest.mark.parametrize(("file", "line", "mistake", "finding"), PLANTED_IN_ATTENTION)
def test_a_fault_planted_in_attention_is_found(tmp_path, file, line, mistake, finding):
    library = faulty_library(tmp_path, file, line, mistake, "attention_bf16")
    with pytest.raises((RuntimeError, AssertionError), match=finding):
        attention_cases.check(ATTENTION, library)


@pytest.mark.parametrize(("file", "line", "mistake", "finding"), PLANTED_IN_ATTENTION_GRADIENTS)
def test_a_fault_planted_in_the_gradients_of_attention_is_found(
    tmp_path, file, line, mistake, finding
):
    library = faulty_library(tmp_path, file, line, mistake, "attention_grad_bf16")
    with pytest.raises((RuntimeError, AssertionError), match=finding):
        attention_cases.check(ATTENTION, library)
