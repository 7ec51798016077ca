"""The kernel of sinusoidal_embedding on the emulator beside the function that it replaces."""

from __future__ import annotations

import math

import pytest
import torch
from cuda_kernels import emulated, structures
from cuda_kernels.emulated import faulty_library
from ops.op_checks import normal, seeded
from torch import Tensor

from ddsm_ext.ops.embedding import embed_time

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
T_TYPES = (torch.float32, torch.float64, torch.int64)
TIMES = (0, 1, 49, 50, 0.5, 48.999, -1, 999, 1000, 17.25, 3)


def embed(
    t: Tensor,
    dim: int,
    table: Tensor | None,
    dtype: torch.dtype,
    library: object = None,
    *,
    halves: bool = False,
    swapped: bool = False,
    freq_shift: float = 0.0,
    frequencies: Tensor | None = None,
) -> Tensor:
    y = torch.full((len(t), dim), torch.nan, dtype=dtype)
    args = structures.SinusoidalArgs(
        dtype=emulated.DTYPES[dtype],
        table_dtype=emulated.DTYPES[dtype if table is None else table.dtype],
        t_type=T_TYPES.index(t.dtype),
        halves=halves,
        swapped=swapped,
        freq_shift=freq_shift,
        frequencies=None if frequencies is None else frequencies.data_ptr(),
        t=t.data_ptr(),
        table=None if table is None else table.data_ptr(),
        t_stride=t.stride(0),
        n=len(t),
        dim=dim,
        rows=0 if table is None else len(table),
        y=y.data_ptr(),
    )
    emulated.call("sinusoidal_embedding", args, [t, table, frequencies], [y], library)
    return y


