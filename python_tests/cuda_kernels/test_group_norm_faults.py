"""Faults planted in the group norm kernels are found on the emulator."""

from __future__ import annotations

import ctypes

import pytest
import torch.nn.functional as F
from cuda_kernels import emulated
from cuda_kernels.emulated import faulty_library
from cuda_kernels.group_norm_cases import Case, check, check_close

WRONG = "not close"
BLOCKS, KERNELS = "group_norm_blocks.cuh", "group_norm_kernels.cuh"
GRADIENTS = "group_norm_grad_kernels.cuh"
UNSEEN = "reads what was written by|reads what nobody wrote"
# file, a line of it, what a mistake would make of it, and what comes of that
PLANTED = (
    (BLOCKS, "    ptx::store_shared(thread * uint32_t(sizeof(GroupSums)), sum);\n  }\n"
     "  ptx::sync_threads();", "    ptx::store_shared(thread * uint32_t(sizeof(GroupSums)), sum);"
     "\n  }", UNSEEN),
    (BLOCKS, "kLaneSums + thread * uint32_t(sizeof(GroupSums)), sum);\n  }\n  ptx::sync_threads();",
     "kLaneSums + thread * uint32_t(sizeof(GroupSums)), sum);\n  }", UNSEEN),
    (BLOCKS, "kLaneSums = kApplyThreads * sizeof(GroupSums)", "kLaneSums = 0",
     "no barrier is between"),
    (BLOCKS, "pixels[i] = r < parts.count ?", "pixels[i] = true ?", "out of bounds|not close"),
    (BLOCKS, "if (pixels[i] > 0) values[i] =", "values[i] =", "out of bounds"),
    (BLOCKS, "idle ? 0 : (rows", "(rows", "what another thread of the launch wrote|out of bounds"),
    (BLOCKS, "left < size ? left : size, second", "size, second",
     "out of bounds|what another thread"),
    (BLOCKS, "c += groups.lanes", "c += 2 * groups.lanes", WRONG),
    (BLOCKS, "(i / kTogether * packs + pack)", "(i / kTogether * packs + pack / 2)",
     "no barrier is between|overwrites"),
    (KERNELS, "    }\n  }\n  ptx::sync_threads();\n}", "    }\n  }\n}", UNSEEN),
    (KERNELS, "sum.second += moments.m2 + pixels * d * d;", "sum.second += moments.m2;", WRONG),
    (KERNELS, "place.row_block == 0 && ", "", "what another thread of the launch wrote"),
    (KERNELS, "second ? channel - p.sources[0].c : channel, row", "channel, row",
     "out of bounds|not close"),
    (KERNELS, "kPairPitch = kSumThreads + 8", "kPairPitch = kSumThreads - 8",
     "overwrites|no barrier is between"),
    (KERNELS, "  ptx::sync_threads();\n  Pair sum{};", "  Pair sum{};", UNSEEN),
    (KERNELS, "const float d = value[i] - shift[i];", "const float d = value[i];", WRONG),
    (KERNELS, "<float>(beta - mean * a)", "<float>(beta + mean * a)", WRONG),
    (GRADIENTS, "    rstd = NormalisedChannel::of(p, place, source, "
     "packed_channel<V>(place.channels)).rstd;\n  }\n  ptx::sync_threads();", "    rstd = "
     "NormalisedChannel::of(p, place, source, packed_channel<V>(place.channels)).rstd;\n  }",
     UNSEEN),
    (GRADIENTS, "sum.second *= rstd;", "", WRONG),
    (GRADIENTS, "first += gamma * part.first", "first += part.first", WRONG),
    (GRADIENTS, "  ptx::sync_threads();\n  if (place.row != 0) return sum;",
     "  if (place.row != 0) return sum;", UNSEEN),
    (GRADIENTS, "fmaf(-u, s, u)", "fmaf(u, s, u)", WRONG),
    (GRADIENTS, "pick(second, p.sources[0].param_offset, p.sources[1].param_offset)",
     "p.sources[0].param_offset", WRONG),
    # Scale and shift of each image.
    (BLOCKS, "load_global(p.scale + image * p.modulation_stride + channel)",
     "load_global(p.scale + channel)", WRONG),
    (BLOCKS, "image * p.modulation_stride + channel;", "image * p.modulation_stride;", WRONG),
    (BLOCKS, "return {plain.gamma * factor,", "return {plain.gamma,", WRONG),
    (BLOCKS, "fmaf(plain.beta, factor, to_float", "(plain.beta + to_float", WRONG),
    (KERNELS, "Modulated::of(p, place.image, first + thread,",
     "Modulated::of(p, place.image, place.channel + thread,", WRONG),
    (GRADIENTS, "if (p.scale) gamma *= scale_of(p, place.image, channel);", "", WRONG),
    (GRADIENTS, "place.parts.blocks.quotient(r), channel", "0, channel", WRONG),
    (GRADIENTS, "const int64_t first = int64_t(image) * place.parts.count;",
     "const int64_t first = 0;", WRONG),
    (GRADIENTS, "load_param(p, p.bias, param) * sum.first)", "sum.first)", WRONG),
    # Means of 2x2 pixels.
    (KERNELS, "2 * int64_t(half_width) * source.x_stride", "int64_t(half_width) * source.x_stride",
     WRONG),
    (KERNELS, "2 * (row + int64_t(p.half_width.quotient(row)) * half_width)", "2 * int64_t(row)",
     WRONG),
    (KERNELS, "int64_t(place.image) * pixels + first_row", "int64_t(place.image) * p.pixels + "
     "first_row", "out of bounds"),
    (KERNELS, "p.pixels / 4, first_row", "p.pixels, first_row", "out of bounds"),
    (KERNELS, "act(affine.at(i, u[i]))", "affine.at(i, u[i])", WRONG),
)  # fmt: skip


