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


def runs_native(op: str, x: Tensor, *, needs_grad: bool) -> bool:
    """True if compiled kernels of `op` serve x's device and dtype; warns once where they do not.

    Args:
        op: name without namespace, such as "sliced_conv2d".
        x: the input that decides device and dtype.
        needs_grad: whether the backward kernels are needed too.
    """
    return _runs_native(op, x.device.type, x.dtype, needs_grad)


@cache
def _runs_native(op: str, device_type: str, dtype: torch.dtype, needs_grad: bool) -> bool:
    needed = (op, *(_BACKWARD[op] if needs_grad else ()))
    missing = [name for name in needed if not _library.has_kernel(name, device_type)]
    if not missing and dtype in _DTYPES.get(device_type, ()):
        return True
    what = f"{missing[0]} has no kernel" if missing else f"{op} has no {dtype} kernel"
    warnings.warn(f"ddsm_ext: {what} for {device_type}; plain torch runs instead", stacklevel=4)
    return False
