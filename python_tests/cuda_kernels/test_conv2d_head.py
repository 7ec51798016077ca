"""The head kernel of sliced_conv2d on the emulator beside an fp64 reference."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from cuda_kernels import conv2d_fused_cases, emulated, structures
from cuda_kernels.conv2d_cases import DTYPES, Case, check_rounded, run_forward
from cuda_kernels.conv2d_fused_cases import Fused
from cuda_kernels.emulated import faulty_library

# A block has 64 or 128 pixels: images inside of one, rows longer than one, single rows and columns.
SIZES = ((2, 5, 6), (3, 16, 16), (1, 3, 150), (40, 1, 5), (2, 70, 1))  # images, height, width


def kernels() -> list[str]:
    """Names of the kernels that were launched since the last call."""
    return [name for name, _ in emulated.launches()]


def check(case: Case) -> None:
    kernels()
    check_rounded(*run_forward(case))
    assert kernels() == ["conv_head"]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "height", "width"), SIZES)
def test_images(dtype, n, height, width):
    case = Case(dtype=dtype, c=3, c_out=21, n=n, height=height, width=width)
    check(case)
    if dtype == torch.float32:
        check(replace(case, ieee=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("c_out", [1, 33, 64, 130])
def test_outputs(dtype, c_out):
    """Every width of tile, and two tiles side by side."""
    for channels_last in (False, True):
        check(Case(dtype=dtype, c=3, c_out=c_out, height=9, channels_last=channels_last))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("c", "kernel"), [(1, 3), (4, 3), (7, 3), (2, 5), (1, 7)])
def test_windows(dtype, c, kernel):
    case = Case(dtype=dtype, c=c, kernel=kernel, c_out=70, height=9, width=11)
    check(case)
    if dtype == torch.float32:
        check(replace(case, ieee=True))


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_float32_parameters_beside_16_bit_images(dtype):
    check(Case(dtype=dtype, weight_dtype=torch.float32, c=3))
    check(Case(dtype=dtype, weight_dtype=torch.float32, c=5, c_out=40))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "height", "width"), [(5, 4, 4), (3, 5, 7), (1, 8, 16)])
def test_what_is_added_and_moments(dtype, n, height, width):
    kernels()
    case = Case(dtype=dtype, c=3, c_out=40, n=n, height=height, width=width)
    conv2d_fused_cases.check(Fused(case, shift=True, residual="sliced"))
    assert kernels() == ["conv_head"]


@pytest.mark.parametrize(
    "change",
    [
        {"c": 8},
        {"c": 3, "c2": 3},
        {"stride": 2},
        {"upsample": True},
        {"kernel": 1},
        {"kernel": 2, "pad_end": True},
        {"sliced": True},
        {"tile": 3},
        {"splits": 1},
    ],
    ids=str,
)
def test_what_it_does_not_serve(change):
    kernels()
    check_rounded(*run_forward(replace(Case(c=3), **change)))
    assert "conv_head" not in kernels()


def test_repeatable():
    case = Case(c=3, c_out=70, n=5, height=7)
    assert run_forward(case)[0].equal(run_forward(case)[0])


def test_an_overlapping_launch_waits():
    x = torch.ones(1, 3, 4, 4).to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
    weight, y = torch.ones(8, 3, 3, 3).to(x), torch.empty(1, 8, 4, 4).to(x)
    args = structures.ForwardArgs(
        options=emulated.options(x.dtype, overlaps=True),
        shape=emulated.shape_of(x, 3, 1, 1, False),
        x=emulated.image(x),
        weight=emulated.weight_of(weight),
        parts=1,
        gain=1.0,
        y=y.data_ptr(),
        y_stride=8,
        c_out=8,
    )
    with emulated.hopper():
        emulated.take_launches()
        emulated.call("conv2d_forward", args, [x, weight], [y])
        assert emulated.take_launches() == ["conv_head 1x1x128+"]


def test_the_choice_is_printed(capfd, monkeypatch):
    monkeypatch.setenv("DDSM_PRINT_CHOICES", "1")
    run_forward(Case(c=3))
    assert "ddsm_ext: sliced_conv2d m=60 n=24 k=27: head kernel" in capfd.readouterr().err


FILE = "conv2d_head.cu"
PLANTED = (
    ("  ptx::cp_async_wait<0>();\n  ptx::sync_threads();\n  gather", "  gather",
     "is being copied|reads what was written by|reads what nobody wrote"),
    ("  gather_windows<Tile>(p, window, m0);\n  ptx::sync_threads();",
     "  gather_windows<Tile>(p, window, m0);", "reads what was written by"),
    ("  ptx::sync_threads();\n  tile.store_sums();", "  tile.store_sums();",
     "overwrites what was read by"),
    ("if (chunk < 0 || left <= 0) continue;", "if (left <= 0) continue;",
     "global memory: out of bounds"),
    ("left < V ? left : V", "V", "global memory: out of bounds"),
    ("h >= static_cast<uint32_t>(p.height) ||\n", "\n", "not close|reads what nobody wrote"),
    ("first - chunk * V)", "first % 2)", "not close|reads what nobody wrote"),
    ("n0 + line < p.conv.n && k", "k", "global memory: out of bounds"),
    ("k < window.depth()) {", "true) {", "global memory: out of bounds|not close"),
)  # fmt: skip


@pytest.mark.parametrize(("line", "mistake", "finding"), PLANTED)
def test_a_planted_fault_is_found(tmp_path, line, mistake, finding):
    library = faulty_library(tmp_path, FILE, line, mistake, "conv2d_head")
    with pytest.raises((RuntimeError, AssertionError), match=finding):
        check_rounded(*run_forward(Case(c=3, c_out=33, n=3, height=7, width=13), library))
