"""Activations and gates in the CUDA convolutions' stores, on either path, beside an fp64 reference.

GELU, GEGLU of two blocks of columns, a gate an image, with all else that is added. On the emulator:
no GPU takes part.
"""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from cuda_kernels import conv2d_fused_cases, emulated, structures
from cuda_kernels.activation_cases import KINDS, activated
from cuda_kernels.conv2d_cases import DTYPES, Case, check_rounded, run_grad_x
from cuda_kernels.conv2d_fused_cases import BOTH, HOPPER, PORTABLE, Fused, check, run
from ops.op_checks import normal, seeded

SPLIT = tuple(tile for tile in BOTH if tile != 10)
WIDE = (*PORTABLE, 5, 6, 8, 10)  # tiles of half as many columns of y that are a swizzle's


@pytest.fixture(autouse=True)
def _hopper():
    with emulated.hopper():
        yield


def tiles_of(activation: str | None) -> tuple[int, ...]:
    return WIDE if activation == "geglu" else BOTH


ON_TILES = [(activation, tile) for activation in KINDS for tile in tiles_of(activation)]


@pytest.mark.parametrize(("activation", "tile"), ON_TILES)
def test_an_activation_a_gate_and_a_residual(activation, tile):
    """Tails of pixels, columns and K; several images in a tile and tiles in an image."""
    case = Case(tile=tile, splits=1, n=5, c=72, c_out=72, kernel=1, height=8, width=8)
    call = Fused(case, activation=activation, gate=True, bias=True, residual="channels_last")
    check(call)
    check(replace(call, conv=replace(case, n=2, c=24, c_out=21, height=16, width=12), bias=False,
                  residual="sliced", gain=0.5**0.5))  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", KINDS)
@pytest.mark.parametrize("splits", [1, 3])
def test_any_type_and_image(dtype, activation, splits):
    """Elements one by one, images that end within a tile, weights of float32 beside 16 bits."""
    case = Case(dtype=dtype, tile=3, splits=splits, n=7, c=43, c_out=19, height=3, width=5,
                sliced=True, weight_dtype=torch.float32)  # fmt: skip
    shift = activation != "geglu"
    check(Fused(case, shift=shift, activation=activation, gate=True, bias=True, residual="sliced"))
    check(Fused(replace(case, c=16, c_out=24), activation=activation, gate=True))


@pytest.mark.parametrize("activation", KINDS)
def test_full_precision(activation):
    case = Case(dtype=torch.float32, ieee=True, c=20, c_out=24, kernel=1, n=3, height=5)
    check(Fused(case, activation=activation, gate=True, bias=True, residual="channels_last"))


@pytest.mark.parametrize("tile", HOPPER)
def test_a_shift_before_the_activation(tile):
    case = Case(tile=tile, splits=1, c=40, c_out=48, n=3, height=8, width=8)
    call = Fused(case, shift=True, activation="gelu", shortcut=(24, 8), bias=True)
    check(call)
    check(replace(call, gate=True, residual="sliced", gain=-2.0))


@pytest.mark.parametrize(("activation", "tile"), [c for c in ON_TILES if c[1] in SPLIT])
@pytest.mark.parametrize("tickets", [False, True])
def test_splits(activation, tile, tickets):
    """Sums of both blocks are added before they meet."""
    case = Case(tile=tile, splits=3, c=200, c_out=72, kernel=1, n=5, height=8, width=8)
    check(Fused(case, activation=activation, gate=True, bias=True, residual="channels_last",
                tickets=tickets))  # fmt: skip


@pytest.mark.parametrize(("activation", "tile"), ON_TILES)
def test_overlaps_the_kernel_before(activation, tile):
    case = Case(tile=tile, splits=1, c=72, c_out=136, kernel=1, n=9, height=8, width=8)
    check(Fused(case, activation=activation, gate=True, residual="channels_last", overlaps=True))


@pytest.mark.parametrize("tile", [1, 5, 8])
@pytest.mark.parametrize("more", [{"upsample": True}, {"kernel": 3}, {"stride": 2}])
def test_geglu_of_any_window(tile, more):
    case = Case(tile=tile, splits=1, c=40, c_out=24, n=2, height=16, width=16)
    check(Fused(replace(case, **more), activation="geglu", gate=True, residual="sliced"))


def test_geglu_of_two_sources_takes_the_portable_path():
    check(Fused(Case(c=24, c2=16, c_out=24, height=8, width=8), activation="geglu", gate=True))