def check_all(library: ctypes.CDLL) -> None:
    """Two sources, a group over both, chunks of two sizes, images that end within a block."""
    library.set_multiprocessors(1)  # blocks of many rows: more than a block's threads at a time
    case = Case((40,), 5, n=1, height=9)
    check_close(case.forward(library=library), case.exact()[0], 4e-6)
    library.set_multiprocessors(16)
    case = Case((72, 24), 6, n=3)
    check(case, library)
    given = (case.moments(0, 1), case.moments(1, 1))
    check_close(case.forward(given, library=library), case.exact()[0], 4e-6)
    check(Case((72, 24), 6, n=3, modulated=True), library)
    case = Case((72, 24), 6, n=3, height=6, width=10)
    check_close(case.forward(down=True, library=library), F.avg_pool2d(case.exact()[0], 2), 4e-6)


@pytest.mark.parametrize(("file", "line", "mistake", "finding"), PLANTED)
def test_a_planted_fault_is_found(tmp_path, file, line, mistake, finding):
    library = faulty_library(tmp_path, file, line, mistake, "group_norm")
    with pytest.raises((RuntimeError, AssertionError), match=finding):
        check_all(library)


def test_nothing_is_found_without_a_fault():
    check_all(emulated.library())
    emulated.library().set_multiprocessors(4)


# whether y is halved, and a kernel's beginning
WAITS = (
    (False, "group_norm_apply_kernel(const NormParams<T, const Moments> p) {\n"
     "  constexpr int kAhead = 4;\n  ptx::wait_for_kernel_before();"),
    (False, "group_norm_moments_kernel(const NormParams<T, Moments> p) {\n"
     "  constexpr int kAhead = 4;\n  ptx::wait_for_kernel_before();"),
    (True, "group_norm_apply_down_kernel(const NormParams<T, const Moments> p) {\n"
     "  constexpr int kAhead = 2;\n  ptx::wait_for_kernel_before();"),
)  # fmt: skip


@pytest.mark.parametrize(("down", "line"), WAITS)
def test_a_kernel_that_does_not_wait_is_found(tmp_path, down, line):
    mistake = line.replace("ptx::wait_for_kernel_before();", "")
    library = faulty_library(tmp_path, KERNELS, line, mistake, "group_norm")
    library.set_hopper(1)
    with pytest.raises(RuntimeError, match=r"has not waited|before it has waited"):
        Case((24,), 4, height=6, width=10).forward(overlaps=True, down=down, library=library)
