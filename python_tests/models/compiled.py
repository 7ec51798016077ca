"""A network whose calls are compared with its modules', and replicas."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from models.network_cases import CONFIGS, build
from torch import Tensor, nn

from ddsm_ext.models.network import SlimmableNetwork


def network(name: str = "source", **changes: Any) -> SlimmableNetwork:
    return build(dataclasses.replace(CONFIGS[name], **changes), torch.float32).eval()


def replica(net: nn.Module, factor: float) -> Any:
    """As DataParallel makes one: weights, here times a factor, are plain attributes."""
    replicas: dict[nn.Module, Any] = {
        module: module._replicate_for_data_parallel() for module in net.modules()
    }
    for module, copied in replicas.items():
        for name, child in module._modules.items():
            copied._modules[name] = replicas[child]
        for name, weight in module._parameters.items():
            setattr(copied, name, weight.detach() * factor)
        for name, buffer in module._buffers.items():
            copied._buffers[name] = buffer
    return replicas[net]


def images(n: int = 2) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(5)), torch.tensor(7)


def distance(net: SlimmableNetwork, width: float = 0.5) -> float:
    """Between the call and the modules, of the largest output."""
    x, t = images()
    modules = net.run_modules(x, t, width)
    return float((net(x, t, width) - modules).abs().max() / modules.abs().max())