def check(t: Tensor, dim: int, table: Tensor | None, dtype: torch.dtype, library=None) -> None:
    got, expected = embed(t, dim, table, dtype, library), embed_time(t, dim, table, dtype)
    # An angle of 1000 is rounded to 6e-5; two ways to form it differ by that much.
    atol = 7e-5 + (0 if dtype == torch.float32 else torch.finfo(dtype).eps)
    torch.testing.assert_close(got, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("t_type", T_TYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values(dtype, t_type):
    t = torch.tensor(TIMES, dtype=torch.float64).to(t_type)
    for dim in (2, 6, 128):
        check(t, dim, None, dtype)
        for table_dtype in DTYPES:
            table = normal(seeded(dim), 50, dim, dtype=table_dtype)
            check(t, dim, table, dtype)
            # Rows of the table, and nothing else, are taken as they are.
            of_table = (t >= 0) & (t < 50) & (t.double() == t.double().floor())
            got = embed(t, dim, table, dtype)[of_table]
            assert torch.equal(got, table[t[of_table].long()].to(dtype))
    check(t[::2], 128, None, dtype)
    check(t[:1].expand(5), 128, None, dtype)
    check(t[:0], 128, None, dtype)


def in_halves(value: Tensor) -> Tensor:
    """Sine and cosine in turn -> all cosines, then all sines."""
    return torch.cat([value[:, 1::2], value[:, ::2]], dim=1)


def check_halves(dim: int, table: Tensor | None, dtype: torch.dtype, library=None) -> None:
    """The numbers are those of sines and cosines in turn."""
    t, halved = torch.tensor(TIMES), None if table is None else in_halves(table)
    got = embed(t, dim, halved, dtype, library, halves=True)
    torch.testing.assert_close(got, in_halves(embed(t, dim, table, dtype)), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_halves(dtype):
    for dim in (2, 6, 128):
        for table in (None, normal(seeded(dim), 50, dim, dtype=torch.float32)):
            check_halves(dim, table, dtype)


def test_halves_are_those_of_the_reference():
    """Nichol & Dhariwal's order: cos(t f), sin(t f) with f = 10000^(-i / half)."""
    t = torch.tensor([0.0, 1.5, 999.0])
    f = 10000.0 ** (-torch.arange(32, dtype=torch.float64) / 32)
    angles = t.double()[:, None] * f
    exact = torch.cat([angles.cos(), angles.sin()], dim=1)
    got = embed(t, 64, None, torch.float32, halves=True)
    torch.testing.assert_close(got.double(), exact, rtol=0, atol=7e-5)


def check_frequencies(library: object = None) -> None:
    """f = 10000^(-i / (half - 1)) and f = 2 pi times given ones, of times of both signs."""
    t, half = torch.tensor([-1.7, 0.3, 0.0, 4.25, -20.5]), 16
    given = 16 * torch.randn(half, generator=seeded(3))
    i = torch.arange(half, dtype=torch.float64)
    cases = (
        ({"freq_shift": 1.0}, 10000.0 ** (-i / (half - 1))),
        ({"frequencies": given}, 2 * math.pi * given.double()),
    )
    for how, f in cases:
        angles = t.double()[:, None] * f
        # Their rounding in float32: of the frequency, and of the product.
        atol = 3e-7 * angles.abs().max().item() + 1e-6
        parts = [angles.cos(), angles.sin()]
        for swapped in (False, True):
            exact = torch.cat(parts[::-1] if swapped else parts, dim=1)
            got = embed(
                t, 2 * half, None, torch.float32, library, halves=True, swapped=swapped, **how
            )
            torch.testing.assert_close(got.double(), exact, rtol=0, atol=atol)


def test_other_frequencies():
    check_frequencies()


def test_swapped_rows_of_a_table():
    table, t = normal(seeded(1), 50, 16), torch.tensor([0.0, 49.0, 7.0])
    got = embed(t, 16, table, torch.float32, halves=True, swapped=True)
    assert torch.equal(got, table[[0, 49, 7]])


def test_sines_are_those_of_the_float_angle():
    """dim 2 has one frequency, 1: sine and cosine of t itself, to half a unit of the last place."""
    t = torch.cat([torch.linspace(-1000, 1000, 4001), torch.tensor([1e5, 999999.0, 1e-30, 0.0])])
    got = embed(t, 2, None, torch.float32).double()
    for column, function in ((0, math.sin), (1, math.cos)):
        exact = torch.tensor([function(value) for value in t.tolist()], dtype=torch.float64)
        torch.testing.assert_close(got[:, column], exact, rtol=6.1e-8, atol=1e-9)


def test_times_that_are_no_numbers():
    t = torch.tensor([torch.nan, torch.inf, -torch.inf])
    assert embed(t, 8, torch.zeros(5, 8), torch.float32).isnan().all(dim=1).tolist() == [True] * 3


def test_it_overlaps_nothing():
    with emulated.hopper():
        emulated.take_launches()
        embed(torch.ones(3), 128, None, torch.float32)
        assert emulated.take_launches() == ["sinusoidal_embedding 2x1x128"]


PLANTED = (
    ("t <= p.last_row && ", "", "out of bounds"),
    ("t >= 0 && ", "", "out of bounds"),
    ("&& t == floor(t)", "", "not close"),
    ("if (pair >= p.pairs) return;", "", "out of bounds"),
    ("quadrant >= 2 ? -a : a", "quadrant > 2 ? -a : a", "not close"),
    ("quadrant == 1 || quadrant == 2 ? -b", "quadrant == 1 ? -b", "not close"),
    ("index * p.t_stride", "index", "not close"),
    ("expf(-exponent)", "expf(exponent)", "not close"),
)


PLANTED_IN_HALVES = (
    ("p.swapped ? sine : cosine", "p.swapped ? cosine : sine", "not close|not equal"),
    ("y + p.half.divisor,", "y + 1,", "what another thread of the launch wrote"),
    ("p.swapped ? i : half + i", "i", "not close|not equal"),
)


@pytest.mark.parametrize(("line", "mistake", "finding"), PLANTED_IN_HALVES)
def test_a_fault_planted_in_halves_is_found(tmp_path, line, mistake, finding):
    stem = "sinusoidal_embedding"
    library = faulty_library(tmp_path, f"{stem}.cu", line, mistake, stem)
    with pytest.raises((RuntimeError, AssertionError), match=finding):
        check_halves(16, normal(seeded(1), 50, 16), torch.float32, library)


@pytest.mark.parametrize(
    ("line", "mistake"),
    [
        ("kTwoPi * ptx", "ptx"),
        ("p.frequencies + i", "p.frequencies"),
        ("- 2 * args.freq_shift", "- args.freq_shift"),
        ("p.swapped ? cosine : sine", "sine"),
    ],
)
def test_a_fault_planted_in_frequencies_is_found(tmp_path, line, mistake):
    stem = "sinusoidal_embedding"
    library = faulty_library(tmp_path, f"{stem}.cu", line, mistake, stem)
    with pytest.raises(AssertionError, match="not close"):
        check_frequencies(library)


@pytest.mark.parametrize(("line", "mistake", "finding"), PLANTED)
def test_a_planted_fault_is_found(tmp_path, line, mistake, finding):
    stem = "sinusoidal_embedding"
    library = faulty_library(tmp_path, f"{stem}.cu", line, mistake, stem)
    t = torch.tensor(TIMES, dtype=torch.float32).repeat_interleave(2)[::2]
    with pytest.raises((RuntimeError, AssertionError), match=finding):
        check(t, 128, normal(seeded(1), 50, 128), torch.float32, library)
