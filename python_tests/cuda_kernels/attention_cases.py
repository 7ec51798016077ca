"""Attention by the emulated kernels, and what it is compared with."""

from __future__ import annotations

import ctypes
from ctypes import c_int, c_int64
from dataclasses import dataclass

import torch
from cuda_kernels import emulated, structures
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

    def args(self, **tensors: Tensor) -> structures.AttentionArgs:
        args = structures.AttentionArgs(
            dtype=emulated.DTYPES[self.dtype],
            n=self.n,
            heads=self.heads,
            t_q=self.t_q,
            t_k=self.t_k,
            d=self.d,
            scale=self.factor(),
        )
        for name, tensor in tensors.items():
            view = structures.AttentionTensor(tensor.data_ptr(), *tensor.stride()[:3])
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
