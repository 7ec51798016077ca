"""The sm_90a convolution kernels on the emulator beside an fp64 reference. No GPU takes part."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from cuda_kernels import conv2d_fused_cases, emulated
from cuda_kernels.conv2d_cases import Case, check_rounded, run_forward, run_grad_x
from cuda_kernels.conv2d_fused_cases import Fused

DTYPES = (torch.bfloat16, torch.float16)
TILES = (5, 6, 7, 8, 9, 10)  # of 128 or 64 pixels by 128, 64 and 32 channels, and 256 by 128
GRADIENT_TILES = (5, 6, 8, 10)  # those of at least 64 channels
BLOCKS = 4  # multiprocessors of the emulated device


@pytest.fixture(autouse=True)
def _hopper():
    with emulated.hopper():
        yield


def hopper(**more: object) -> Case:
    return Case(**{"tile": 6, "splits": 1, **more})


def check(case: Case) -> None:
    check_rounded(*run_forward(case))
    if case.stride == 1 and case.tile in (0, *GRADIENT_TILES):
        check_rounded(*run_grad_x(case))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tile", TILES)
def test_tiles(dtype, tile):
    """Tails of pixels, of output channels and of K in one problem."""
    check(hopper(dtype=dtype, tile=tile, n=3, c=72, c_out=136, height=7, width=7))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2), (5, 1), (5, 2)])
@pytest.mark.parametrize(("height", "width"), [(6, 5), (7, 8)])
def test_windows(dtype, kernel, stride, height, width):
    size = {"height": height, "width": width, "n": 5}
    check(hopper(dtype=dtype, kernel=kernel, stride=stride, **size))


@pytest.mark.parametrize(("kernel", "stride"), [(2, 1), (2, 2), (3, 1), (3, 2), (5, 1), (5, 2)])
@pytest.mark.parametrize(("height", "width"), [(8, 6), (7, 8), (6, 5)])
def test_zeros_at_the_end(kernel, stride, height, width):
    size = {"height": height, "width": width, "n": 5}
    check(hopper(kernel=kernel, stride=stride, pad_end=True, **size))


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize(("c", "c2", "c_out"), [(8, 0, 8), (24, 64, 40), (64, 8, 32), (96, 56, 64)])
def test_channel_counts(tile, c, c2, c_out):
    """Every number of products that a step can have, and both sources."""
    check(hopper(tile=tile, c=c, c2=c2, c_out=c_out, height=3, width=4))


@pytest.mark.parametrize(("c", "c2", "c_out"), [(3, 0, 43), (43, 11, 3), (59, 67, 59)])
def test_odd_channels_of_wider_images(c, c2, c_out):
    """Rows are multiples of 16 bytes, the channels that are taken are not; NaN lies beyond."""
    check(hopper(sliced=True, c=c, c2=c2, c_out=c_out))


@pytest.mark.parametrize("tile", TILES)
def test_blocks_take_several_tiles(tile):
    """More tiles than blocks, and fewer steps a tile than stages: the ring runs on."""
    case = hopper(tile=tile, kernel=1, n=9, c=72, c_out=72, height=11, width=11)
    assert -(-case.n * case.height * case.width // 128) > BLOCKS
    check(case)
    check(hopper(tile=tile, kernel=3, n=11, c=8, c_out=8, height=10, width=10))


@pytest.mark.parametrize("tile", TILES[:-1])
@pytest.mark.parametrize("splits", [2, 5])
def test_splits(tile, splits):
    check(hopper(tile=tile, c=24, c2=72, n=4, height=8, width=8, splits=splits))


def test_tiles_of_both_warpgroups_are_not_split():
    with pytest.raises(RuntimeError, match="this tile, or more than 4096 tiles, cannot be split"):
        run_forward(hopper(tile=10, splits=2))


def test_a_forced_tile_splits_only_as_it_can(capfd, monkeypatch):
    """One tile of many steps, which any other tile would split."""
    monkeypatch.setenv("DDSM_PRINT_CHOICES", "1")
    deep = {"n": 1, "c": 512, "c_out": 32, "height": 8, "width": 8, "splits": 0}
    for tile, splits in ((9, "4 splits"), (10, "1 splits")):
        check_rounded(*run_forward(hopper(tile=tile, **deep)))
        assert splits in capfd.readouterr().err


def test_tiles_of_half_a_panel_have_no_gradient():
    with pytest.raises(RuntimeError, match="no kernel for this tile"):
        run_grad_x(hopper(tile=7))


@pytest.mark.parametrize("rows", [1, 130])
def test_images_of_one_pixel_a_row(rows):
    """As sliced_linear has them: strides of single-pixel dimensions say nothing."""
    check(hopper(n=1, kernel=1, c=72, c_out=24, height=rows, width=1))
    check(hopper(n=rows, kernel=1, c=72, c_out=24, height=1, width=1))


@pytest.mark.parametrize("dtype", DTYPES)
def test_its_own_choice_of_tile_and_splits(dtype):
    check(Case(dtype=dtype, n=2, c=64, c2=40, c_out=48, height=8, width=8))


def test_repeatable():
    case = hopper(n=6, c=40, splits=3)
    assert run_forward(case)[0].equal(run_forward(case)[0])


@dataclass(frozen=True)
class Padded(Case):
    """An image with any padding; Case's keeps its size."""

    padding: int = 0  # type: ignore[assignment]


