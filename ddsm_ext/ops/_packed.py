"""Packed weights: rearranged for the CPU kernels, one tensor a weight and algorithm for all widths.

One belongs to the weight's content, lives as long as its memory, and is made again as soon as
`_weights` sees a change.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ddsm_ext import _library
from ddsm_ext._locks import ForkSafeLock
from ddsm_ext.ops._pages import empty_on_huge_pages
from ddsm_ext.ops._weights import content_of, contents_of, is_plain
from ddsm_ext.settings import Refusal

# In the order of the kernels' numbers (Conv2dAlgo).
ALGORITHMS = ("direct", "winograd_4x4", "winograd_2x2", "direct_bf16")
DIRECT, WINOGRAD_4X4, WINOGRAD_2X2, DIRECT_BF16 = range(4)
# The largest kernel that is rearranged for DIRECT_BF16 (kLargestPanelKernel).
LARGEST_KERNEL = 5

# (algorithm, upsample, transposed, glu)
Kind = tuple[int, bool, bool, bool]


class _Packed(NamedTuple):
    """A packed form, of which serial of the content and for which instruction set it is."""

    tensor: Tensor
    serial: int | None
    isa: str


_lock = ForkSafeLock()


def as_kernels(weight: Tensor) -> Tensor:
    """Return a view [B, c_out_max, c_in_max, k, k] of a convolution's or a linear layer's weight.

    Args:
        weight: [c_out_max, c_in_max, k, k], [c_out_max, c_in_max], or [B, c_out_max, c_in_max].
    """
    weight = weight.detach()
    if weight.dim() == 4:
        return weight[None]
    return weight.reshape(-1, *weight.shape[-2:])[..., None, None]


def packed_weight(
    weight: Tensor,
    algorithm: int,
    *,
    upsample: bool = False,
    transposed: bool = False,
    glu: bool = False,
) -> Tensor:
    """Return a convolution's or linear layer's weight as the kernels read it, packed now or before.

    Args:
        weight: as of `as_kernels`, float32 or bfloat16 on the CPU.
        algorithm: DIRECT, WINOGRAD_4X4, WINOGRAD_2X2 or, for a bfloat16 weight, DIRECT_BF16.
        upsample: DIRECT only: for the four phases of a convolution after nearest 2x upsampling.
        transposed: Winograd only: for the gradient of x.
        glu: DIRECT and DIRECT_BF16: the two blocks as geglu reads them, vectors of each in turn.

    Returns:
        A flat float32 tensor (of DIRECT_BF16 each holds two numbers), laid out for the instruction
        set in use, block after block. It is written again when the weight has changed.
    """
    kind = (algorithm, upsample and algorithm == DIRECT, transposed, glu)
    content, isa = content_of(weight), _library.native.active_isa()
    packed = content.made.get(kind)
    if packed is not None and packed[1:] == (content.serial(weight), isa):
        return packed.tensor
    with _lock:
        serial = content.serial(weight)
        packed = content.made.get(kind)
        if packed is not None and packed[1:] == (serial, isa):  # another thread was faster
            return packed.tensor
        kernels = as_kernels(weight)
        together = [kernels] if glu else list(kernels)
        size = _library.native.conv2d_panel_floats(*kernels.shape[1:4], *kind)
        tensor = None if packed is None else packed.tensor
        if tensor is None or tensor.numel() != size * len(together):
            tensor = empty_on_huge_pages(size * len(together), torch.float32)
        content.made[kind] = _Packed(tensor, None, isa)  # while it is written
        for one, panels in zip(together, tensor.split(size), strict=True):
            torch.ops.ddsm_ext.sliced_conv2d_panels(one, *kind[:3], panels, glu)
        content.made[kind] = _Packed(tensor, serial, isa)
        return tensor


def check_algorithm(
    op: str, algo: Any, weight: Tensor, stride: int, upsample: bool, dtype: torch.dtype
) -> None:
    """Refuse an algorithm that does not exist or does not compute this convolution."""
    if algo == "auto" or algo == "direct":
        return
    if algo not in ALGORITHMS:
        raise Refusal(f"{op}: algo is {algo!r}; need one of auto, {', '.join(ALGORITHMS)}")
    kernel = weight.shape[2]
    if algo == "direct_bf16":
        if not dtype == weight.dtype == torch.bfloat16 or upsample or kernel > LARGEST_KERNEL:
            raise Refusal(
                f"{op}: algo is {algo!r} for {dtype}, weight {weight.dtype}, a {kernel}x{kernel} "
                f"kernel and upsample={upsample}; need bfloat16, at most "
                f"{LARGEST_KERNEL}x{LARGEST_KERNEL} and no upsampling"
            )
        if not _library.native.conv2d_has(DIRECT_BF16):
            isa = _library.native.active_isa()
            raise Refusal(f"{op}: algo is {algo!r} on {isa} kernels; need avx512_bf16")
    elif kernel != 3 or stride != 1 or dtype not in (torch.float32, torch.bfloat16):
        raise Refusal(
            f"{op}: algo is {algo!r} for a {kernel}x{kernel} kernel at stride {stride} in {dtype}; "
            "need 3x3 at stride 1 in float32 or bfloat16"
        )
    if weight.device.type != "cpu" or torch.compiler.is_compiling():
        where = weight.device if weight.device.type != "cpu" else "torch.compile"
        raise Refusal(f"{op}: algo is {algo!r} on {where}; need the CPU, uncompiled, or 'auto'")


class ConvProblem(NamedTuple):
    """A convolution as the choice of its algorithm sees it: active channels, size of the output.

    `scale` 2 stands for nearest 2x upsampling. For the gradient of x, c_in and c_out are swapped
    and the output is x.
    """

    images: int
    out_height: int
    out_width: int
    c_in: int
    c_out: int
    kernel: int
    stride: int
    scale: int
    bf16: bool = False  # images and weight are bfloat16


def resolve_algorithm(
    algo: str, weight: Tensor, problem: ConvProblem, *, training: bool, grad_weight: bool = False
) -> int:
    """Return the number of the algorithm that `algo` names, or of the cheapest for "auto".

    Args:
        algo: a name that `check_algorithm` let through.
        weight: the convolution's weight.
        problem: the convolution; `bf16` is for a forward, gradients are computed in float32.
        training: the weight changes all the time, so that a packed one serves few calls.
        grad_weight: choose for the gradient of the weights instead.
    """
    if algo != "auto":
        number = ALGORITHMS.index(algo)
        return DIRECT if number == DIRECT_BF16 and not problem.bf16 else number
    # A passing tensor's would be packed for one call.
    if not isinstance(weight, nn.Parameter) or not weight.is_cpu or not is_plain(weight):
        return DIRECT
    if weight.dtype not in (torch.float32, torch.bfloat16):
        return DIRECT
    rearranged = weight.shape[0] * weight.shape[1] if training else 0
    return choose_algorithm(
        _library.native.active_isa(), problem, rearranged, grad_weight, eager=True
    )


@lru_cache(maxsize=4096)
def choose_algorithm(
    isa: str,
    problem: ConvProblem,
    rearranged: int = 0,
    grad_weight: bool = False,
    *,
    eager: bool = False,
) -> int:
    """Return the algorithm that should be fastest, by the kernels' fixed cost model.

    Args:
        isa: instruction set in use; only keeps the cached choices apart.
        problem: the convolution.
        rearranged: weights that must be rearranged for it because they change all the time, or 0.
        grad_weight: choose for the gradient of the weights instead.
        eager: a call by itself finds its panels in Python; a plan knows them, and has norms of
            Winograd convolutions computed by these.
    """
    native = _library.native
    how = {"rearranged": rearranged, "grad_weight": grad_weight, "eager": eager}
    return native.conv2d_choose(native.Conv2dProblem(**problem._asdict(), **how))


def packed_bytes(weights: Iterable[Tensor]) -> int:
    """Bytes of the packed forms kept of `weights`."""
    made = (packed for content in contents_of(weights) for packed in content.made.values())
    return sum(packed.tensor.numel() * packed.tensor.element_size() for packed in made)
