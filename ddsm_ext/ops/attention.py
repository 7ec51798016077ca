"""Softmax attention over all keys, any head size, without a [T, T] tensor."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.backends import cuda as switches
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import register_flop_formula

from ddsm_ext.ops._autograd import Replayed, differentiable, needs_grad
from ddsm_ext.ops._call import (
    autocast_dtype,
    check_tensor,
    in_transform,
    runs_native,
    shape_text,
    why_no_library,
)
from ddsm_ext.settings import Refusal, TypeRefusal

_OP = "sliced_attention"
BACKENDS = ("auto", "kernel", "sdpa")


def _check(q: Any, k: Any, v: Any, scale: Any, backend: Any) -> None:
    """Check everything that the kernels rely on."""
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        check_tensor(_OP, name, tensor, 4)
        if tensor.dtype != q.dtype:
            raise TypeRefusal(
                f"{_OP}: {name} has dtype {tensor.dtype}, q {q.dtype}; need one dtype"
            )
        if tensor.device != q.device:
            raise Refusal(f"{_OP}: {name} is on {tensor.device}, q on {q.device}; need one device")
    if k.shape != v.shape or k.shape[:2] != q.shape[:2] or k.shape[3] != q.shape[3]:
        raise Refusal(
            f"{_OP}: q has shape {shape_text(q)}, k {shape_text(k)}, v {shape_text(v)}; "
            "need [N, heads, T_q, d], [N, heads, T_k, d], [N, heads, T_k, d]"
        )
    if q.shape[3] < 1 or k.shape[2] < 1:
        raise Refusal(
            f"{_OP}: the head size is {q.shape[3]} and T_k {k.shape[2]}; need at least 1 of each"
        )
    check_how(_OP, scale, backend)


def check_how(op: str, scale: Any, backend: Any) -> None:
    """Refuse a factor on the scores that is no number, and a backend that there is not."""
    if backend not in BACKENDS:
        raise Refusal(f"{op}: backend is {backend!r}, need one of {', '.join(BACKENDS)}")
    if scale is None:
        return
    if isinstance(scale, bool) or not isinstance(scale, (int, float)):
        raise TypeRefusal(f"{op}: scale is {scale!r}, need a float or None")
    if not -float("inf") < scale < float("inf"):
        raise Refusal(f"{op}: scale is {scale!r}, need a finite number")


def sliced_attention_ref(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None) -> Tensor:
    """Plain-torch twin of `sliced_attention` (arguments and returns there, unchecked here)."""
    return scaled_dot_product_attention(q, k, v, scale=scale)


def by_products(q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
    """Attend by operations that have derivatives of any kind, which torch's fused ones lack."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    factor = q.shape[3] ** -0.5 if scale is None else scale
    scores = (q.to(dtype) * factor) @ k.to(dtype).transpose(-2, -1)  # [N, heads, T_q, T_k]
    return _by_position((scores.softmax(-1) @ v.to(dtype)).to(q.dtype))  # [N, heads, T_q, d]


def _by_position(out: Tensor) -> Tensor:
    """Lay [N, heads, T, d] out as [N, T, heads, d], as the next projection reads it."""
    return out.transpose(1, 2).contiguous().transpose(1, 2)


def runs_kernel(
    op: str, backend: str, d: int, tensors: Sequence[Tensor], *, training: bool
) -> bool:
    """True if a call takes this package's kernel, False if torch's operations.

    Args:
        op: name without namespace.
        backend: as `sliced_attention`'s.
        d: head size.
        tensors: q and all others that are read.
        training: a gradient will be wanted.

    Raises:
        ValueError: a kernel is asked for that there is not.
    """
    q = tensors[0]
    native = backend != "kernel" or runs_native(op, q, needs_grad=training, warn=False)
    if not native and not in_transform(op):
        where = q.device.type + why_no_library(q.device.type)
        raise Refusal(
            f"{op}: backend is 'kernel', q is {q.dtype} on {where}, which has no kernel; "
            "need 'auto' or 'sdpa'"
        )
    # Compiled: a choice by strides would guard them, a graph for every width.
    if backend == "auto" and q.device.type == "cuda" and not torch.compiler.is_compiling():
        aligned = all(
            rows_are_aligned(t.shape, t.stride(), t.storage_offset(), t.element_size())
            for t in tensors
        )
        backend = choose_backend("cuda", q.dtype, d, aligned=aligned, repeatable=training)
    return backend != "sdpa" and runs_native(op, q, needs_grad=training)


