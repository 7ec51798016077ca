"""What the ops share: argument checks, the path a call takes, tf32.

An error is one sentence with the op, what it got and what it needs.
"""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ddsm_ext import _library
from ddsm_ext.settings import Refusal, TypeRefusal

FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float64, torch.float16)


def check_tensor(op: str, name: str, value: Any, ndim: int | None = None) -> None:
    """Refuse anything but a dense floating-point tensor with `ndim` dimensions (None: any)."""
    if not isinstance(value, Tensor):
        raise TypeRefusal(f"{op}: {name} is {type(value).__name__}, need a torch.Tensor")
    if value.layout != torch.strided:
        raise TypeRefusal(f"{op}: {name} has layout {value.layout}, need torch.strided")
    if value.dtype not in FLOAT_DTYPES:
        raise TypeRefusal(
            f"{op}: {name} has dtype {value.dtype}, need float32, bfloat16, float64 or float16"
        )
    if ndim is not None and value.dim() != ndim:
        raise Refusal(f"{op}: {name} has shape {shape_text(value)}, need {ndim} dimensions")


def check_flag(op: str, name: str, value: Any) -> None:
    """Refuse anything but a bool."""
    if not isinstance(value, bool):
        raise TypeRefusal(f"{op}: {name} is {value!r}, need True or False")


def check_int(op: str, name: str, value: Any) -> None:
    """Refuse anything but an int (bool excluded; a traced SymInt is an int)."""
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeRefusal(f"{op}: {name} is {value!r}, need an int")


def check_c_out(op: str, c_out: Any, most: int) -> None:
    """Refuse an output count that a weight of `most` output channels does not have."""
    check_int(op, "c_out", c_out)
    if not 1 <= c_out <= most:
        raise Refusal(
            f"{op}: c_out is {c_out}, weight has {most} output channels; "
            f"need 1 <= c_out <= {most}"
        )


def check_weight_match(op: str, x: Tensor, weight: Tensor) -> None:
    """Refuse a weight on another device, or of a dtype that the kernels do not pair with x's."""
    if weight.device != x.device:
        raise Refusal(f"{op}: x is on {x.device}, weight on {weight.device}; need one device")
    dtype, other = x.dtype, weight.dtype
    mixed = dtype in (torch.bfloat16, torch.float16) and other == torch.float32
    if other != dtype and not mixed:
        raise TypeRefusal(
            f"{op}: x has dtype {dtype}, weight {other}; need equal dtypes, "
            "or a float32 weight with a 16-bit x"
        )


def check_bias(op: str, bias: Any, weight: Tensor) -> None:
    """Refuse a bias that does not belong to the weight: [c_out_max], same dtype and device."""
    if bias is None:
        return
    check_tensor(op, "bias", bias, 1)
    if bias.shape[0] != weight.shape[0]:
        raise Refusal(
            f"{op}: bias has {bias.shape[0]} elements, weight has {weight.shape[0]} output "
            "channels; need one bias element per output channel"
        )
    check_bias_kind(op, bias, weight)


def check_bias_kind(op: str, bias: Tensor, weight: Tensor) -> None:
    """Refuse a bias of another dtype or device than its weight's."""
    if bias.dtype != weight.dtype or bias.device != weight.device:
        raise TypeRefusal(
            f"{op}: bias is {bias.dtype} on {bias.device}, weight {weight.dtype} on "
            f"{weight.device}; need the same dtype and device"
        )


