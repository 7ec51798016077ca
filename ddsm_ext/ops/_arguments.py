"""Argument checks shared by the ops: one sentence with the op, what it got and what it needs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float64, torch.float16)


def check_tensor(op: str, name: str, value: Any, ndim: int | None = None) -> None:
    """Refuse anything but a dense floating-point tensor with `ndim` dimensions (None: any)."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} is {type(value).__name__}, need a torch.Tensor")
    if value.layout != torch.strided:
        raise TypeError(f"{op}: {name} has layout {value.layout}, need torch.strided")
    if value.dtype not in FLOAT_DTYPES:
        raise TypeError(
            f"{op}: {name} has dtype {value.dtype}, need float32, bfloat16, float64 or float16"
        )
    if ndim is not None and value.dim() != ndim:
        raise ValueError(f"{op}: {name} has shape {shape_text(value)}, need {ndim} dimensions")


def check_flag(op: str, name: str, value: Any) -> None:
    """Refuse anything but a bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{op}: {name} is {value!r}, need True or False")


def check_int(op: str, name: str, value: Any) -> None:
    """Refuse anything but an int (bool excluded; a traced SymInt is an int)."""
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"{op}: {name} is {value!r}, need an int")


def check_c_out(op: str, c_out: Any, weight: Tensor) -> None:
    """Refuse an output count outside the weight's first dimension."""
    check_int(op, "c_out", c_out)
    if not 1 <= c_out <= weight.shape[0]:
        raise ValueError(
            f"{op}: c_out is {c_out}, weight has {weight.shape[0]} output channels; "
            f"need 1 <= c_out <= {weight.shape[0]}"
        )


def check_weight_match(op: str, x: Tensor, weight: Tensor) -> None:
    """Refuse a weight on another device, or of a dtype that the kernels do not pair with x's."""
    if weight.device != x.device:
        raise ValueError(
            f"{op}: x is on {x.device}, weight on {weight.device}; need the same device"
        )
    mixed = x.dtype in (torch.bfloat16, torch.float16) and weight.dtype == torch.float32
    if weight.dtype != x.dtype and not mixed:
        raise TypeError(
            f"{op}: x has dtype {x.dtype}, weight {weight.dtype}; need equal dtypes, "
            "or a float32 weight with a 16-bit x"
        )


def check_bias(op: str, bias: Any, weight: Tensor) -> None:
    """Refuse a bias that does not belong to the weight: [c_out_max], same dtype and device."""
    if bias is None:
        return
    check_tensor(op, "bias", bias, 1)
    if bias.shape[0] != weight.shape[0]:
        raise ValueError(
            f"{op}: bias has {bias.shape[0]} elements, weight has {weight.shape[0]} output "
            "channels; need one bias element per output channel"
        )
    if bias.dtype != weight.dtype or bias.device != weight.device:
        raise TypeError(
            f"{op}: bias is {bias.dtype} on {bias.device}, weight {weight.dtype} on "
            f"{weight.device}; need the same dtype and device"
        )


def check_second_source(
    op: str, name: str, x: Tensor, x2: Any, offset: Any, channels_max: int
) -> int:
    """Refuse a second source that does not go with x; return where its parameters start.

    Args:
        op: name of the op, for errors.
        name: name of the offset argument, for errors.
        x: [N, c, H, W], the first source.
        x2: [N, c2, H, W], or None.
        offset: first parameter channel of x2; None: c, the end of x's.
        channels_max: channels of the parameters.
    """
    c = x.shape[1]
    if x2 is None:
        if offset is not None:
            raise ValueError(f"{op}: {name} is {offset!r} but x2 is None; need both or neither")
        return c
    check_tensor(op, "x2", x2, 4)
    if x2.dtype != x.dtype:
        raise TypeError(f"{op}: x2 has dtype {x2.dtype}, x {x.dtype}; need the same dtype")
    if x2.device != x.device:
        raise ValueError(f"{op}: x2 is on {x2.device}, x on {x.device}; need the same device")
    if x2.shape[0] != x.shape[0] or x2.shape[2:] != x.shape[2:] or x2.shape[1] < 1:
        raise ValueError(
            f"{op}: x2 has shape {shape_text(x2)}, x {shape_text(x)}; need the same N, H and W "
            "and at least one channel"
        )
    if offset is None:
        offset = c
    check_int(op, name, offset)
    last = channels_max - x2.shape[1]
    if not c <= offset <= last:
        raise ValueError(
            f"{op}: {name} is {offset}, x has {c} and x2 {x2.shape[1]} channels, weight "
            f"{channels_max}; need {c} <= {name} <= {last}"
        )
    return offset


def check_accumulate(op: str, flag: Any, weight: Tensor, bias: Tensor | None) -> None:
    """Refuse gradient accumulation into tensors that have no `.grad` of their own."""
    check_flag(op, "accumulate_grad", flag)
    if not flag:
        return
    for name, value in (("weight", weight), ("bias", bias)):
        if value is not None and value.requires_grad and not value.is_leaf:
            raise ValueError(
                f"{op}: accumulate_grad=True but {name} is computed from other tensors; "
                "need a leaf tensor such as a parameter"
            )


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """Return the dtype that an enabled autocast wants for x, or None for x's own.

    Weights keep their dtype, and their gradients with it; see `factor_beside`.
    """
    device = x.device.type
    if x.dtype == torch.float64 or device == "meta" or not torch.is_autocast_enabled(device):
        return None
    dtype = torch.get_autocast_dtype(device)
    return None if dtype == x.dtype else dtype


def factor_beside(x: Tensor, parameter: Tensor | None) -> Tensor | None:
    """Return a weight or bias as the kernels multiply and add it beside x.

    The CPU's read a float32 one beside a 16-bit x directly. On CUDA tensor cores multiply equal
    dtypes and bulk copies convert nothing: there it would be read element by element, so that a
    copy in x's dtype, a few microseconds, takes its place.
    """
    if parameter is None or parameter.dtype == x.dtype or not x.is_cuda:
        return parameter
    return parameter.detach().to(x.dtype)


def shape_text(value: Tensor) -> str:
    """Return a tensor's shape as `[2, 3]`."""
    return "[" + ", ".join(str(size) for size in value.shape) + "]"


def grad_buffer(parameter: Tensor) -> Tensor:
    """Return `parameter.grad`, made of zeros where there is none yet."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def call_kernel(op: torch._ops.OpOverload, *args: Any) -> Any:
    """Call a raw op past the autograd layer that register_autograd gave it.

    Only for calls that need no gradient: on a 4x4 image the layer took 22 of 31 us.
    """
    with torch._C._AutoDispatchBelowAutograd():
        return op(*args)