@pytest.mark.parametrize(("kernel", "padding"), [(1, 0), (2, 0), (2, 1), (3, 0), (3, 2), (5, 2)])
@pytest.mark.parametrize("pad_end", [False, True])
def test_an_enlarged_image_with_any_padding(kernel, padding, pad_end):
    """By whichever path serves it: classes of pixels need an output of twice the size."""
    window = {"kernel": kernel, "padding": padding, "pad_end": pad_end}
    check_rounded(*run_forward(Padded(height=6, upsample=True, **window)))


REFUSED = (
    ({"dtype": torch.float32}, "needs bfloat16 or float16 images"),
    ({"c": 13}, "needs pixels and filters of one type, at multiples of 16 bytes"),
    ({"weight_dtype": torch.float32}, "needs pixels and filters of one type"),
    ({"channels_last": False}, "needs pixels and filters of one type"),
    ({"upsample": True, "stride": 2}, "needs stride 1, no gradient and no shortcut for an enl"),
)


@pytest.mark.parametrize(("more", "reason"), REFUSED)
def test_what_it_cannot_serve_is_refused_by_name(more, reason):
    with pytest.raises(RuntimeError, match=f"the sm_90a path {reason}"):
        run_forward(hopper(**more))


def test_a_gradient_at_stride_2_is_refused_by_name():
    with pytest.raises(RuntimeError, match="the sm_90a path needs stride 1 for the gradient of x"):
        run_grad_x(hopper(stride=2))


def test_another_device_is_refused_by_name():
    emulated.library().set_hopper(0)
    with pytest.raises(RuntimeError, match=r"needs a GPU of compute capability 9\.0, a build"):
        run_forward(hopper())


def test_the_variable_turns_it_off(monkeypatch):
    monkeypatch.setenv("DDSM_SM90A", "0")
    with pytest.raises(RuntimeError, match="and DDSM_SM90A not 0"):
        run_forward(hopper())
    emulated.launches()
    check_rounded(*run_forward(hopper(tile=0)))
    assert emulated.launches() == [("conv", False)]


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ({}, "n=24 k_steps=9 x1: 64x32, 1 splits, sm_90a path"),
        ({"c": 13}, "sm_80 path (the sm_90a path needs pixels and filters of one type, at mult"),
        ({"tile": 2}, "n=24 k_steps=9 x1: 128x64, 1 splits, sm_80 path (its tile was forced)"),
    ],
)
def test_the_path_is_printed(capfd, monkeypatch, more, line):
    monkeypatch.setenv("DDSM_PRINT_CHOICES", "1")
    run_forward(hopper(**{"tile": 0, **more}))
    assert line in capfd.readouterr().err