def by_torch(op: str, q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
    """Attend by torch's operations; q, k, v and the result are those of `sliced_attention`."""
    if in_transform(op):
        return by_products(q, k, v, scale)
    # Flash lays it out so already, and so does cuDNN for q of this layout.
    return _by_position(sdpa(q, k, v, scale))


def sliced_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """out = softmax(scale * q k^T) v, for every image and head.

    Args:
        q: [N, heads, T_q, d], any strides; fp32, bf16, or fp64 (CPU) or fp16 (CUDA).
        k: [N, heads, T_k, d], any strides, dtype of q.
        v: [N, heads, T_k, d], any strides, dtype of q.
        scale: factor on the scores; None: d**-0.5.
        backend: "kernel" (this package's; float32 products in full precision), "sdpa" (torch's
            scaled_dot_product_attention) or "auto": "kernel", except on CUDA without gradients
            where `choose_backend` prefers torch's.

    Returns:
        out [N, heads, T_q, d], dtype of q; the memory is that of [N, T_q, heads, d].

    Raises:
        TypeError, ValueError: an argument that does not fit, with its value and what is needed.

    Source: Vaswani et al. 2017, "Attention Is All You Need", eq. 1.
    """
    _check(q, k, v, scale, backend)
    dtype = autocast_dtype(q)
    if dtype is not None:
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    scale = None if scale is None else float(scale)
    training = needs_grad(q, k, v)
    if not runs_kernel(_OP, backend, q.shape[3], (q, k, v), training=training):
        return by_torch(_OP, q, k, v, scale)
    out, _ = _call(q, k, v, scale, needs_grad=training)
    return out


def choose_backend(
    device_type: str, dtype: torch.dtype, d: int, *, aligned: bool, repeatable: bool
) -> str:
    """Return what "auto" stands for, "kernel" or "sdpa".

    On CUDA, torch's scaled_dot_product_attention reaches its flash kernel without a copy for
    16-bit types, d % 8 == 0, d <= 256 and rows of whole 16 bytes; its forward has been tuned for
    years, so it is taken there until a measurement says otherwise (none has been made yet). Its
    backward sums with atomics, hence in another order in every run; ours has one order.

    Args:
        device_type: "cpu", "cuda", ...
        dtype: of q, k and v.
        d: head size.
        aligned: every row of q, k and v starts at a multiple of 16 bytes.
        repeatable: a backward follows, whose results must repeat bit for bit.
    """
    fits = dtype in (torch.bfloat16, torch.float16) and d % 8 == 0 and d <= 256 and aligned
    return "sdpa" if device_type == "cuda" and fits and not repeatable else "kernel"


def rows_are_aligned(
    shape: Sequence[int], stride: Sequence[int], offset: int | torch.SymInt, element_bytes: int
) -> bool:
    """True if the last dimension is adjacent and every row starts at a multiple of 16 bytes.

    Args:
        shape, stride, offset: of a tensor whose storage starts at such a multiple, in elements.
        element_bytes: bytes of an element.
    """
    steps = [s for n, s in zip(shape[:-1], stride[:-1], strict=True) if n > 1]
    adjacent = shape[-1] == 1 or stride[-1] == 1
    return adjacent and all(step * element_bytes % 16 == 0 for step in (*steps, offset))


def prefers_cudnn(capability: tuple[int, int]) -> bool:
    """True where cuDNN's attention comes before flash: on Hopper, whose instructions it uses.

    torch's flash kernel is written for the GPUs before it. Newer versions of torch have the same
    order; one with flash first is set right by `sdpa`.

    Args:
        capability: of the device, (9, 0) for sm_90.
    """
    return capability == (9, 0)


def _serves_cudnn(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """True if torch itself says that cuDNN takes the call as it is: sizes, strides, its switches.

    Its limits are those of the cuDNN at hand: head sizes to 128, with newer ones on Hopper to 256,
    in multiples of 8; any strides with adjacent features, so nothing is copied.
    """
    if q.device.type != "cuda" or not prefers_cudnn(torch.cuda.get_device_capability(q.device)):
        return False
    return switches.can_use_cudnn_attention(switches.SDPAParams(q, k, v, None, 0.0, False, False))


def sdpa(q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
    """Return torch's attention, by cuDNN where that is preferred and serves the call.

    Args:
        q: [N, heads, T_q, d].
        k, v: [N, heads, T_k, d].
        scale: factor on the scores; None: d**-0.5.
    """
    if torch.compiler.is_compiling() or not _serves_cudnn(q, k, v):
        return scaled_dot_product_attention(q, k, v, scale=scale)
    return sdpa_by_cudnn(q, k, v, scale)


def sdpa_by_cudnn(q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
    """Return torch's attention by cuDNN, or by its next choice where that fails; as `sdpa`."""
    # What else is switched on stays so, in torch's order: a call that cuDNN's own checks refuse
    # goes to the next.
    others = (
        (SDPBackend.FLASH_ATTENTION, switches.flash_sdp_enabled()),
        (SDPBackend.EFFICIENT_ATTENTION, switches.mem_efficient_sdp_enabled()),
        (SDPBackend.MATH, switches.math_sdp_enabled()),
    )
    order = [SDPBackend.CUDNN_ATTENTION, *(backend for backend, on in others if on)]
    try:
        with sdpa_kernel(order, set_priority=True):
            return scaled_dot_product_attention(q, k, v, scale=scale)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # it found no plan after all
        reason = str(error).splitlines()[0] if str(error) else "no reason"
        warnings.warn(f"ddsm_ext: cuDNN's attention failed ({reason})", stacklevel=2)
    with sdpa_kernel(order[1:], set_priority=True):
        return scaled_dot_product_attention(q, k, v, scale=scale)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, ctx.scale = inputs
    out, lse = output
    ctx.mark_non_differentiable(lse)
    ctx.save_for_backward(q, k, v, out, lse)


def _backward(ctx: Any, grad_out: Tensor, grad_lse: Tensor) -> dict[int, Tensor | None]:
    grads = torch.ops.ddsm_ext.sliced_attention_backward(grad_out, *ctx.saved_tensors, ctx.scale)
    return dict(enumerate(grads))


def _replay(ctx: Any, saved: list[Any], grads: tuple[Tensor, ...]) -> Replayed:
    q, k, v, _out, _lse = saved
    return (by_products(q, k, v, ctx.scale),), {0: q, 1: k, 2: v}


_call = differentiable(_OP, _save, _backward, replay=_replay)


def _empty_by_position(like: Tensor) -> Tensor:
    n, heads, t, d = like.shape
    return like.new_empty((n, t, heads, d)).transpose(1, 2)  # [N, heads, T, d]


@torch.library.register_fake("ddsm_ext::sliced_attention")
def _fake(q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> tuple[Tensor, Tensor]:
    statistics = torch.promote_types(q.dtype, torch.float32)
    return _empty_by_position(q), q.new_empty(q.shape[:3], dtype=statistics)  # lse [N, heads, T_q]


@torch.library.register_fake("ddsm_ext::sliced_attention_backward")
def _fake_backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_by_position(q), _empty_by_position(k), _empty_by_position(v)


def _product_flops(q_shape: Any, k_shape: Any) -> int:
    n, heads, t_q, d = q_shape
    return 2 * n * heads * t_q * k_shape[2] * d


@register_flop_formula(torch.ops.ddsm_ext.sliced_attention)
def _flops(q_shape: Any, k_shape: Any, *rest: Any, **more: Any) -> int:
    """FLOPs (2 x MACs) of q k^T and P v."""
    return 2 * _product_flops(q_shape, k_shape)


@register_flop_formula(torch.ops.ddsm_ext.sliced_attention_backward)
def _flops_backward(grad_shape: Any, q_shape: Any, k_shape: Any, *rest: Any, **more: Any) -> int:
    """FLOPs (2 x MACs) of q k^T again, do v^T, P^T do, dS k and dS^T q."""
    return 5 * _product_flops(q_shape, k_shape)
