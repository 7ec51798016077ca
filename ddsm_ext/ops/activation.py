"""GELU (by erf or tanh) and GEGLU, with a gate an image and a residual."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ddsm_ext.ops._autograd import Replayed, differentiable, needs_grad, wants_grad
from ddsm_ext.ops._call import check_tensor, in_dtype_of, runs_native, shape_text
from ddsm_ext.settings import Refusal, TypeRefusal

_OP = "activation"
_RAW = "sliced_activation"
# In the order of the kernels' numbers (Activation).
KINDS = (None, "gelu", "gelu_tanh", "geglu")


def activation(
    z: Tensor, kind: str | None, *, gate: Tensor | None = None, residual: Tensor | None = None
) -> Tensor:
    """y = residual + gate * act(z), where act is the identity, GELU or GEGLU.

    Args:
        z: [N, ..., c], any strides, of "geglu" [N, ..., 2 c]: the values' columns, then those of
            their gate halves; fp32, bf16, or fp64 (CPU) or fp16 (CUDA).
        kind: None: z itself; "gelu": z * Phi(z), by erf; "gelu_tanh": its approximation by tanh;
            "geglu": value * gelu(gate half).
        gate: [N, c] of z's dtype (under autocast any), a row an image, for a z of two dimensions or
            more; None: 1.
        residual: of y's shape and z's dtype (under autocast any); None: 0.

    Returns:
        y [N, ..., c] of z's dtype, contiguous.

    Raises:
        TypeError, ValueError: an argument that does not fit, with its value and what is needed.

    Source: Hendrycks & Gimpel 2016, "Gaussian Error Linear Units", sec. 2; Shazeer 2020, "GLU
        Variants Improve Transformer", eq. 5; Peebles & Xie 2023, "Scalable Diffusion Models with
        Transformers", sec. 3.2, for the gate.
    """
    check_tensor(_OP, "z", z)
    number = activation_number(_OP, kind)
    blocks = 2 if kind == "geglu" else 1
    if z.dim() < 1 or z.shape[-1] < blocks or z.shape[-1] % blocks:
        need = "an even number of columns" if blocks == 2 else "at least one dimension and column"
        raise Refusal(f"{_OP}: z has shape {shape_text(z)} and kind is {kind!r}; need {need}")
    shape = (*z.shape[:-1], z.shape[-1] // blocks)
    gate, residual = checked_factors(_OP, gate, residual, z, shape)
    training = needs_grad(z, gate, residual)
    if not runs_native(_RAW, z, needs_grad=training):
        return activation_ref(z, kind, gate=gate, residual=residual)
    return _call(z, number, gate, residual, needs_grad=training)


def activation_ref(
    z: Tensor, kind: str | None, *, gate: Tensor | None = None, residual: Tensor | None = None
) -> Tensor:
    """Plain-torch twin of `activation` (arguments and returns there, unchecked here)."""
    y = plain_activation(z.to(torch.promote_types(z.dtype, torch.float32)), kind)
    if gate is not None:
        y = gate.reshape(gate.shape[0], *[1] * (y.dim() - 2), gate.shape[1]) * y
    if residual is not None:
        y = residual + y
    return y.to(z.dtype).contiguous()


def plain_activation(z: Tensor, kind: str | None) -> Tensor:
    """Return torch's activation of [N, ..., columns] in its dtype."""
    if kind is None:
        return z
    if kind == "geglu":
        value, half = z.chunk(2, dim=-1)  # [N, ..., c] each
        return value * F.gelu(half)
    return F.gelu(z, approximate="tanh" if kind == "gelu_tanh" else "none")


def activation_number(op: str, kind: Any) -> int:
    """Return the kernels' number of an activation."""
    if kind is not None and not isinstance(kind, str):
        raise TypeRefusal(f"{op}: the activation is {kind!r}; need None or a name")
    if kind not in KINDS:
        names = ", ".join(name for name in KINDS if name is not None)
        raise Refusal(f"{op}: the activation is {kind!r}; need None or one of {names}")
    return KINDS.index(kind)


def checked_factors(
    op: str, gate: Any, residual: Any, x: Tensor, shape: tuple[int, ...]
) -> tuple[Tensor | None, Tensor | None]:
    """Check the gate and the residual of a result of this shape; return them in x's dtype."""
    if gate is not None:
        check_tensor(op, "gate", gate, 2)
        if len(shape) < 2 or tuple(gate.shape) != (shape[0], shape[-1]):
            need = f"[{shape[0]}, {shape[-1]}]" if len(shape) > 1 else "a result [N, ..., c]"
            raise Refusal(f"{op}: gate has shape {shape_text(gate)}; need {need}")
        gate = in_dtype_of(op, "gate", gate, x)
    if residual is not None:
        check_tensor(op, "residual", residual)
        if tuple(residual.shape) != shape:
            raise Refusal(f"{op}: residual has shape {shape_text(residual)}; need {list(shape)}")
        residual = in_dtype_of(op, "residual", residual, x)
    return gate, residual


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    z, ctx.number, gate, _residual = inputs
    ctx.save_for_backward(z, gate)


def _backward(ctx: Any, grad_y: Tensor) -> dict[int, Tensor | None]:
    z, gate = ctx.saved_tensors
    grads: dict[int, Tensor | None] = {3: grad_y if wants_grad(ctx, 3) else None}
    if wants_grad(ctx, 0) or wants_grad(ctx, 2):
        grads[0], grads[2] = activation_gradients(
            grad_y, z, ctx.number, gate, wants_gate=wants_grad(ctx, 2)
        )
    return grads


def activation_gradients(
    grad_y: Tensor, z: Tensor, number: int, gate: Tensor | None, *, wants_gate: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the gradients of z and, if wanted, of the gate, each of its dtype."""
    grad_gate = None
    if gate is not None and wants_gate:
        dtype = torch.promote_types(gate.dtype, torch.float32)
        grad_gate = gate.new_empty(gate.shape, dtype=dtype)  # [N, c]
    grad_z = torch.ops.ddsm_ext.sliced_activation_backward(grad_y, z, number, gate, grad_gate)
    return grad_z, None if grad_gate is None else grad_gate.to(z.dtype)


def _replay(ctx: Any, saved: list[Any], grads: tuple[Tensor, ...]) -> Replayed:
    z, gate = saved
    y = activation_ref(z, KINDS[ctx.number], gate=gate)
    residual = torch.zeros_like(y, requires_grad=True)
    return (y + residual,), {0: z, 2: gate, 3: residual}


_call = differentiable(_RAW, _save, _backward, replay=_replay, name=_OP)


@torch.library.register_fake("ddsm_ext::sliced_activation")
def _fake(
    z: Tensor, activation: int, gate: Tensor | None = None, residual: Tensor | None = None
) -> Tensor:
    channels = z.shape[-1] // (2 if KINDS[activation] == "geglu" else 1)
    return z.new_empty((*z.shape[:-1], channels))  # [N, ..., c]


@torch.library.register_fake("ddsm_ext::sliced_activation_backward")
def _fake_backward(grad_y: Tensor, z: Tensor, *rest: Any) -> Tensor:
    return z.new_empty(z.shape)  # [N, ..., columns]


@register_flop_formula(
    [torch.ops.ddsm_ext.sliced_activation, torch.ops.ddsm_ext.sliced_activation_backward]
)
def _flops(*shapes: Any, **more: Any) -> int:
    """0 FLOPs: like PyTorch's own counters, only products count."""
    return 0
