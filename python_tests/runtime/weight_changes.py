"""Networks for the runtime, their outputs in float64, and the ways in which weights change."""

from __future__ import annotations

import copy

import torch
from models.network_cases import CONFIGS, build, inputs
from torch import Tensor, nn

from ddsm_ext.models.network import SlimmableNetwork


def network(name: str = "source", dtype: torch.dtype = torch.float32) -> SlimmableNetwork:
    return build(CONFIGS[name], torch.float64).to(dtype).eval()


def as_module(net: SlimmableNetwork, x: Tensor, t: Tensor, width: float) -> Tensor:
    """The network in float64."""
    exact = copy.deepcopy(net).double()
    with torch.no_grad():
        return exact(x.double(), t, width)


def sgd_step(net: SlimmableNetwork) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    x, t = inputs(net.config, torch.float32)
    net(x, t, 1.0).square().mean().backward()
    optimizer.step()


def in_place(net: SlimmableNetwork) -> None:
    with torch.no_grad():
        net.tail.conv.weight.mul_(2)


def through_data(net: SlimmableNetwork) -> None:
    net.tail.conv.weight.data.mul_(2)


def replaced(net: SlimmableNetwork) -> None:
    net.tail.conv.weight = nn.Parameter(net.tail.conv.weight.detach() * 2)