def check_second_source(
    op: str, name: str, x: Tensor, x2: Any, offset: Any, channels_max: int
) -> int:
    """Refuse a second source that does not go with x; return where its parameters start.

    x is [N, c, H, W], x2 [N, c2, H, W] or None; `name` is that of `offset`, where None means c.
    """
    c = x.shape[1]
    if x2 is None:
        if offset is not None:
            raise Refusal(f"{op}: {name} is {offset!r} but x2 is None; need both or neither")
        return c
    check_tensor(op, "x2", x2, 4)
    if x2.dtype != x.dtype:
        raise TypeRefusal(f"{op}: x2 has dtype {x2.dtype}, x {x.dtype}; need the same dtype")
    if x2.device != x.device:
        raise Refusal(f"{op}: x2 is on {x2.device}, x on {x.device}; need the same device")
    if x2.shape[0] != x.shape[0] or x2.shape[2:] != x.shape[2:] or x2.shape[1] < 1:
        raise Refusal(
            f"{op}: x2 has shape {shape_text(x2)}, x {shape_text(x)}; need the same N, H and W "
            "and at least one channel"
        )
    if offset is None:
        offset = c
    check_int(op, name, offset)
    last = channels_max - x2.shape[1]
    if not c <= offset <= last:
        raise Refusal(
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
            raise Refusal(
                f"{op}: accumulate_grad=True but {name} is computed from other tensors; "
                "need a leaf tensor such as a parameter"
            )


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """Return the dtype that an enabled autocast wants for x, or None for x's own.

    Weights keep their dtype, and their gradients with it; see `factor_beside`.
    """
    device = x.device.type
    if device == "meta" or not torch.is_autocast_enabled(device) or x.dtype == torch.float64:
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


def in_dtype_of(op: str, name: str, value: Tensor, x: Tensor) -> Tensor:
    """Return what goes with x in x's dtype; refuse another one where autocast casts nothing, and
    another device."""
    if value.device != x.device:
        raise Refusal(f"{op}: {name} is on {value.device}, x on {x.device}; need one device")
    if value.dtype == x.dtype:
        return value
    if not torch.is_autocast_enabled(x.device.type):
        raise TypeRefusal(f"{op}: {name} has dtype {value.dtype}, x {x.dtype}; need one dtype")
    return value.to(x.dtype)


def shape_text(value: Tensor) -> str:
    """Return a tensor's shape as `[2, 3]`."""
    return "[" + ", ".join(str(size) for size in value.shape) + "]"


def channels_last(x: Tensor) -> Tensor:
    """Return [N, C, H, W] as it is if it is channels_last, else a copy that is.

    Made of operations that torch.func batches, which `contiguous(memory_format=...)` is not.
    """
    return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def empty_nhwc(like: Tensor, *shape: int) -> Tensor:
    """Return memory for [N, C, H, W] in channels_last, of like's dtype and device."""
    return torch.empty(
        shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last
    )


# ---- which path a call takes: a compiled kernel, or the plain-torch reference -------------------

# Backward ops that a training call needs beside the forward one.
_BACKWARD = {
    "sliced_conv2d": ("sliced_conv2d_grad_x", "sliced_conv2d_grad_weight"),
    "sliced_linear": ("sliced_linear_grad_x", "sliced_linear_grad_weight"),
    "sliced_group_norm": ("sliced_group_norm_backward",),
    "sliced_layer_norm": ("sliced_layer_norm_backward",),
    "sliced_attention": ("sliced_attention_backward",),
    "sliced_activation": ("sliced_activation_backward",),
    "packed_attention": ("packed_attention_backward",),
    "resample": (),
}
_DTYPES = {
    "cpu": (torch.float32, torch.bfloat16, torch.float64),
    "cuda": (torch.float32, torch.bfloat16, torch.float16),
    "meta": FLOAT_DTYPES,  # by the ops' fake kernels, which know the CPU's shapes and strides
}


# (op, device type, gradient needed) -> first op that the call needs without a compiled kernel, or
# None: a plain table, so that torch.compile can trace the choice.
_MISSING = {
    (op, device_type, needs_grad): next(
        (
            name
            for name in needed
            if device_type != "meta" and not _library.has_kernel(name, device_type)
        ),
        None,
    )
    for op, backward in _BACKWARD.items()
    for needs_grad, needed in ((False, (op,)), (True, (op, *backward)))
    for device_type in _DTYPES
}


_within_torch_func = torch._C._are_functorch_transforms_active


def why_no_library(device_type: str) -> str:
    """Return " (why it is not loaded; what builds it)" for want of the CUDA library, else ""."""
    reason = _library.cuda_missing_reason
    return f" ({reason})" if device_type == "cuda" and reason else ""


def runs_native(op: str, x: Tensor, *, needs_grad: bool, warn: bool = True) -> bool:
    """True if compiled kernels of `op` serve x's device and dtype, and the kind of derivative.

    Args:
        op: name without namespace, such as "sliced_conv2d".
        x: the input that decides device and dtype.
        needs_grad: whether the backward kernels are needed too.
        warn: say so, once, where they do not.
    """
    device_type = x.device.type
    missing = _MISSING.get((op, device_type, needs_grad), op)
    if missing is None and x.dtype in _DTYPES[device_type]:
        # As in_transform begins, which would cost every call another one.
        if forward_ad._current_level < 0 and not _within_torch_func():
            return True
        return not in_transform(op)
    if warn and not torch.compiler.is_compiling():
        what = f"{op} has no {x.dtype} kernel" if missing is None else f"{missing} has no kernel"
        warn_of_plain_torch(f"{what} for {device_type}{why_no_library(device_type)}")
    return False


def in_transform(op: str) -> bool:
    """True if torch must see what a call of `op` is made of, by whose rules it then transforms it.

    That is in forward mode, whose tangents a kernel would drop, and within the transforms of
    torch.func, which batch, and differentiate any number of times. It is slower, and says so once.

    Args:
        op: name without namespace.
    """
    if forward_ad._current_level < 0 and not _within_torch_func():
        return False
    if not torch.compiler.is_compiling():
        where = "torch.func's transforms" if _within_torch_func() else "forward mode"
        warn_of_plain_torch(f"{op} has no rules of its own for {where}")
    return True


@cache
def warn_of_plain_torch(why: str) -> None:
    """Say, once for each reason, that a call takes the slower way."""
    warnings.warn(f"ddsm_ext: {why}; plain torch runs instead", stacklevel=4)


def uncast(x: Tensor) -> AbstractContextManager[Any]:
    """Return a context in which autocast leaves the products with x alone."""
    device_type = x.device.type
    if torch.amp.is_autocast_available(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()  # such as "meta"


@torch.compiler.assume_constant_result
def is_tf32(operation: str) -> bool:
    """True if torch's switch for "conv" or "matmul" on CUDA says tf32.

    `torch.backends.cudnn.conv.fp32_precision` and `torch.backends.cuda.matmul.fp32_precision` read
    the same, as do the older `allow_tf32`, which refuses to be read once both kinds were set. A
    function compiled by torch.compile keeps the choice of its compilation.
    """
    return torch._C._get_fp32_precision_getter("cuda", operation) == "tf32"


def conv_tf32(x: Tensor) -> bool:
    """True if a convolution of x may form tf32 products, torch's default for float32 on CUDA."""
    return x.is_cuda and x.dtype == torch.float32 and is_tf32("conv")


def matmul_tf32(x: Tensor) -> bool:
    """True if a matrix product with x may form tf32 products; by torch's default it may not."""
    return x.is_cuda and x.dtype == torch.float32 and is_tf32("matmul")
