"""The CUDA attention kernels on the emulator beside an fp64 reference. No GPU takes part."""

from __future__ import annotations

import ctypes
import math
from ctypes import c_int, c_int64
from dataclasses import dataclass, replace

import pytest
import torch
from cuda_kernels import emulated
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.op_checks import normal, seeded
from torch import Tensor

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
LAYOUTS = ("contiguous", "positions", "slices", "shifted")


@dataclass(frozen=True)
class Case:
    """One attention; what lies between the elements of a strided input is NaN."""

    dtype: torch.dtype = torch.bfloat16
    n: int = 1
    heads: int = 2
    t_q: int = 70
    t_k: int = 70
    d: int = 24
    scale: float | None = None
    layout: str = "contiguous"
    size: float = 1.0  # of q and k

    def factor(self) -> float:
        return self.d**-0.5 if self.scale is None else self.scale

    def arrange(self, x: Tensor) -> Tensor:
        """x [n, heads, t, d] in the memory that `layout` names."""
        if self.layout == "contiguous":
            return x
        n, heads, t, d = x.shape
        # slices: rows stay multiples of 16 bytes; shifted: no row starts at one
        around = {"positions": (0, 0), "slices": (8, -d % 8 + 8), "shifted": (1, 2)}
        start, gap = around[self.layout]
        wide = x.new_full((n, t, heads, start + d + gap), torch.nan)
        view = wide[..., start : start + d].transpose(1, 2)
        view.copy_(x)
        return view

    def tensors(self) -> list[Tensor]:
        """q, k, v and the gradient of the output."""
        generator = seeded(1)
        lengths = (self.t_q, self.t_k, self.t_k, self.t_q)
        sizes = (self.size, self.size, 1, 1)
        return [
            self.arrange((normal(generator, self.n, self.heads, t, self.d) * size).to(self.dtype))
            for t, size in zip(lengths, sizes, strict=True)
        ]

    def empty(self, t: int) -> Tensor:
        memory = torch.full((self.n, t, self.heads, self.d), torch.nan, dtype=self.dtype)
        return memory.transpose(1, 2)

    def args(self, **tensors: Tensor) -> emulated.AttentionArgs:
        args = emulated.AttentionArgs(
            dtype=emulated.DTYPES[self.dtype],
            n=self.n,
            heads=self.heads,
            t_q=self.t_q,
            t_k=self.t_k,
            d=self.d,
            scale=self.factor(),
        )
        for name, tensor in tensors.items():
            view = emulated.AttentionTensor(tensor.data_ptr(), *tensor.stride()[:3])
            setattr(args, name, tensor.data_ptr() if name == "lse" else view)
        return args

    def forward(self, library: ctypes.CDLL | None = None) -> tuple[Tensor, Tensor]:
        q, k, v, _ = self.tensors()
        out = self.empty(self.t_q)
        lse = torch.full((self.n, self.heads, self.t_q), torch.nan)
        args = self.args(q=q, k=k, v=v, out=out, lse=lse)
        emulated.call("attention_forward", args, [q, k, v], [out, lse], library)
        return out, lse

    def backward(
        self, out: Tensor, lse: Tensor, library: ctypes.CDLL | None = None
    ) -> list[Tensor]:
        q, k, v, grad_out = self.tensors()
        grads = [self.empty(t) for t in (self.t_q, self.t_k, self.t_k)]
        names = ("grad_q", "grad_k", "grad_v")
        reads = {"q": q, "k": k, "v": v, "grad_out": grad_out, "out": out, "lse": lse}
        args = self.args(**reads, **dict(zip(names, grads, strict=True)))
        emulated.call("attention_backward", args, list(reads.values()), grads, library)
        return grads


class Exact:
    """The definition in fp64, and how far off rounding the weights of a sum once may lead.

    The kernels round P and dS to the element type before the tensor cores multiply them, so a sum
    of weight * value is off by half a unit times the sum of |weight * value|, and once more by its
    own rounding. delta is as exact as the rounded output that it is computed from.
    """

    def __init__(self, case: Case) -> None:
        q, k, v, grad = (t.double() for t in case.tensors())
        scale = case.factor()
        half = 0.0 if case.dtype == torch.float32 else 0.501 * torch.finfo(case.dtype).eps
        scores = scale * q @ k.mT
        self.lse = torch.logsumexp(scores, -1)
        p = torch.exp(scores - self.lse[..., None])
        self.out = p @ v
        delta = (grad * self.out).sum(-1, keepdim=True)
        ds = p * (grad @ v.mT - delta)
        delta_off = half * (grad * self.out).abs().sum(-1, keepdim=True)
        # dP - delta may cancel: both are float32 sums.
        ds_off = half * ds.abs() + p * (delta_off + 1e-6 * grad.abs() @ v.abs().mT)
        self.grads = [scale * ds @ k, scale * ds.mT @ q, p.mT @ grad]
        self.out_off = half * (p @ v.abs() + self.out.abs())
        self.grads_off = [
            abs(scale) * ds_off @ k.abs(),
            abs(scale) * ds_off.mT @ q.abs(),
            half * p.mT @ grad.abs(),
        ]
        self.grads_off = [
            off + half * g.abs() for off, g in zip(self.grads_off, self.grads, strict=True)
        ]
        # Exponents are float32: the larger the scores, the coarser.
        self.float32 = 4e-6 * (1 + scores.abs().max().item() / 16)

    def check(self, got: Tensor, exact: Tensor, off: Tensor) -> None:
        assert got.isfinite().all()
        error = (got.double() - exact).abs() - off
        assert error.max() <= self.float32 * exact.abs().max() + 1e-30, f"{error.max():.3g} too far"

    def check_forward(self, out: Tensor, lse: Tensor) -> None:
        self.check(lse, self.lse, torch.zeros(()))
        self.check(out, self.out, self.out_off)

    def check_backward(self, grads: list[Tensor]) -> None:
        for triple in zip(grads, self.grads, self.grads_off, strict=True):
            self.check(*triple)


def choose(*problem: int) -> tuple[int, ...]:
    """(row tiles, slabs, general) on a card with 132 multiprocessors."""
    attention_pass, element_bytes, aligned, *sizes = problem
    tile = (c_int * 3)()
    emulated.library().choose_attention(
        attention_pass, element_bytes, int(aligned), *map(c_int64, sizes), 132, tile
    )
    return tuple(tile)


def check(case: Case, library: ctypes.CDLL | None = None) -> None:
    exact = Exact(case)
    exact.check_forward(*case.forward(library))
    out = case.arrange(exact.out.to(case.dtype))
    exact.check_backward(case.backward(out, exact.lse.float(), library))


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


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_stays_in_its_row(dtype, monkeypatch):
    case = Case(dtype=dtype, t_q=20, t_k=70, d=16)
    q, *others = case.tensors()
    q[0, 1, 3, 5] = torch.nan
    monkeypatch.setattr(Case, "tensors", lambda _: [q, *others])
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
