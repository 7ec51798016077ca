"""Which path an op call takes: a compiled kernel, or the plain-torch reference (said once)."""

from __future__ import annotations

import warnings
from functools import cache

import torch
from torch import Tensor

from ddsm_ext import _library

# Backward ops that a training call needs beside the forward one.
_BACKWARD = {
    "sliced_conv2d": ("sliced_conv2d_grad_x", "sliced_conv2d_grad_weight"),
    "sliced_linear": ("sliced_linear_grad_x", "sliced_linear_grad_weight"),
    "sliced_group_norm": ("sliced_group_norm_backward",),
    "sliced_attention": ("sliced_attention_backward",),
}
_DTYPES = {
    "cpu": (torch.float32, torch.bfloat16, torch.float64),
    "cuda": (torch.float32, torch.bfloat16, torch.float16),
}


def _missing_kernel(op: str, device_type: str, needs_grad: bool) -> str | None:
    """Return the first op without a compiled kernel among those that a call needs."""
    needed = (op, *(_BACKWARD[op] if needs_grad else ()))
    return next((name for name in needed if not _library.has_kernel(name, device_type)), None)


# (op, device type, gradient needed) -> op without kernel or None: a plain table, so that
# torch.compile can trace the choice.
_MISSING = {
    (op, device_type, needs_grad): _missing_kernel(op, device_type, needs_grad)
    for op in _BACKWARD
    for device_type in _DTYPES
    for needs_grad in (False, True)
}


def why_no_library(device_type: str) -> str:
    """Return " (why it is not loaded; what builds it)" for want of the CUDA library, else ""."""
    reason = _library.cuda_missing_reason
    return f" ({reason})" if device_type == "cuda" and reason else ""


def has_native(op: str, x: Tensor, *, needs_grad: bool) -> bool:
    """True if compiled kernels of `op` serve x's device and dtype; arguments as `runs_native`'s."""
    missing = _MISSING.get((op, x.device.type, needs_grad), op)
    return missing is None and x.dtype in _DTYPES[x.device.type]


def runs_native(op: str, x: Tensor, *, needs_grad: bool) -> bool:
    """True if compiled kernels of `op` serve x's device and dtype; warns once where they do not.

    Args:
        op: name without namespace, such as "sliced_conv2d".
        x: the input that decides device and dtype.
        needs_grad: whether the backward kernels are needed too.
    """
    if has_native(op, x, needs_grad=needs_grad):
        return True
    if not torch.compiler.is_compiling():
        missing = _MISSING.get((op, x.device.type, needs_grad), op)
        _warn_once(op, missing, x.device.type, x.dtype)
    return False


@cache
def _warn_once(op: str, missing: str | None, device_type: str, dtype: torch.dtype) -> None:
    what = f"{op} has no {dtype} kernel" if missing is None else f"{missing} has no kernel"
    where = device_type + why_no_library(device_type)
    warnings.warn(f"ddsm_ext: {what} for {where}; plain torch runs instead", stacklevel=4)