WRONG = r"Tensor-likes are not close|Mismatched elements"
RACE = "no barrier is between"
KERNELS, TILE, EPILOGUE = (f"conv2d_sm90_{part}.cuh" for part in ("kernels", "tile", "epilogue"))
# file, right line, planted mistake, what the emulator or the reference says
PLANTED = (
    (KERNELS, "ptx::mbarrier_wait(Tile::full(place.stage), place.parity, p.stall,", "(void)(",
     "is being copied|what nobody wrote"),
    (KERNELS, "ptx::mbarrier_wait(Tile::empty(place.stage), place.parity ^ 1, p.stall,", "(void)(",
     f"read by a product.*{RACE}|more arrivals"),
    (KERNELS, "(Tile::empty(place.stage), place.parity ^ 1",
     "(Tile::empty(place.stage), place.parity",
     "wait without end, the first for a phase of an mbarrier|more arrivals"),
    (KERNELS, "(Tile::full(place.stage), place.parity",
     "(Tile::full(place.stage), place.parity ^ 1",
     "what nobody wrote|is being copied|what was written by a bulk copy"),
    (TILE, "parity ^= rounds & 1;", "", "wait without end|more arrivals"),
    (KERNELS, "mbarrier_arrive_expect(full, Tile::kStageBytes)",
     "mbarrier_arrive_expect(full, Tile::kStageBytes - 128)", "wait without end"),
    (KERNELS, "mbarrier_arrive_expect(full, Tile::kStageBytes)",
     "mbarrier_arrive_expect(full, Tile::kBytesA)",
     "is being copied|wait without end|what was written by a bulk copy"),
    (KERNELS, "ptx::warpgroup_wait<1>();", "ptx::warpgroup_wait<2>();", f"read by.*{RACE}"),
    (KERNELS, "ptx::warpgroup_wait<0>();", "", f"{WRONG}|{RACE}|products under way"),
    (TILE, "ptx::warpgroup_fence();", "", "no wgmma.fence"),
    (KERNELS, "Tile::kOwners * ptx::kWarpgroup / 32);", "Tile::kOwners * ptx::kWarpgroup / 64);",
     f"wait without end|{RACE}"),
    (KERNELS, "  ptx::sync_threads();\n", "", "an mbarrier whose init it may not see"),
    (KERNELS, "if (!Tile::kShared && ptx::elect_one()) ptx::mbarrier_arrive(Tile::turn",
     "if (false) ptx::mbarrier_arrive(Tile::turn", "wait without end"),
    (KERNELS, "ptx::mbarrier_wait(Tile::turn(warpgroup), ", "(void)(",
     "what nobody wrote|is being copied|what was written by a bulk copy|more arrivals|without end"),
    (KERNELS, "place.advance(Tile::kStages, work.last - work.first);", "",
     "what nobody wrote|is being copied|what was written by a bulk copy|more arrivals|without end"),
    (TILE, "add || part > 0", "add && part > 0", WRONG),
    (KERNELS, "step > work.first);", "true);", WRONG),
    (KERNELS, "(left + 15) / 16", "left / 16", WRONG),
    (TILE, "k_major_descriptor(b + part * 32)", "k_major_descriptor(b + part * 16)", WRONG),
    (TILE, "half * 64 * kHopperStepBytes", "half * 32 * kHopperStepBytes", WRONG),
    (KERNELS, "((work.phase % 2 + tap.w_offset) >> shift)",
     "((work.phase % 2 + tap.h_offset) >> shift)", WRONG),
    (KERNELS, "pixel.w * p.conv.w.step + p.corner", "pixel.w * p.conv.w.step",
     f"{WRONG}|pixel box"),
    (KERNELS, "tap.s, tap.r, work.column}", "tap.r, tap.s, work.column}", WRONG),
    (EPILOGUE, "own / 32 * 16 + lane / 4", "own / 32 * 16 + lane / 8",
     f"{WRONG}|{RACE}|nobody wrote"),
    (EPILOGUE, "chunk * 8 + lane % 4 * 2)", "chunk * 8 + lane % 4)", f"{WRONG}|{RACE}|not aligned"),
    (EPILOGUE, "    ptx::pass_to_copies();\n", "", "did not pass to copies"),
    (EPILOGUE, "    ptx::pass_to_copies();\n    sync();", "    ptx::pass_to_copies();",
     f"reads what was written by .*{RACE}|did not pass to copies"),
    (EPILOGUE, "    sync();  // the terms", "    // the terms",
     f"reads what was written by .*{RACE}|overwrites what was read by .*{RACE}|nobody wrote"),
    (KERNELS, "  if (epilogue.copies()) ptx::copy_out_wait();", "", "bulk copies out under way"),
)  # fmt: skip
IN_GRADIENT = (
    (TILE, "part * 16 * kHopperStepBytes", "part * 8 * kHopperStepBytes", WRONG),
    (TILE, "kPanelBytes)\n", "kPanelBytes / 2)\n", WRONG),
    (KERNELS, "{work.column + panel * Tile::kStep,", "{work.column,", WRONG),
)
# In what is done beside the products.
IN_FUSED = (
    (EPILOGUE, "      ptx::copy_out_wait();\n", "",
     f"overwrites what was read by .*{RACE}"),
    (EPILOGUE, "    sync();  // before anything", "    // before anything",
     f"overwrites what was read by .*{RACE}"),
    (EPILOGUE, "ptx::mbarrier_wait(Tile::residual(warpgroup), residual_parity, p.stall,", "(void)(",
     "is being copied|what nobody wrote"),
    (EPILOGUE, "residual_parity ^= 1;", "", "is being copied|what was written by a bulk copy"),
    (EPILOGUE, "rest < end - row", "false", WRONG),
    (EPILOGUE, "i % kPer * 2 + lane % 2 + lane / 2 * 4", "i % kPer * 2 + lane % 2 + lane / 2 * 2",
     WRONG),
    (EPILOGUE, "image * p.phases + work.phase", "image + work.phase", f"{WRONG}|another thread"),
    (KERNELS, "work.phase / 2 + tap.h_offset", "work.phase % 2 + tap.h_offset", WRONG),
    (EPILOGUE, "work.phase / 2, work.phase % 2,", "work.phase % 2, work.phase / 2,", WRONG),
)  # fmt: skip
IN_SPLITS = (
    (EPILOGUE, "    const uint32_t ticket = Tile::kTickets + warpgroup * 4;\n    sync();",
     "    const uint32_t ticket = Tile::kTickets + warpgroup * 4;", f"another thread|{RACE}"),
    (EPILOGUE, "+ 1 < static_cast<unsigned>(conv.splits)) return false;",
     "> static_cast<unsigned>(conv.splits)) return false;", "another thread of the launch"),
    (EPILOGUE, "p.tickets + work.tile", "p.tickets", f"another thread|{WRONG}|nan|tickets"),
    (EPILOGUE, "int64_t(work.split) * kAll", "int64_t(0) * kAll", "another thread of the launch"),
)  # fmt: skip
IN_OVERLAP = (
    (KERNELS, "  ptx::wait_for_kernel_before();\n  ptx::allow_kernel_after();\n", "",
     "has not waited for the kernel before"),
    (KERNELS, "  ptx::wait_for_kernel_before();\n#pragma", "#pragma",
     "has not waited for the kernel before"),
    (KERNELS, "  ptx::wait_for_kernel_before();\n  ptx::allow_kernel_after();\n",
     "  ptx::allow_kernel_after();\n  ptx::wait_for_kernel_before();\n",
     "allows the next kernel before it has waited"),
    (KERNELS, "if (early > 0) {\n        --early;", "if (false) {",
     "wait without end|more arrivals|is being copied"),
)  # fmt: skip


