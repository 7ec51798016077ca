"""The network and the inputs that every whole-step benchmark runs on."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from ddsm_ext.models.config import UNetConfig
from ddsm_ext.models.unet import SlimmableUNet


def random_network(config: UNetConfig, seed: int = 0) -> SlimmableUNet:
    """Return a network whose every layer matters to the output.

    The usual initial weights nearly silence the last layer of every branch, so that a wrong branch
    would pass a comparison.
    """
    generator = torch.Generator().manual_seed(seed)
    net = SlimmableUNet(config, generator=generator)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim > 1:
                fan_in = parameter[0].numel()
                parameter.normal_(0.0, fan_in**-0.5, generator=generator)
            else:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return net.eval()


def random_inputs(
    config: UNetConfig, batch: int, dtype: torch.dtype, *, device: str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Return images [N, C, H, W] and timesteps [N], int64."""
    generator = torch.Generator().manual_seed(1)
    shape = (batch, config.image_channels, config.image_size, config.image_size)
    x = torch.randn(shape, generator=generator).to(device, dtype)  # [N, C, H, W]
    t = torch.randint(0, config.time_table_rows, (batch,), generator=generator)  # [N]
    return x, t.to(device)


def as_reference(net: SlimmableUNet) -> SlimmableUNet:
    """Return the network with contiguous weights, as the reference code has them.

    That is `net` if it has them; on a GPU its weights are channels_last, and this is a copy.
    """
    if all(parameter.is_contiguous() for parameter in net.parameters()):
        return net
    net = copy.deepcopy(net)
    for parameter in net.parameters():
        parameter.data = parameter.data.contiguous()
    return net
