"""EDM's augmentation: images are flipped, scaled, turned, stretched and moved, and the network is
told, so that samples, for which it is told nothing, show none of it.

Source: Karras et al. 2022, appendix F.2 and table 6. Pixels between pixels are bicubic here, of an
image twice as large and mirrored at its borders; the paper's filter is a wavelet's.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from ddsm_ext.training.config import AUGMENT_LABELS

_SCALE = _STRETCH = 2.0**0.2
_SHIFT = 1.0 / 8.0  # of the image's side
_TWICE = 2  # samples of a pixel a side, whose mean it is


def augment(
    images: Tensor, probability: float, stream: Generator, *, flips: bool
) -> tuple[Tensor, Tensor]:
    """Transform images at random.

    Args:
        images: [N, C, H, W] floating point.
        probability: of each kind of transformation.
        stream: on the CPU; decides all.
        flips: whether images may be flipped; left to right half of them are.

    Returns:
        Images [N, C, H, W], and what the network is told, [N, AUGMENT_LABELS] float32: a0, a1, a2,
        cos a3 - 1, sin a3, a5 cos a4, a5 sin a4, a6, a7.
    """
    n = len(images)
    normal = torch.randn(n, 4, generator=stream, dtype=torch.float64, device="cpu")  # a2 a5 a6 a7
    uniform = torch.rand(n, 9, generator=stream, dtype=torch.float64, device="cpu")
    wanted = (uniform[:, :5] < probability).double()  # [N, 5]: y-flip, scale, turn, stretch, shift
    a0 = (uniform[:, 5] < 0.5).double() * flips
    a1 = (uniform[:, 6] < 0.5).double() * wanted[:, 0] * flips
    a2 = normal[:, 0] * wanted[:, 1]
    a3, a4 = math.pi * (2.0 * uniform[:, 7] - 1.0) * wanted[:, 2], 2.0 * math.pi * uniform[:, 8]
    a5 = normal[:, 1] * wanted[:, 3]
    a6, a7 = (normal[:, 2:] * wanted[:, 4:5]).unbind(1)
    labels = torch.stack(
        [a0, a1, a2, a3.cos() - 1.0, a3.sin(), a5 * a4.cos(), a5 * a4.sin(), a6, a7], dim=1
    )
    images = torch.where(_rows(a0, images), images.flip(3), images)
    images = torch.where(_rows(a1, images), images.flip(2), images)
    moved = (wanted[:, 1:] > 0).any(1)  # [N]: the others keep their pixels to the last bit
    if bool(moved.any()):
        scale = _SCALE**a2
        matrix = _turn(a4) @ _stretch(_STRETCH**a5) @ _turn(-a4) @ _turn(-a3)
        matrix = matrix * scale[:, None, None]  # [N, 2, 2]
        shift = 2.0 * _SHIFT * torch.stack([a6, a7], dim=1)  # a side is 2 long in grids
        at = moved.to(images.device)
        images = images.clone()
        images[at] = _moved(images[at], matrix[moved], shift[moved])
    assert labels.shape[1] == AUGMENT_LABELS
    return images, labels.float().to(images.device)


def _rows(flag: Tensor, images: Tensor) -> Tensor:
    return (flag > 0).to(images.device)[:, None, None, None]


def _turn(angle: Tensor) -> Tensor:
    """Rotations [N, 2, 2]."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([cos, -sin, sin, cos], dim=1).view(-1, 2, 2)


def _stretch(factor: Tensor) -> Tensor:
    """diag(f, 1 / f), [N, 2, 2]."""
    zero = torch.zeros_like(factor)
    return torch.stack([factor, zero, zero, 1.0 / factor], dim=1).view(-1, 2, 2)


def _moved(images: Tensor, matrix: Tensor, shift: Tensor) -> Tensor:
    """Images whose content went from p to matrix p + shift, p from -1 to 1 over the image."""
    back = torch.linalg.inv(matrix)  # [n, 2, 2]
    where = torch.cat([back, -back @ shift[:, :, None]], dim=2)  # [n, 2, 3]
    n, c, height, width = images.shape
    size = [n, c, _TWICE * height, _TWICE * width]
    grid = F.affine_grid(where.to(images), size, align_corners=False)  # [n, 2H, 2W, 2]
    found = F.grid_sample(
        images, grid, mode="bicubic", padding_mode="reflection", align_corners=False
    )
    return F.avg_pool2d(found, _TWICE)
