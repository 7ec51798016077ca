"""Which implementation an attention call takes: this package's kernel or torch's fused one."""

from __future__ import annotations

from collections.abc import Sequence

import torch

BACKENDS = ("auto", "kernel", "sdpa")


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
    shape: Sequence[int], stride: Sequence[int], offset: int, element_bytes: int
) -> bool:
    """True if the last dimension is adjacent and every row starts at a multiple of 16 bytes.

    Args:
        shape, stride, offset: of a tensor whose storage starts at such a multiple, in elements.
        element_bytes: bytes of an element.
    """
    steps = [s for n, s in zip(shape[:-1], stride[:-1], strict=True) if n > 1]
    adjacent = shape[-1] == 1 or stride[-1] == 1
    return adjacent and all(step * element_bytes % 16 == 0 for step in (*steps, offset))
