"""What the norms' arguments have in common: eps, and scale and shift of each image."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ddsm_ext.ops._call import check_tensor, in_dtype_of, shape_text
from ddsm_ext.settings import Refusal, TypeRefusal


def check_eps(op: str, eps: Any) -> None:
    """Refuse what cannot be added to a variance."""
    if isinstance(eps, bool) or not isinstance(eps, (int, float)):
        raise TypeRefusal(f"{op}: eps is {eps!r}, need a float")
    if not 0 <= eps < float("inf"):
        raise Refusal(f"{op}: eps is {eps!r}, need 0 <= eps < inf")


def checked_modulation(
    op: str, scale: Any, shift: Any, x: Tensor, channels: int
) -> tuple[Tensor | None, Tensor | None]:
    """Refuse a scale and a shift that do not go with x; return them as the kernels read them.

    Args:
        op: name without namespace.
        scale, shift: both or neither, [N, channels].
        x: the input, of N images.
        channels: of an image.
    """
    if scale is None and shift is None:
        return None, None
    return _checked(op, "scale", scale, x, channels), _checked(op, "shift", shift, x, channels)


def _checked(op: str, name: str, value: Any, x: Tensor, channels: int) -> Tensor:
    if value is None:
        raise Refusal(f"{op}: {name} is None and the other is not; need scale and shift")
    check_tensor(op, name, value, 2)
    if value.shape[0] != x.shape[0] or value.shape[1] != channels:
        raise Refusal(
            f"{op}: {name} has shape {shape_text(value)}, the input {x.shape[0]} images and "
            f"{channels} channels; need [{x.shape[0]}, {channels}]"
        )
    return in_dtype_of(op, name, value, x)
