"""The CUDA attention kernels on the emulator beside an fp64 reference. No GPU takes part."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from cuda_kernels import emulated
from cuda_kernels.attention_cases import DTYPES, LAYOUTS, Case, Exact, check, choose
from hypothesis import given, settings
from hypothesis import strategies as st


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [1, 3, 8, 40, 59, 64, 72, 111, 128, 136, 192, 200, 256])
def test_head_sizes(dtype, d):
    check(Case(dtype=dtype, heads=1, d=d))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [257, 320, 512, 520])
def test_large_head_sizes(dtype, d):
    check(Case(dtype=dtype, heads=1, t_q=20, t_k=37, d=d))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("t_q", "t_k"), [(1, 1), (64, 64), (5, 130), (130, 5), (129, 1), (1, 65)])
@pytest.mark.parametrize("d", [16, 65])
def test_lengths(dtype, t_q, t_k, d):
    check(Case(dtype=dtype, n=2, heads=1, t_q=t_q, t_k=t_k, d=d))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "d"), [(2, 40), (1, 64), (1, 160), (1, 192)])
@pytest.mark.parametrize("t_k", [1, 77])
def test_contexts(dtype, heads, d, t_k):
    """One token and CLIP's 77, latent diffusion's head sizes, keys and values in one buffer."""
    check(Case(dtype=dtype, n=2, heads=heads, t_q=20, t_k=t_k, d=d, layout="slices"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("d", [24, 61])
def test_layouts(dtype, layout, d):
    check(Case(dtype=dtype, n=2, heads=3, t_q=19, t_k=35, d=d, layout=layout))


@pytest.mark.parametrize("d", [64, 120])
def test_two_row_tiles(d, monkeypatch, capfd):
    """More rows than one tile a warp takes, and blocks enough for the emulator's processors."""
    monkeypatch.setenv("DDSM_PRINT_CHOICES", "1")
    check(Case(n=2, heads=2, t_q=150, t_k=140, d=d))
    printed = capfd.readouterr().err
    shape = f"n=2 heads=2 t_q=150 t_k=140 d={d}: whole-row kernel"
    assert f"attention forward {shape}, 2 row tiles, {-(-d // 64)} slabs" in printed
    assert ("2 row tiles" in printed.split("gradient of values")[1]) == (d <= 64)


FORWARD, VALUES, SCORES = 0, 1, 2


@settings(deadline=None)  # the first call builds the library
@given(
    st.sampled_from((FORWARD, VALUES, SCORES)),
    st.sampled_from((2, 4)),
    st.booleans(),
    st.integers(1, 10**6),
    st.integers(1, 10**5),
    st.integers(1, 600),
)
def test_every_problem_has_a_kernel(attention_pass, element_bytes, aligned, heads, rows, d):
    row_tiles, slabs, general = choose(attention_pass, element_bytes, aligned, heads, rows, d)
    features = slabs * 128 // element_bytes
    if general:  # what launch_attention_pass has
        assert (row_tiles, slabs) in ((1, 2), (1, 4))
    else:
        assert element_bytes == 2
        assert aligned
        assert 1 <= slabs <= 4
        assert features - 64 < d <= features
        assert row_tiles == 1 or (row_tiles == 2 and slabs <= (2 if attention_pass == 0 else 1))


def test_few_or_short_heads_take_one_row_tile():
    assert choose(FORWARD, 2, True, 128, 256, 128) == (2, 2, 0)
    assert choose(FORWARD, 2, True, 1, 256, 128) == (1, 2, 0)  # fewer blocks than processors
    assert choose(FORWARD, 2, True, 1000, 64, 128) == (1, 2, 0)  # 8x8 pixels
    assert choose(SCORES, 2, True, 128, 256, 128) == (1, 2, 0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1.0, 0.0, -0.5])
def test_scale(dtype, scale):
    check(Case(dtype=dtype, scale=scale, t_q=20, t_k=40, d=16))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [16, 17])
def test_large_scores_do_not_overflow(dtype, d):
    case = Case(dtype=dtype, t_q=20, t_k=140, d=d, size=20.0)
    exact = Exact(case)
    assert exact.lse.max() > math.log(torch.finfo(torch.float32).max)
    check(case)


class WithNan(Case):
    """In one row of q."""

    def tensors(self) -> list[torch.Tensor]:
        q, *others = super().tensors()
        q[0, 1, 3, 5] = torch.nan
        return [q, *others]


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_stays_in_its_row(dtype):
    case = WithNan(dtype=dtype, t_q=20, t_k=70, d=16)
    out, lse = case.forward()
    assert out[0, 1, 3].isnan().all()
    assert lse[0, 1, 3].isnan()
    assert out.isnan().sum() == case.d
    assert lse.isnan().sum() == 1


def test_no_queries_leave_zero_gradients_and_no_heads_nothing():
    case = Case(t_q=0)
    out = case.empty(0)
    grads = case.backward(out, torch.empty(case.n, case.heads, 0))
    assert not any(grad.any() for grad in grads)
    nothing = replace(case, n=0)
    nothing.forward()
    nothing.backward(nothing.empty(0), torch.empty(0, case.heads, 0))


def test_repeatable():
    case = Case(t_q=130, t_k=140, d=40)
    out, lse = case.forward()
    grads = case.backward(out, lse)
    again, lse_again = case.forward()
    assert again.equal(out)
    assert lse_again.equal(lse)
    for first, second in zip(grads, case.backward(out, lse), strict=True):
        assert first.equal(second)


def test_float64_is_refused():
    args = Case().args()
    args.dtype = 3
    with pytest.raises(RuntimeError, match="no CUDA kernel for float64"):
        emulated.call("attention_forward", args, [], [])
