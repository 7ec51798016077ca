"""Stand-ins until the ops are there."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def sliced_layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, *, eps: float = 1e-5, accumulate_grad: bool = False
) -> Tensor:
    """Layer norm."""
    c = x.shape[-1]
    return F.layer_norm(x, (c,), weight[:c], bias[:c], eps)


def sliced_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    c_out: int,
    *,
    activation: str | None = None,
    gate: Tensor | None = None,
    residual: Tensor | None = None,
    accumulate_grad: bool = False,
) -> Tensor:
    """Linear layer of blocks."""
    from ddsm_ext.models.dense import activated
    from ddsm_ext.ops.linear import sliced_linear as linear

    if weight.dim() == 2:
        y = linear(x, weight, bias, c_out, accumulate_grad=accumulate_grad)
    else:
        b = None if bias is None else bias[..., :c_out].flatten()
        y = F.linear(x, weight[..., :c_out, : x.shape[-1]].flatten(0, -2), b)
    y = activated(y, activation)
    if gate is not None:
        y = y * gate[:, None]
    return y if residual is None else y + residual
