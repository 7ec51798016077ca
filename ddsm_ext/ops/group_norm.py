"""Group norm (with optional SiLU) of a channel prefix, over one or two sources."""

from __future__ import annotations

import torch
from torch import Tensor


def _check(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, x2: Tensor | None, c2_offset: int | None
) -> tuple[int, int]:
    """Checks the arguments of `sliced_group_norm`; gives (c2, c2_offset)."""
    for name, tensor in (("x", x), ("weight", weight), ("bias", bias), ("x2", x2)):
        if tensor is None and name == "x2":
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"sliced_group_norm: {name} is {type(tensor).__name__}, need a torch.Tensor"
            )
        if not tensor.is_floating_point():
            raise TypeError(f"sliced_group_norm: {name} is {tensor.dtype}, need a floating dtype")
        if tensor.device != x.device:
            raise ValueError(
                f"sliced_group_norm: {name} is on {tensor.device}, x on {x.device}; "
                "need one device"
            )
    if x.dim() != 4:
        raise ValueError(f"sliced_group_norm: x has shape {tuple(x.shape)}; need [N, C, H, W]")
    if weight.dim() != 1 or bias.dim() != 1 or weight.shape[0] != bias.shape[0]:
        raise ValueError(
            f"sliced_group_norm: weight has shape {tuple(weight.shape)}, bias "
            f"{tuple(bias.shape)}; need [c_max] twice"
        )
    if weight.dtype != bias.dtype:
        raise TypeError(
            f"sliced_group_norm: weight is {weight.dtype}, bias {bias.dtype}; need one dtype"
        )
    if isinstance(groups, bool) or not isinstance(groups, (int, torch.SymInt)):
        raise TypeError(f"sliced_group_norm: groups is {groups!r}, need an int")
    c = x.shape[1]
    if not 1 <= c <= weight.shape[0]:
        raise ValueError(
            f"sliced_group_norm: x has {c} channels, weight {weight.shape[0]}; "
            f"need 1 <= channels <= {weight.shape[0]}"
        )
    c2, c2_offset = _check_second_source(x, weight, x2, c2_offset)
    if groups < 1 or (c + c2) % groups != 0:
        raise ValueError(
            f"sliced_group_norm: groups is {groups}, the input has {c + c2} channels; "
            "need groups >= 1 that divide them"
        )
    return c2, c2_offset


def _check_second_source(
    x: Tensor, weight: Tensor, x2: Tensor | None, c2_offset: int | None
) -> tuple[int, int]:
    """Checks x2 and its parameter offset; returns (c2, c2_offset)."""
    c = x.shape[1]
    if x2 is None:
        if c2_offset is not None:
            raise ValueError(
                f"sliced_group_norm: c2_offset is {c2_offset!r} and x2 is None; need x2 with it"
            )
        return 0, c
    if x2.dim() != 4 or x2.shape[0] != x.shape[0] or x2.shape[2:] != x.shape[2:]:
        raise ValueError(
            f"sliced_group_norm: x2 has shape {tuple(x2.shape)}, x {tuple(x.shape)}; "
            "need the same N, H and W"
        )
    if x2.dtype != x.dtype:
        raise TypeError(f"sliced_group_norm: x2 is {x2.dtype}, x {x.dtype}; need one dtype")
    if c2_offset is None:
        c2_offset = c
    elif isinstance(c2_offset, bool) or not isinstance(c2_offset, (int, torch.SymInt)):
        raise TypeError(f"sliced_group_norm: c2_offset is {c2_offset!r}, need an int or None")
    c2 = x2.shape[1]
    if c2 < 1 or c2_offset < c or c2_offset + c2 > weight.shape[0]:
        raise ValueError(
            f"sliced_group_norm: x2 has {c2} channels at c2_offset {c2_offset}, x {c}, weight "
            f"{weight.shape[0]}; need c2 >= 1 and {c} <= c2_offset <= {weight.shape[0]} - c2"
        )
    return c2, c2_offset


def sliced_group_norm_ref(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    *,
    x2: Tensor | None = None,
    c2_offset: int | None = None,
    eps: float = 1e-5,
    silu: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Plain-torch twin of `sliced_group_norm` (arguments and returns there, unchecked here)."""
    c = x.shape[1]
    z, gamma, beta = x, weight[:c], bias[:c]
    if x2 is not None:
        start = c if c2_offset is None else c2_offset
        end = start + x2.shape[1]
        z = torch.cat([x, x2], dim=1)  # [N, c + c2, H, W]
        gamma = torch.cat([gamma, weight[start:end]])  # [c + c2]
        beta = torch.cat([beta, bias[start:end]])  # [c + c2]
    # bf16 and fp16 are normalised in fp32: parameters may be fp32 beside them.
    dtype = torch.promote_types(x.dtype, torch.float32)
    y = torch.group_norm(z.to(dtype), groups, gamma.to(dtype), beta.to(dtype), eps)
    if silu:
        y = torch.nn.functional.silu(y)
    y = y.to(x.dtype)
    if x2 is None:
        return y.contiguous(memory_format=torch.channels_last)
    return (
        y[:, :c].contiguous(memory_format=torch.channels_last),  # [N, c, H, W]
        y[:, c:].contiguous(memory_format=torch.channels_last),  # [N, c2, H, W]
    )


def sliced_group_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    *,
    x2: Tensor | None = None,
    c2_offset: int | None = None,
    eps: float = 1e-5,
    silu: bool = False,
    accumulate_grad: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """y = act((z - mean_g(z)) / sqrt(var_g(z) + eps) * gamma + beta), z = [x; x2] on channels.

    Args:
        x: [N, c, H, W], any memory format; fp32, bf16 or fp64.
        weight: gamma, [c_max]; weight[:c] is used. May be fp32 beside bf16 activations.
        bias: beta, [c_max], dtype of weight.
        groups: number of groups over all c (+ c2) channels, which it must divide. A group may
            hold channels of both sources.
        x2: second source [N, c2, H, W], dtype of x; None: one source.
        c2_offset: where x2's part of weight and bias begins, >= c; None: c.
        eps: added to the (biased) variance.
        silu: act is SiLU, u * sigmoid(u); False: the identity.
        accumulate_grad: backward adds dL/dgamma and dL/dbeta to the prefixes of `weight.grad` and
            `bias.grad` (made when None; both must be leaves) and autograd sees none.

    Returns:
        y [N, c, H, W], or (y, y2) with y2 [N, c2, H, W]; dtype of x, channels_last.

    Raises:
        TypeError, ValueError: an argument that does not fit, with its value and what is needed.

    Source: Wu & He 2018, "Group Normalization", eq. 1-4.
    """
    _check(x, weight, bias, groups, x2, c2_offset)
    return sliced_group_norm_ref(
        x, weight, bias, groups, x2=x2, c2_offset=c2_offset, eps=eps, silu=silu
    )
