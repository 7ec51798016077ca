"""The activations in fp64, as the CUDA kernels are compared with them."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

KINDS = (None, "gelu", "gelu_tanh", "geglu")  # in the order of their numbers


def activated(kind: str | None, sums: Tensor, gate_half: Tensor) -> Tensor:
    """Of sums, by "geglu" beside the gate half's."""
    if kind == "geglu":
        return sums * F.gelu(gate_half)
    if kind is None:
        return sums
    return F.gelu(sums, approximate="tanh" if kind == "gelu_tanh" else "none")
