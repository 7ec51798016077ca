"""Pixels as files hold them, uint8 0 .. 255, and as networks read them, [-1, 1]."""

from __future__ import annotations

import torch
from torch import Tensor

from ddsm_ext.settings import TypeRefusal


def from_uint8(
    images: Tensor,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Map uint8 0 .. 255 to [-1, 1]: x / 127.5 - 1.

    Args:
        images: any shape, uint8.
        device: where the result lives; None keeps the images'.
        dtype: floating dtype of the result.

    Raises:
        TypeError: `images` is not uint8.
    """
    if images.dtype != torch.uint8:
        raise TypeRefusal(f"from_uint8: images has dtype {images.dtype}; need uint8")
    return images.to(device, non_blocking=True).to(dtype).div_(127.5).sub_(1.0)


def from_data(images: Tensor, device: torch.device | str | None = None) -> Tensor:
    """Return the images of a data set as a network has them: pixels in [-1, 1], latents as they
    are.

    Args:
        images: uint8 pixels, or floating-point latents.
        device: where the result lives; None keeps the images'.
    """
    if images.dtype == torch.uint8:
        return from_uint8(images, device)
    return images.to(device, non_blocking=True)


def to_uint8(images: Tensor) -> Tensor:
    """Map images from [-1, 1] to uint8 0 .. 255: round((x + 1) · 127.5).

    Args:
        images: any shape, floating point; values outside [-1, 1] are clipped.

    Raises:
        TypeError: `images` is not floating point.
    """
    if not images.is_floating_point():
        raise TypeRefusal(f"to_uint8: images has dtype {images.dtype}; need floating point")
    return ((images.float().clamp(-1.0, 1.0) + 1.0) * 127.5).round().to(torch.uint8)