def test_the_head_kernel_has_no_activation():
    """A window of few channels, which it serves without one."""
    case = Case(c=3, c_out=24, n=3, height=8, width=8)
    for more, kernel in (
        ({}, "conv_head"),
        ({"activation": "gelu"}, "conv"),
        ({"gate": True}, "conv"),
    ):
        emulated.take_launches()
        check(Fused(case, **more))
        assert [name for name, _ in emulated.launches()] == [kernel]


@pytest.mark.parametrize("tile", [0, 1])
def test_the_choice_knows_the_columns_of_both_blocks(capfd, monkeypatch, tile):
    monkeypatch.setenv("DDSM_PRINT_CHOICES", "1")
    case = Case(tile=tile, splits=1, c=64, c_out=72, kernel=1, n=1, height=8, width=8)
    check(Fused(case, activation="geglu"))
    path = "sm_90a path" if tile == 0 else r"sm_80 path \(its tile was forced\)"
    found = re.search(
        rf"m=64 n=144 k_steps=(1|2) x1: \d+x(\d+), 1 splits, {path}", capfd.readouterr().err
    )
    assert int(found.group(2)) >= 64


REFUSED = (
    ({"gate": True}, "the sm_90a path needs images of a multiple of 64 pixels for a gate"),
    ({"activation": "gelu", "shift": True}, "of 64 pixels for a shift before an activation"),
    ({"activation": "geglu", "tile": 7}, "no kernel for this tile"),
    ({"activation": "geglu", "shift": True}, "GEGLU needs two weights and neither a shift nor a"),
    ({"activation": "geglu", "shortcut": (8, 0)}, "GEGLU needs two weights and neither a shift"),
)


@pytest.mark.parametrize(("more", "reason"), REFUSED)
def test_what_is_not_served_is_refused_by_name(more, reason):
    more = {**more}
    case = Case(tile=more.pop("tile", 6), splits=1)
    with pytest.raises(RuntimeError, match=reason):
        run(Fused(case, **more))


@pytest.mark.parametrize("parts", [2, 3])
@pytest.mark.parametrize("tile", [0, *BOTH])
@pytest.mark.parametrize("c_out", [40, 12])  # 12: two are packs of 8 numbers, one is none
def test_weights_side_by_side_in_wider_rows(parts, tile, c_out):
    """As a linear layer of more blocks than a launch takes has them: what lies between stays."""
    case = Case(c=72, c_out=c_out, kernel=1, n=3, height=8, width=8, tile=tile)
    generator = seeded(6)
    x, _ = case.sources(generator)
    weights = [case.weight(generator) for _ in range(parts)]
    columns = parts * case.c_out
    gate = normal(generator, case.n, columns, dtype=case.dtype)
    rows = torch.full((case.n, 8, 8, columns + 24), torch.nan, dtype=case.dtype)
    y = rows.permute(0, 3, 1, 2)[:, 8 : 8 + columns]
    args = structures.ForwardArgs(
        options=case.options(), shape=case.shape(x), x=emulated.image(x),
        weight=emulated.weight_of(weights[0]), parts=parts, gain=1.0, y=y.data_ptr(),
        y_stride=y.stride(3), c_out=case.c_out, activation=1, gate=gate.data_ptr(),
        gate_stride=gate.stride(0),
    )  # fmt: skip
    for i, weight in enumerate(weights[1:]):
        args.further[i].weight = weight.data_ptr()
    emulated.call("conv2d_forward", args, [x, *weights, gate], [rows])
    product = case.joined(x, None)
    sums = [case.convolve(product, case.product_input(case.slice(w))) for w in weights]
    joined = torch.cat(sums, 1)
    check_rounded(y, activated("gelu", joined, joined) * gate.double()[:, :, None, None])
    assert rows.isnan().sum() == rows[..., :24].numel()


