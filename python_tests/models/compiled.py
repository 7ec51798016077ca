"""A network whose calls are compared with its modules'."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from models.network_cases import CONFIGS, build
from torch import Tensor

from ddsm_ext.models.network import SlimmableNetwork


def network(name: str = "source", **changes: Any) -> SlimmableNetwork:
    return build(dataclasses.replace(CONFIGS[name], **changes), torch.float32).eval()


def images(n: int = 2) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(5)), torch.tensor(7)


def distance(net: SlimmableNetwork, width: float = 0.5) -> float:
    """Between the call and the modules, of the largest output."""
    x, t = images()
    modules = net.run_modules(x, t, width)
    return float((net(x, t, width) - modules).abs().max() / modules.abs().max())
