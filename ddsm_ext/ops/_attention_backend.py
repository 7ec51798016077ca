"""Which implementation an attention call takes: this package's kernel or one of torch's."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.backends import cuda as switches
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

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
