"""What the CUDA convolutions do beside the products, on either path, beside an fp64 reference.

Shift, residual, shortcut, several weights, the moments of what is stored, tickets. On the emulator:
no GPU takes part.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from cuda_kernels import emulated, structures
from cuda_kernels.conv2d_cases import DTYPES, Case, check_rounded
from cuda_kernels.conv2d_fused_cases import (
    BOTH,
    HOPPER,
    SIZES,
    Fused,
    check,
    check_moments,
    run,
)
from ops.op_checks import normal, seeded


@pytest.fixture(autouse=True)
def _hopper():
    with emulated.hopper():
        yield


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("splits", [1, 2])
@pytest.mark.parametrize(("n", "height", "width"), SIZES[:4])
def test_shift_and_residual(dtype, splits, n, height, width):
    """A tile of the portable path, whatever the type."""
    case = Case(dtype=dtype, tile=3, splits=splits, n=n, height=height, width=width)
    check(Fused(replace(case, c=40, c_out=21), shift=True, residual="sliced"))
    check(Fused(replace(case, c=40, c_out=24), shift=True, residual="channels_last"))


@pytest.mark.parametrize("tile", HOPPER)
@pytest.mark.parametrize("c_out", [21, 72])
@pytest.mark.parametrize(("n", "height", "width"), SIZES)
def test_shift_or_residual(tile, c_out, n, height, width):
    """With a bulk copy or without, a shift of each half or of each row; several tiles."""
    case = Case(tile=tile, splits=1, c=24, c_out=c_out, kernel=1, n=n, height=height, width=width)
    check(Fused(case, shift=True))
    check(Fused(case, residual="channels_last"))
    check(Fused(case, residual="sliced"))


@pytest.mark.parametrize("tile", BOTH)
def test_all_times_a_gain(tile):
    """Of the sum of everything, the shortcut too; the moments are of the product."""
    case = Case(tile=tile, splits=1, c=40, c_out=48, n=3, height=8, width=8)
    check(Fused(case, shift=True, residual="sliced", shortcut=(24, 8), gain=0.5**0.5))
    check(Fused(replace(case, upsample=True), residual="channels_last", gain=-3.0))
    if tile != 10:
        check(Fused(replace(case, splits=3), shift=True, gain=0.5**0.5, tickets=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_type_times_a_gain(dtype):
    case = Case(dtype=dtype, tile=3, splits=1, c=40, c_out=21, n=3, height=5, width=7)
    check(Fused(case, shift=True, residual="sliced", gain=0.5**0.5))


@pytest.mark.parametrize(
    ("dtype", "tile"),
    [*((d, t) for d in DTYPES for t in (0, 3)), *((torch.bfloat16, t) for t in HOPPER)],
)
def test_a_ring_around_the_image(dtype, tile):
    """Padding 2 of a 3x3 kernel: one more row and column of outputs on each side."""
    case = Case(dtype=dtype, tile=tile, splits=1, c=16, c_out=24, n=3, height=6, width=8, ring=True)
    check(Fused(case))
    if tile not in HOPPER:
        check(Fused(replace(case, c=3)))


@pytest.mark.parametrize("tile", HOPPER)
def test_residual_of_several_tiles_of_a_block(tile):
    case = Case(tile=tile, splits=1, c=16, c_out=72, kernel=1, n=40, height=6, width=6)
    check(Fused(case, residual="channels_last"))


@pytest.mark.parametrize("tile", HOPPER)
def test_shift_and_residual_of_images_of_64_pixels(tile):
    case = Case(tile=tile, splits=1, c=40, c_out=48, n=5, height=8, width=8)
    check(Fused(case, shift=True, residual="channels_last"))


def test_shift_and_residual_of_odd_images_are_refused():
    with pytest.raises(RuntimeError, match="images of a multiple of 64 pixels for a shift beside"):
        run(Fused(Case(tile=6, c=16), shift=True, residual="sliced"))
    check(Fused(Case(tile=0, c=16), shift=True, residual="sliced"))  # takes the other path


@pytest.mark.parametrize("tile", BOTH)
@pytest.mark.parametrize(("c", "c2"), [(8, 0), (72, 0), (24, 40), (64, 8)])
def test_shortcut(tile, c, c2):
    """Further steps of K: sources of their own, another weight, and its bias."""
    case = Case(tile=tile, splits=1, c=24, c_out=40, n=3, height=8, width=8)
    check(Fused(case, shortcut=(c, c2)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels_last", [False, True])
def test_shortcut_beside_any_convolution(dtype, channels_last):
    """Not aligned, at stride 2, enlarged, two sources on each side, split between them."""
    case = Case(dtype=dtype, c=11, c2=6, c_out=19, channels_last=channels_last, sliced=True)
    check(Fused(case, shortcut=(5, 9), residual="sliced"))
    check(Fused(replace(case, stride=2, splits=3), shortcut=(13, 0)))
    check(Fused(replace(case, upsample=True, tile=3), shortcut=(7, 3), shift=True))


@pytest.mark.parametrize("tile", HOPPER)
@pytest.mark.parametrize(
    ("kernel", "height", "width"), [(1, 3, 4), (3, 4, 4), (3, 5, 7), (5, 8, 8)]
)
def test_enlarged_images(tile, kernel, height, width):
    """Four classes of pixels, each with moments of its own."""
    case = Case(tile=tile, splits=1, c=40, c2=16, c_out=40, n=3, upsample=True, kernel=kernel)
    call = Fused(replace(case, height=height, width=width), residual="sliced")
    y, moments, exact = run(call)
    assert moments.size(1) == 4
    check_rounded(y, exact)
    check_moments(y, moments)


@pytest.mark.parametrize("tile", [5, 9])
def test_enlarged_images_split(tile):
    case = Case(tile=tile, splits=4, c=72, c_out=21, n=3, height=8, width=8, upsample=True)
    check(Fused(case, shift=True, tickets=True))


@pytest.mark.parametrize("tile", [t for t in BOTH if t != 10])
@pytest.mark.parametrize("splits", [2, 5])
@pytest.mark.parametrize("tickets", [False, True])
def test_splits(tile, splits, tickets):
    """The last of a tile's splits finishes it, with the caller's tickets or cleared memory."""
    case = Case(tile=tile, splits=splits, c=40, c2=24, c_out=48, n=5, height=8, width=8)
    emulated.take_launches()
    check(Fused(case, residual="channels_last", shortcut=(40, 0), tickets=tickets))
    kernel = "conv" if tile < 5 else "conv_sm90"
    names = [name for name, _ in emulated.launches()]
    assert names == ([kernel] if tickets else ["clear", kernel])


@pytest.mark.parametrize("tile", BOTH)
def test_overlaps_the_kernel_before(tile):
    """Nothing but weights is touched before that one has ended; the emulator watches."""
    case = Case(tile=tile, splits=1, c=72, c2=8, c_out=136, n=9, height=8, width=8)
    emulated.take_launches()
    check(Fused(case, shift=True, residual="channels_last", shortcut=(16, 8), overlaps=True))
    assert [overlaps for _, overlaps in emulated.launches()] == [True]


def test_the_variable_lets_no_kernel_overlap(monkeypatch):
    monkeypatch.setenv("DDSM_OVERLAP", "0")
    emulated.take_launches()
    check(Fused(Case(tile=6, splits=1), shift=True, overlaps=True))
    assert [overlaps for _, overlaps in emulated.launches()] == [False]


@pytest.mark.parametrize(
    ("tile", "splits"), [(t, s) for t in (0, *BOTH) for s in (1, 2) if (t, s) != (10, 2)]
)
@pytest.mark.parametrize("c_out", [24, 21, 64, 128])
def test_three_weights_side_by_side(tile, splits, c_out):
    """Each in memory of its own, below and above the first; a bias for some."""
    case = Case(c=72, c_out=c_out, kernel=1, splits=splits, tile=tile)
    check_three_weights(case)


@pytest.mark.parametrize("dtype", DTYPES)
def test_three_weights_of_any_type(dtype):
    check_three_weights(Case(dtype=dtype, c=40, c_out=21, kernel=1, splits=2, tile=3))


def check_three_weights(case: Case) -> None:
    generator, c_out = seeded(5), case.c_out
    x, _ = case.sources(generator)
    memory = torch.stack([case.weight(generator) for _ in range(3)])
    weights = [memory[i].to(memory_format=torch.channels_last) for i in (1, 0, 2)]
    biases = [normal(generator, memory.size(1), dtype=case.dtype), None]
    biases.append(normal(generator, memory.size(1), dtype=case.dtype))
    y = case.out(3 * c_out, case.height, case.width)
    args = structures.ForwardArgs(
        options=case.options(),
        shape=case.shape(x),
        x=emulated.image(x),
        weight=emulated.weight_of(weights[0]),
        bias=biases[0].data_ptr(),
        parts=3,
        gain=1.0,
        y=y.data_ptr(),
        y_stride=3 * c_out,
        c_out=c_out,
    )
    args.further[0] = structures.Part(weights[1].data_ptr(), None)
    args.further[1] = structures.Part(weights[2].data_ptr(), biases[2].data_ptr())
    emulated.call("conv2d_forward", args, [x, *weights, biases[0], biases[2]], [y])
    exact = []
    for weight, bias in zip(weights, biases, strict=True):
        part = case.convolve(case.joined(x, None), case.product_input(case.slice(weight)))
        exact.append(part if bias is None else part + bias[:c_out].double()[:, None, None])
    check_rounded(y, torch.cat(exact, dim=1))