def faulty_library(folder, file, line, mistake):
    library = emulated.faulty_library(folder, file, line, mistake, "conv2d_sm90_bf16")
    library.set_hopper(1)
    return library


@pytest.mark.parametrize(("file", "line", "mistake", "finding"), PLANTED)
def test_a_planted_fault_is_found(tmp_path, file, line, mistake, finding):
    # More steps than stages, steps of 64 and of 40 channels, more tiles than blocks.
    case = hopper(n=6, c=104, c_out=40, height=10, width=10)
    with pytest.raises((RuntimeError, AssertionError), match=finding):
        check_rounded(*run_forward(case, faulty_library(tmp_path, file, line, mistake)))


@pytest.mark.parametrize(("file", "line", "mistake", "finding"), IN_GRADIENT)
def test_a_fault_planted_in_the_gradient_is_found(tmp_path, file, line, mistake, finding):
    case = hopper(tile=5, n=2, c=104, c_out=40)
    with pytest.raises((RuntimeError, AssertionError), match=finding):
        check_rounded(*run_grad_x(case, faulty_library(tmp_path, file, line, mistake)))


def check_fused(library, *calls: Fused) -> None:
    for call in calls:
        conv2d_fused_cases.check(call, library)


@pytest.mark.parametrize(("file", "line", "mistake", "finding"), IN_FUSED)
def test_a_fault_planted_beside_the_products_is_found(tmp_path, file, line, mistake, finding):
    library = faulty_library(tmp_path, file, line, mistake)
    many = hopper(tile=7, n=40, c=16, c_out=32, height=6, width=6)  # tiles, images in a block
    enlarged = hopper(tile=6, c=40, c_out=24, n=3, height=5, width=7, upsample=True)
    with pytest.raises((RuntimeError, AssertionError), match=finding):
        check_fused(library, Fused(many, residual="channels_last"), Fused(enlarged))


@pytest.mark.parametrize(("file", "line", "mistake", "finding"), IN_SPLITS)
def test_a_fault_planted_in_splits_is_found(tmp_path, file, line, mistake, finding):
    case = hopper(n=9, c=72, c_out=72, height=8, width=8, splits=3)
    with pytest.raises((RuntimeError, AssertionError), match=finding):
        check_fused(faulty_library(tmp_path, file, line, mistake), Fused(case, tickets=True))


@pytest.mark.parametrize(("file", "line", "mistake", "finding"), IN_OVERLAP)
def test_a_fault_planted_in_overlaps_is_found(tmp_path, file, line, mistake, finding):
    case = hopper(n=9, c=72, c_out=72, height=8, width=8)
    with pytest.raises((RuntimeError, AssertionError), match=finding):
        check_fused(faulty_library(tmp_path, file, line, mistake), Fused(case, overlaps=True))
