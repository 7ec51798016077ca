"""The CUDA kernels' index arithmetic and tile choice, against plain arithmetic."""

from __future__ import annotations

from ctypes import byref, c_char_p, c_int, c_int64, create_string_buffer
from itertools import chain

import pytest
from cuda_kernels import emulated
from hypothesis import given, settings
from hypothesis import strategies as st

TILES = ((128, 128), (128, 64), (64, 64), (64, 32))
MATHS = {"bf16": 0, "fp16": 1, "tf32": 2, "ieee": 3}
H200, A100, RTX = 132, 108, 28  # multiprocessors; the last of a small card


@settings(deadline=None)  # the first call builds the library
@given(st.integers(1, 2**31 - 1), st.integers(0, 2**31 - 1))
def test_quotients(divisor, n):
    assert emulated.library().quotient(divisor, n) == n // divisor


@pytest.mark.parametrize("divisor", [1, 2, 3, 7, 49, 1000, 65536, 2**30, 2**31 - 1])
def test_quotients_at_the_edges(divisor):
    for n in (0, divisor - 1, divisor, min(divisor * 2, 2**31) - 1, 2**31 - 1):
        assert emulated.library().quotient(divisor, n) == n // divisor


@pytest.mark.parametrize("chunks", [4, 8, 16, 32])
def test_ldmatrix_meets_every_bank_once(chunks):
    swizzled = emulated.library().swizzled
    places = [[swizzled(0, line, c, chunks) for c in range(chunks)] for line in range(64)]
    assert sorted(chain.from_iterable(places)) == list(range(64 * chunks))
    for first in range(0, 64, 8):
        for chunk in range(chunks):
            banks = {places[line][chunk] % 8 for line in range(first, first + 8)}
            assert len(banks) == 8


@pytest.mark.parametrize("chunks", [8, 16, 32])
def test_words_across_k_meet_every_bank_once(chunks):
    """The 32 lanes read 4 lines of 8 adjacent words: 128 bytes over all banks."""
    swizzled = emulated.library().swizzled
    places = [[swizzled(1, line, c, chunks) for c in range(chunks)] for line in range(16)]
    assert sorted(chain.from_iterable(places)) == list(range(16 * chunks))
    for first in range(0, 16, 4):
        for chunk in range(0, chunks, 2):
            banks = {places[first + i][chunk + j] % 8 for i in range(4) for j in range(2)}
            assert len(banks) == 8


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(0, 40))
def test_moment_blocks_cover_every_image_once(pixels, image):
    library = emulated.library()
    library.moment_blocks.restype = library.moment_block_pixels.restype = c_int64
    begin, end = image * pixels, (image + 1) * pixels
    touched = list(range(begin // 64, (end - 1) // 64 + 1))
    blocks = library.moment_blocks(c_int64(pixels))
    assert blocks >= len(touched)
    for index in range(blocks):
        block = begin // 64 + index
        expected = max(0, min(end, block * 64 + 64) - max(begin, block * 64))
        got = library.moment_block_pixels(c_int64(pixels), c_int64(image), c_int64(index))
        assert got == expected


def choose(
    math: str,
    m: int,
    n: int,
    k_steps: int,
    batches: int = 1,
    *,
    aligned: bool = True,
    multiprocessors: int = H200,
):
    """(tile, splits, printed line), or the reason of the refusal."""
    library = emulated.library()
    library.choose.restype = c_char_p
    tile, splits, line = c_int(), c_int(), create_string_buffer(256)
    sizes = [c_int64(value) for value in (m, n, k_steps, batches)]
    reason = library.choose(
        MATHS[math], *sizes, int(aligned), multiprocessors, byref(tile), byref(splits), line
    )
    if reason is not None:
        return reason.decode()
    return TILES[tile.value], splits.value, line.value.decode()


@settings(deadline=None)
@given(
    st.sampled_from(sorted(MATHS)),
    st.integers(1, 10**6),
    st.integers(1, 2048),
    st.integers(1, 10**4),
    st.sampled_from((1, 9, 25)),
    st.booleans(),
    st.sampled_from((RTX, A100, H200)),
)
def test_every_problem_has_a_legal_choice(math, m, n, k_steps, batches, aligned, multiprocessors):
    tile, splits, line = choose(
        math, m, n, k_steps, batches, aligned=aligned, multiprocessors=multiprocessors
    )
    assert 1 <= splits <= k_steps
    assert splits * batches <= 65535  # the second dimension of a grid
    if math == "ieee" or not aligned:
        assert tile == (64, 64)
    assert f"{tile[0]}x{tile[1]}, {splits} splits" in line


def test_large_problems_take_large_tiles_and_small_ones_split():
    assert choose("bf16", 128 * 1024, 256, 72)[:2] == ((128, 128), 1)
    tile, splits, _ = choose("bf16", 16, 512, 288)  # 4x4 pixels of one image
    blocks = -(-16 // tile[0]) * -(-512 // tile[1]) * splits
    assert blocks >= H200 // 2
    assert choose("bf16", 128 * 1024, 3, 36)[0] == (64, 32)  # the last convolution


@pytest.mark.parametrize(
    ("problem", "reason"),
    [
        ((2**31, 64, 9), "more than 2^31 rows (pixels of all images together)"),
        ((64, 2**31, 9), "more than 2^31 columns"),
        ((64, 64, 2**31), "more than 2^31 steps along K"),
        ((2**30, 2**30, 9), "more than 2^31 tiles"),
        ((64, 64, 9, 1024), "a kernel with more than 1023 taps"),
    ],
)
def test_what_32_bits_cannot_count_is_refused_by_name(problem, reason):
    assert choose("bf16", *problem) == reason
