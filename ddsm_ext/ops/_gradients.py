"""Where the backward kernels add a parameter's gradient: a prefix of a full-size tensor."""

from __future__ import annotations

import torch
from torch import Tensor


def grad_target(param: Tensor, accumulate: bool) -> Tensor:
    """Return the full-size tensor whose prefix a backward kernel adds to.

    Args:
        param: the parameter, of any shape.
        accumulate: True: `param.grad` itself, made of zeros where there is none yet; the caller
            then reports no gradient to autograd. False: new zeros, for autograd to accumulate.

    Returns:
        Contiguous tensor with param's shape, dtype and device.

    Raises:
        ValueError: `param.grad` exists and is not contiguous.
    """
    if not accumulate:
        return torch.zeros(param.shape, dtype=param.dtype, device=param.device)
    if param.grad is None:
        param.grad = torch.zeros(param.shape, dtype=param.dtype, device=param.device)
    if not param.grad.is_contiguous():
        raise ValueError(
            f"accumulate_grad: a gradient has strides {tuple(param.grad.stride())} and shape "
            f"{tuple(param.grad.shape)}; need a contiguous one"
        )
    return param.grad
