"""The network and the inputs that every whole-step benchmark runs on."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor

from ddsm_ext.graph.config import NetworkConfig
from ddsm_ext.graph.count import layers
from ddsm_ext.models.network import SlimmableNetwork


def random_network(config: NetworkConfig) -> SlimmableNetwork:
    """Return a network whose every layer matters to the output.

    The usual initial weights nearly silence the last layer of every branch, so that a wrong branch
    would pass a comparison.
    """
    generator = torch.Generator().manual_seed(0)
    net = SlimmableNetwork(config, generator=generator)
    tables = {f"{row.name}.weight" for row in layers(config.graph) if row.node.op == "embed"}
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if parameter.ndim > 1:
                fan_in = 1 if name in tables else parameter[0].numel()
                parameter.normal_(0.0, fan_in**-0.5, generator=generator)
            else:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return net.eval()


def random_inputs(
    config: NetworkConfig, batch: int, dtype: torch.dtype, *, device: str = "cpu"
) -> dict[str, Tensor]:
    """Return what the network is called with, by name.

    x: images [N, C, H, W]; t: timesteps [N], int64; y: labels [N], int64, if there are classes.
    """
    generator = torch.Generator().manual_seed(1)
    shape = (batch, config.image_channels, config.image_size, config.image_size)
    inputs = {"x": torch.randn(shape, generator=generator).to(dtype)}
    for name, op in (("t", "sinusoid"), ("y", "embed")):
        if name in config.graph.inputs:
            rows = max(node.rows for node in config.graph.nodes if node.op == op) or 1000
            inputs[name] = torch.randint(0, rows, (batch,), generator=generator)
    return {name: tensor.to(device) for name, tensor in inputs.items()}


def channels_last(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return inputs whose images are channels_last."""
    return {**inputs, "x": inputs["x"].contiguous(memory_format=torch.channels_last)}


def as_reference(net: SlimmableNetwork) -> SlimmableNetwork:
    """Return the network with contiguous weights, as the reference code has them.

    That is `net` if it has them; on a GPU its weights are channels_last, and this is a copy.
    """
    if all(parameter.is_contiguous() for parameter in net.parameters()):
        return net
    return copy.deepcopy(net).to(memory_format=torch.contiguous_format)
