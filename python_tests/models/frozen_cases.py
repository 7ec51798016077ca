"""Networks, weights and inputs of `frozen.npz`, by formula: nothing of ddsm_ext is used here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

FILE = Path(__file__).with_name("frozen.npz")

IMAGES = 2
# A whole step, and one between two steps.
TIMES = (3.0, 40.25)


def case(size: tuple[int, int], widths: tuple[float, ...], **config: Any) -> dict[str, Any]:
    return {"size": size, "widths": widths, "config": config}


ANY_WIDTH = (1.0, 0.6, 0.5, 0.25)
SMALL = {"image_size": 8, "ch": 16, "ch_mult": (1, 2), "num_res_blocks": 1, "groups": 8}
CASES = {
    # The preset of that name.
    "digits": case(
        (8, 8), ANY_WIDTH, image_size=8, image_channels=1, ch=32, ch_mult=(1, 2), attn=(1,),
        num_res_blocks=1, dropout=0.0, groups=8,
    ),
    "two attention levels": case(
        (16, 16), ANY_WIDTH, image_size=16, ch=16, ch_mult=(1, 2, 2), attn=(1, 2), groups=8,
    ),
    # What agrees with the reference code; 0.75 is its fourth width.
    "reference": case(
        (8, 8), (1.0, 0.75, 0.5, 0.25), **{**SMALL, "ch": 64, "groups": 16}, attn=(1,),
        norm="fixed_groups", concat_slicing="prefix", time_table_rows=50,
    ),
    "heads": case((8, 8), ANY_WIDTH, **SMALL, attn=(0, 1), head_channels=8),
    "narrowing": case(
        (8, 8), ANY_WIDTH, **{**SMALL, "ch_mult": (2, 1)}, attn=(0,), concat_slicing="prefix",
        dropout=0.0,
    ),
    # 3x5 pixels at the lowest level, from a network for squares.
    "oblong": case(
        (12, 20), ANY_WIDTH, image_size=16, ch=16, ch_mult=(1, 1, 2), attn=(1,), num_res_blocks=1,
        groups=8,
    ),
    # 6, 12 and 18 channels, which no vector unit likes.
    "grey": case(
        (8, 8), ANY_WIDTH, image_size=8, image_channels=1, ch=24, ch_mult=(1, 2, 2), attn=(0, 2),
        num_res_blocks=1, groups=4,
    ),
}  # fmt: skip


def fill(net: nn.Module) -> None:
    """Set the parameters by formula, to values that are float32 numbers in any dtype above.

    Parameters in sorted name order, number k; elements i of the flattened parameter:
    v = sin(0.7 i (1 + 0.001 (k % 17)) + k), scaled by the parameter's kind.
    """
    for k, (name, parameter) in enumerate(sorted(net.named_parameters())):
        values = scaled(name, tuple(parameter.shape), wave(k, parameter.numel()))
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(values.astype(np.float32)).view_as(parameter))


def wave(k: int, count: int) -> np.ndarray:
    return np.sin(0.7 * np.arange(count) * (1 + 0.001 * (k % 17)) + k)


def scaled(name: str, shape: tuple[int, ...], v: np.ndarray) -> np.ndarray:
    if len(shape) > 1:
        return v * np.sqrt(2 / np.prod(shape[1:]))
    return 1 + 0.2 * v if name.endswith("weight") else 0.1 * v


def inputs(name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Images [N, C, H, W] in (-1, 1) and timesteps [N]."""
    channels = CASES[name]["config"].get("image_channels", 3)
    shape = (IMAGES, channels, *CASES[name]["size"])
    j = np.arange(np.prod(shape))
    x = np.sin(1.3 * j + 0.02 * (j % 41) ** 2).astype(np.float32)
    return torch.from_numpy(x).view(shape).to(dtype), torch.tensor(TIMES)


def loss(y: Tensor) -> Tensor:
    """mean(y_j cos(0.3 j + 1)) over the flattened output."""
    j = torch.arange(y.numel(), dtype=torch.float64)
    return (y.flatten() * torch.cos(0.3 * j + 1).to(y.dtype)).mean()


def error(y: Tensor, exact: np.ndarray) -> float:
    """Distance from the float64 output, relative to that."""
    return float(np.linalg.norm(y.detach().double().numpy() - exact) / np.linalg.norm(exact))
