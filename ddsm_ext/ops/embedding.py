"""Embeddings: rows of a prefix of a table's columns, as of class labels; sinusoids of timesteps."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ddsm_ext.ops._autograd import Replayed, eager_function, grad_targets, needs_grad
from ddsm_ext.ops._call import (
    check_accumulate,
    check_int,
    check_tensor,
    in_transform,
    shape_text,
)
from ddsm_ext.settings import Refusal, TypeRefusal

_OP = "sliced_embedding"


def sliced_embedding(weight: Tensor, y: Tensor, c: int, *, accumulate_grad: bool = False) -> Tensor:
    """Return `weight[y, :c]` without copying the table.

    Args:
        weight: [K, c_max], the table.
        y: [N] int64, rows.
        c: active columns.
        accumulate_grad: backward adds the gradient to the prefix of `weight.grad` itself and
            reports none to autograd (hooks do not see it). Under torch.compile autograd
            accumulates it as usual.

    Returns:
        [N, c] of weight's dtype, contiguous.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: a wrong shape, device or count, or, on the CPU, a row that does not exist (on a
            GPU and under torch.compile torch's own check stops the work).
    """
    _check(weight, y, c, accumulate_grad)
    if torch.compiler.is_compiling():
        return sliced_embedding_ref(weight, y, c)
    try:
        if needs_grad(weight) and not in_transform(_OP):
            return _Embedding.apply(weight, y, c, accumulate_grad)
        return sliced_embedding_ref(weight, y, c)
    except IndexError:  # looking at all of y before cost as much as the rows
        low, high = (int(bound) for bound in y.aminmax())
        raise Refusal(
            f"{_OP}: y holds {low if low < 0 else high}, weight has {weight.shape[0]} rows; "
            f"need 0 <= y < {weight.shape[0]}"
        ) from None


def sliced_embedding_ref(weight: Tensor, y: Tensor, c: int) -> Tensor:
    """Plain-torch `sliced_embedding`; the arguments mean the same and are not checked."""
    return weight[:, :c].index_select(0, y)  # [N, c]


def _check(weight: Any, y: Any, c: Any, accumulate_grad: Any) -> None:
    check_tensor(_OP, "weight", weight, 2)
    if not isinstance(y, Tensor) or y.dtype != torch.int64:
        got = f"of dtype {y.dtype}" if isinstance(y, Tensor) else type(y).__name__
        raise TypeRefusal(f"{_OP}: y is {got}, need a torch.Tensor of int64")
    if y.dim() != 1 or y.layout != torch.strided:
        raise Refusal(f"{_OP}: y has shape {shape_text(y)}, need [N], one row an image")
    if y.device != weight.device:
        raise Refusal(f"{_OP}: y is on {y.device}, weight on {weight.device}; need one device")
    if weight.shape[0] < 1:
        raise Refusal(f"{_OP}: weight has shape {shape_text(weight)}, need at least one row")
    check_int(_OP, "c", c)
    if not 1 <= c <= weight.shape[1]:
        raise Refusal(
            f"{_OP}: c is {c}, weight has {weight.shape[1]} columns; "
            f"need 1 <= c <= {weight.shape[1]}"
        )
    check_accumulate(_OP, accumulate_grad, weight, None)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    weight, y, ctx.c = inputs
    ctx.save_for_backward(weight, y)


def _backward(ctx: Any, grad: Tensor) -> dict[int, Tensor | None]:
    weight, y = ctx.saved_tensors
    (grad_weight,) = grad_targets(ctx, weight)
    if grad_weight is not None:
        # Sums repeated rows in one order on a GPU, too, where index_add_ does not.
        grad_weight[:, : ctx.c].index_put_((y,), grad, accumulate=True)
    return {0: grad_weight}


def _replay(ctx: Any, saved: list[Any], grads: tuple[Tensor, ...]) -> Replayed:
    weight, y = saved
    return (sliced_embedding_ref(weight, y, ctx.c),), {0: weight}


def _run(training: bool, weight: Tensor, y: Tensor, c: int) -> Tensor:
    return sliced_embedding_ref(weight, y, c)


_Embedding = eager_function(_OP, _run, _save, _backward, parameters={"weight": 0}, replay=_replay)


def sinusoidal_embedding(
    t: Tensor,
    dim: int,
    *,
    halves: bool = False,
    swapped: bool = False,
    freq_shift: float = 0.0,
    frequencies: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """e[2i] = sin(t f_i), e[2i + 1] = cos(t f_i) with f_i = 10000 ** (-2i / dim).

    Args:
        t: [N] timesteps, integer or continuous, of any sign.
        dim: size of the embedding, even.
        halves: order e as [cos of all i | sin of all i], as guided-diffusion does.
        swapped: of halves, the sines first.
        freq_shift: of halves, f_i = 10000 ** (-i / (dim / 2 - freq_shift)).
        frequencies: [dim / 2], of halves: f_i = 2 pi frequencies[i]; None: the above.
        dtype: float32 or float64, the precision to compute in.

    Returns:
        [N, dim] of `dtype`.

    Source: Vaswani et al. 2017, sec. 3.5; the operations and their order are those of the reference
        code of DDSM, whose float32 values agree bit for bit, or, for halves, of guided-diffusion.
        Random frequencies: Tancik et al. 2020, "Fourier Features".
    """
    if halves:
        if frequencies is None:
            exponent = -math.log(10000) * torch.arange(dim // 2, device=t.device, dtype=dtype)
            f = torch.exp(exponent / (dim // 2 - freq_shift))  # [dim / 2]
        else:
            f = 2 * math.pi * frequencies.to(dtype)
        angles = t.to(dtype)[:, None] * f[None, :]  # [N, dim / 2]
        parts = [angles.sin(), angles.cos()] if swapped else [angles.cos(), angles.sin()]
        return torch.cat(parts, dim=-1)  # [N, dim]
    exponent = torch.arange(0, dim, 2, device=t.device, dtype=dtype) / dim * math.log(10000)
    angles = t.to(dtype)[:, None] * torch.exp(-exponent)[None, :]  # [N, dim / 2]
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)  # [N, dim]


def embed_time(
    t: Tensor,
    dim: int,
    table: Tensor | None,
    dtype: torch.dtype,
    *,
    halves: bool = False,
    swapped: bool = False,
    freq_shift: float = 0.0,
    frequencies: Tensor | None = None,
) -> Tensor:
    """Sinusoidal embedding in `dtype`; rows of a frozen `table` where t is one of its steps.

    Args:
        t: [N] timesteps, integer or continuous.
        dim: size of the embedding.
        table: [rows, dim] frozen embeddings of t = 0 ... rows - 1; None computes all.
        dtype: dtype of the result.
        halves, swapped, freq_shift, frequencies: as `sinusoidal_embedding`'s.
    """
    precision = torch.float64 if dtype == torch.float64 else torch.float32
    embedding = sinusoidal_embedding(
        t, dim, halves=halves, swapped=swapped, freq_shift=freq_shift, frequencies=frequencies,
        dtype=precision,
    ).to(dtype)  # [N, dim]  # fmt: skip
    if table is None:
        return embedding
    row = t.round().long().clamp(0, table.shape[0] - 1) if t.is_floating_point() else t.long()
    row = row.clamp(0, table.shape[0] - 1)
    # A table is only kept to equal a checkpoint exactly at its own integer steps.
    return torch.where((row == t)[:, None], table[row].to(dtype), embedding)