@pytest.mark.parametrize("tile", [0, 1, 4, 5, 6, 8, 10])
@pytest.mark.parametrize("parts", [2, 3, 6])
def test_the_gradient_of_x_of_several_weights(tile, parts):
    """Each a step of K: its channels of grad_y, its weight."""
    case, generator = Case(c=40, c_out=72, kernel=1, n=1, height=150, width=1, tile=tile), seeded(7)
    memory = torch.stack([case.weight(generator) for _ in range(parts)])
    grad_y = normal(generator, case.height, parts * case.c_out, dtype=case.dtype)
    grad_x = case.out(case.c, case.height, 1)
    image = emulated.image(grad_y[None, :, None].permute(0, 3, 1, 2))
    image.channels = case.c_out
    args = structures.GradXArgs(
        options=case.options(),
        shape=structures.Shape(1, case.height, 1, case.height, 1, 1, 0, 1),
        grad_y=image,
        weight=emulated.weight_of(memory[0]),
        parts=parts,
        part_stride=memory.stride(0),
        grad_x=grad_x.data_ptr(),
        c_in=case.c,
    )
    emulated.call("conv2d_grad_x", args, [grad_y, memory], [grad_x])
    exact = sum(
        part.double() @ case.slice(weight).double()[:, :, 0, 0]
        for part, weight in zip(grad_y.split(case.c_out, 1), memory, strict=True)
    )
    check_rounded(grad_x[0, :, :, 0].T, exact)


def test_the_gradient_of_x_of_one_weight_is_unchanged():
    check_rounded(*run_grad_x(Case(c=40, c_out=72, kernel=1, n=1, height=70, width=1)))


WRONG = r"Tensor-likes are not close|Mismatched elements"
RACE = "no barrier is between"
HOPPER_EPILOGUE, HOPPER_KERNELS = "conv2d_sm90_epilogue.cuh", "conv2d_sm90_kernels.cuh"
PLANTED = (
    (HOPPER_KERNELS, "block * Tile::kColumns * kHopperStepBytes", "0",
     f"{WRONG}|{RACE}|is being copied|nobody wrote"),
    (HOPPER_EPILOGUE, "constexpr int kGateHalf = Tile::kN / 4;",
     "constexpr int kGateHalf = Tile::kN / 8;", WRONG),
    (HOPPER_EPILOGUE, "load(half * Tile::kN + Tile::kColumns + column)",
     "load(half * Tile::kN + column)", WRONG),
    (HOPPER_EPILOGUE, "p.conv.parts.bias_of(work.part + block)",
     "p.conv.parts.bias_of(work.part)", WRONG),
    (HOPPER_EPILOGUE, "p.conv.rows.at(m).image * e.gate_stride", "0 * e.gate_stride", WRONG),
    (HOPPER_EPILOGUE, "const int32_t m = work.m0 + half * 64;\n    if (!e.gate",
     "const int32_t m = work.m0;\n    if (!e.gate", WRONG),
    (HOPPER_EPILOGUE, "    if constexpr (kActivated) store_gates();\n", "", "nobody wrote"),
)  # fmt: skip
PORTABLE_PLANTED = (
    ("conv2d_loaders.cuh", "part = line / kColumns;", "part = 0;", WRONG),
    ("conv2d_loaders.cuh", "n = o = n0 + line % kColumns;", "n = o = n0 + line;",
     f"{WRONG}|out of bounds"),
    ("conv2d_epilogue.cuh", "Tile::out_address(row, kColumns + column + i)",
     "Tile::out_address(row, column + i)", WRONG),
    ("conv2d_epilogue.cuh", "p.parts.bias_of(1)", "p.parts.bias_of(0)", WRONG),
    ("conv2d_epilogue.cuh", "static_cast<const T*>(rows) + image * stride + n",
     "static_cast<const T*>(rows) + n", WRONG),
)  # fmt: skip


def check_faulty(tmp_path, file: str, line: str, mistake: str, stem: str, tile: int) -> None:
    library = emulated.faulty_library(tmp_path, file, line, mistake, stem)
    library.set_hopper(1)
    case = Case(tile=tile, splits=1, n=5, c=72, c_out=72, kernel=1, height=8, width=8)
    more = {"activation": "geglu", "gate": True, "bias": True, "residual": "channels_last"}
    conv2d_fused_cases.check(Fused(case, **more), library)


@pytest.mark.parametrize(("file", "line", "mistake", "finding"), PLANTED)
def test_a_planted_fault_is_found(tmp_path, file, line, mistake, finding):
    with pytest.raises((RuntimeError, AssertionError), match=finding):
        check_faulty(tmp_path, file, line, mistake, "conv2d_sm90_activated_bf16", 5)


@pytest.mark.parametrize(("file", "line", "mistake", "finding"), PORTABLE_PLANTED)
def test_a_fault_planted_in_the_portable_path_is_found(tmp_path, file, line, mistake, finding):
    with pytest.raises((RuntimeError, AssertionError), match=finding):
        check_faulty(tmp_path, file, line, mistake, "conv2d_activated_bf16", 1)
