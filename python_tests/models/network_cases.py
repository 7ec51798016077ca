"""Small U-Nets of every kind, with weights and inputs that tell layers apart."""

from __future__ import annotations

import copy
import dataclasses

import torch
from torch import Tensor

from ddsm_ext.graph import NetworkConfig
from ddsm_ext.models.network import SlimmableNetwork
from ddsm_ext.models.unet import UNetConfig

SMALL = UNetConfig(
    image_size=8, ch=16, ch_mult=(1, 2), attn=(1,), num_res_blocks=1, groups=8, dropout=0.0
)
REFERENCE = {
    "norm": "fixed_groups", "concat_slicing": "prefix", "ch": 32, "widths": (1.0, 0.5),
}  # fmt: skip
CONFIGS = {
    "source": SMALL,
    "prefix": dataclasses.replace(SMALL, concat_slicing="prefix"),
    "heads": dataclasses.replace(SMALL, head_channels=8, attn=(0, 1)),
    "grey": dataclasses.replace(SMALL, image_channels=1),
    "narrowing": dataclasses.replace(SMALL, ch_mult=(2, 1)),
    "reference": dataclasses.replace(SMALL, **REFERENCE, time_table_rows=50),
    "reference-narrowing": dataclasses.replace(SMALL, **REFERENCE, ch_mult=(2, 1)),
}
ANY_WIDTHS = (1.0, 0.9, 0.75, 0.6, 0.5, 0.375, 0.3, 0.25, 0.01)


def build(config: NetworkConfig, dtype: torch.dtype = torch.float64) -> SlimmableNetwork:
    generator = torch.Generator().manual_seed(1)
    net = SlimmableNetwork(config, generator=generator).to(dtype)
    with torch.no_grad():  # initial last layers are almost zero: give every layer a say
        for parameter in net.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return net


def inputs(config: UNetConfig, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    side = config.image_size
    x = torch.randn(3, config.image_channels, side, side, generator=generator, dtype=dtype)
    return x, torch.tensor([0.0, 7.25, 40.0])


def usable(config: UNetConfig) -> tuple[float, ...]:
    return ANY_WIDTHS if config.norm == "channels_per_group" else config.widths


def outside_slice(net: SlimmableNetwork, width: float) -> dict[str, Tensor]:
    """True where a parameter takes no part at `width`, found by marking the exported copy."""
    marked = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in marked.parameters():
            parameter.copy_(torch.arange(parameter.numel()).view(parameter.shape))
    inside = marked.export_subnet(width).state_dict()
    return {
        name: ~torch.isin(parameter.detach(), inside[name])
        for name, parameter in marked.named_parameters()
    }
