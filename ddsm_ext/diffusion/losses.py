"""Per-image losses; the caller averages, weights and logs."""

from __future__ import annotations

import torch
from torch import Tensor

from ddsm_ext.settings import Refusal


def mse_per_image(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error over each image, [N] in float32 or wider.

    Args:
        prediction: [N, C, H, W].
        target: the same shape.

    Raises:
        ValueError: the shapes differ (broadcasting would hide it).

    Source: Ho et al. 2020, eq. 14, with the mean over an image's elements.
    """
    if prediction.shape != target.shape:
        raise Refusal(
            f"mse_per_image: prediction has shape {tuple(prediction.shape)}, "
            f"target has {tuple(target.shape)}; need equal shapes"
        )
    dtype = torch.promote_types(prediction.dtype, torch.float32)
    return (prediction.to(dtype) - target.to(dtype)).square().flatten(1).mean(dim=1)  # [N]
