"""Attention of queries, keys and values that lie side by side, as one product leaves them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ddsm_ext.ops._autograd import Replayed, differentiable, needs_grad
from ddsm_ext.ops._call import autocast_dtype, check_int, check_tensor, shape_text
from ddsm_ext.ops.attention import (
    by_products,
    by_torch,
    check_how,
    runs_kernel,
    sliced_attention_ref,
)
from ddsm_ext.settings import Refusal, TypeRefusal

_OP = "packed_attention"


def packed_attention(
    q: Tensor,
    heads: int,
    kv: Tensor | None = None,
    *,
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """out = softmax(scale * q k^T) v, for every image and head, as `sliced_attention` of views.

    The gradients are written where q, k and v lie, in one buffer or two: nothing is joined.

    Args:
        q: [N, T, 3, heads * d], queries, keys and values; beside kv [N, T_q, heads * d], queries.
            Any strides; fp32, bf16, or fp64 (CPU) or fp16 (CUDA).
        heads: heads, whose d features follow each other.
        kv: [N, T_k, 2, heads * d], keys and values that q attends to, dtype of q; None: q has them.
        scale: factor on the scores; None: d**-0.5.
        backend: as `sliced_attention`'s.

    Returns:
        out [N, T_q, heads * d], dtype of q, contiguous.

    Raises:
        TypeError, ValueError: an argument that does not fit, with its value and what is needed.

    Source: Vaswani et al. 2017, "Attention Is All You Need", eq. 1.
    """
    _check(q, heads, kv)
    check_how(_OP, scale, backend)
    dtype = autocast_dtype(q)
    if dtype is not None:
        q, kv = q.to(dtype), None if kv is None else kv.to(dtype)
    scale = None if scale is None else float(scale)
    training = needs_grad(q, kv)
    buffers = (q,) if kv is None else (q, kv)
    if not runs_kernel(_OP, backend, q.shape[-1] // heads, buffers, training=training):
        return _rows(by_torch(_OP, *_views(q, heads, kv), scale))
    out, _ = _call(q, kv, heads, scale, needs_grad=training)
    return out


def packed_attention_ref(
    q: Tensor, heads: int, kv: Tensor | None = None, *, scale: float | None = None
) -> Tensor:
    """Plain-torch twin of `packed_attention` (arguments and returns there, unchecked here)."""
    return _rows(sliced_attention_ref(*_views(q, heads, kv), scale=scale))


def _views(q: Tensor, heads: int, kv: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values as [N, heads, T, d]."""
    parts = q.unbind(2) if kv is None else (q, *kv.unbind(2))
    queries, keys, values = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in parts)
    return queries, keys, values


def _rows(out: Tensor) -> Tensor:
    """Return [N, heads, T, d] as [N, T, heads * d]."""
    return out.transpose(1, 2).flatten(2)


def _check(q: Any, heads: Any, kv: Any) -> None:
    """Check everything that the kernels rely on."""
    check_tensor(_OP, "q", q, 4 if kv is None else 3)
    check_int(_OP, "heads", heads)
    if heads < 1 or q.shape[-1] < 1 or q.shape[-1] % heads:
        raise Refusal(
            f"{_OP}: heads is {heads}, q has {q.shape[-1]} columns; need a multiple of the heads, "
            "and at least 1 of each"
        )
    if kv is None:
        if q.shape[2] != 3 or q.shape[1] < 1:
            raise Refusal(
                f"{_OP}: q has shape {shape_text(q)}; need [N, T, 3, heads * d] and at least one "
                "position, or kv beside it"
            )
        return
    check_tensor(_OP, "kv", kv, 4)
    if kv.dtype != q.dtype:
        raise TypeRefusal(f"{_OP}: kv has dtype {kv.dtype}, q {q.dtype}; need one dtype")
    if kv.device != q.device:
        raise Refusal(f"{_OP}: kv is on {kv.device}, q on {q.device}; need one device")
    n, _, columns = q.shape
    if kv.shape[0] != n or kv.shape[1] < 1 or kv.shape[2] != 2 or kv.shape[3] != columns:
        raise Refusal(
            f"{_OP}: q has shape {shape_text(q)}, kv {shape_text(kv)}; need [N, T_q, heads * d] "
            "and [N, T_k, 2, heads * d] with at least one key"
        )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, kv, ctx.heads, ctx.scale = inputs
    out, lse = output
    ctx.mark_non_differentiable(lse)
    ctx.save_for_backward(q, kv, out, lse)


def _backward(ctx: Any, grad_out: Tensor, grad_lse: Tensor) -> dict[int, Tensor | None]:
    q, kv, out, lse = ctx.saved_tensors
    grad_q, grad_kv = torch.ops.ddsm_ext.packed_attention_backward(
        grad_out, q, kv, out, lse, ctx.heads, ctx.scale
    )
    return {0: grad_q, 1: None if kv is None else grad_kv}


def _replay(ctx: Any, saved: list[Any], grads: tuple[Tensor, ...]) -> Replayed:
    q, kv, _out, _lse = saved
    return (_rows(by_products(*_views(q, ctx.heads, kv), ctx.scale)),), {0: q, 1: kv}


_call = differentiable(_OP, _save, _backward, replay=_replay)


@torch.library.register_fake("ddsm_ext::packed_attention")
def _fake(
    q: Tensor, kv: Tensor | None, heads: int, scale: float | None
) -> tuple[Tensor, Tensor]:
    n, t_q, columns = q.shape[0], q.shape[1], q.shape[-1]
    statistics = torch.promote_types(q.dtype, torch.float32)
    return q.new_empty((n, t_q, columns)), q.new_empty((n, heads, t_q), dtype=statistics)


@torch.library.register_fake("ddsm_ext::packed_attention_backward")
def _fake_backward(
    grad_out: Tensor, q: Tensor, kv: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty((0,) if kv is None else kv.shape)


def _product_flops(q_shape: Any, kv_shape: Any) -> int:
    n, t_q, columns = q_shape[0], q_shape[1], q_shape[-1]
    return 2 * n * t_q * (t_q if kv_shape is None else kv_shape[1]) * columns


@register_flop_formula(torch.ops.ddsm_ext.packed_attention)
def _flops(q_shape: Any, kv_shape: Any, *rest: Any, **more: Any) -> int:
    """FLOPs (2 x MACs) of q k^T and P v."""
    return 2 * _product_flops(q_shape, kv_shape)


@register_flop_formula(torch.ops.ddsm_ext.packed_attention_backward)
def _flops_backward(grad_shape: Any, q_shape: Any, kv_shape: Any, *rest: Any, **more: Any) -> int:
    """FLOPs (2 x MACs) of q k^T again, do v^T, P^T do, dS k and dS^T q."""
    return 5 * _product_flops(q_shape, kv_shape)
