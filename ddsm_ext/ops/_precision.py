"""How float32 products are formed on a GPU: torch's own switches, read here and nowhere else."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.compiler.assume_constant_result
def is_tf32(operation: str) -> bool:
    """True if torch's switch for "conv" or "matmul" on CUDA says tf32.

    `torch.backends.cudnn.conv.fp32_precision` and `torch.backends.cuda.matmul.fp32_precision` read
    the same, as do the older `allow_tf32`, which refuses to be read once both kinds were set.
    """
    return torch._C._get_fp32_precision_getter("cuda", operation) == "tf32"


def conv_tf32(x: Tensor) -> bool:
    """True if a convolution of x may form tf32 products, torch's default for float32 on CUDA.

    A function compiled by torch.compile keeps the choice of its compilation.
    """
    return x.is_cuda and x.dtype == torch.float32 and is_tf32("conv")


def matmul_tf32(x: Tensor) -> bool:
    """True if a matrix product with x may form tf32 products; torch's default is that it may not.

    A function compiled by torch.compile keeps the choice of its compilation.
    """
    return x.is_cuda and x.dtype == torch.float32 and is_tf32("matmul")
