"""The DDPM U-Net as an ADM network: the same function in other words."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from ddsm_ext.models.adm import ADMConfig
from ddsm_ext.models.network import SlimmableNetwork
from ddsm_ext.models.unet import UNetConfig
from ddsm_ext.settings import Refusal, TypeRefusal

_LINEAR = "time_embedding.linear1.weight"
_TABLE = "time_embedding.table"


def config_of(net: Any) -> ADMConfig | UNetConfig:
    """Return the config of an ADM network, or of a DDPM U-Net.

    Raises:
        TypeError: it is of another family, or no network.
    """
    config = getattr(net, "config", None)
    if isinstance(net, SlimmableNetwork) and isinstance(config, ADMConfig | UNetConfig):
        return config
    got = type(net if config is None else config).__name__
    raise TypeRefusal(f"got {got}; need a SlimmableNetwork of an ADMConfig or a UNetConfig")


def adm_form(config: ADMConfig | UNetConfig) -> ADMConfig:
    """Return the `ADMConfig` of an ADM network, or of a DDPM U-Net at full width."""
    if isinstance(config, ADMConfig):
        return config
    shared = {field.name for field in dataclasses.fields(ADMConfig)} - {"family"}
    values = {name: value for name, value in config.to_dict().items() if name in shared}
    return ADMConfig.from_dict({
        **values, "heads": 1 if config.head_channels is None else None, "scale_shift": False,
        "resample_blocks": False, "learned_sigma": False, "sines_first": True,
    })  # fmt: skip


def adm_weights(config: ADMConfig | UNetConfig, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return weights, of any width, as the ADM network has them.

    A DDPM U-Net takes sine and cosine of each frequency in turn: the columns are put in order.
    """
    if isinstance(config, ADMConfig):
        return state
    linear = state[_LINEAR]  # [c, ch]
    ordered = torch.cat([linear[:, 0::2], linear[:, 1::2]], dim=1)
    return {name: t for name, t in state.items() if name != _TABLE} | {_LINEAR: ordered}


def as_adm(net: SlimmableNetwork) -> SlimmableNetwork:
    """Return an ADM network that equals `net`, itself where it is one, at every width.

    Raises:
        TypeError: it is of another family.
        ValueError: a DDPM U-Net is sliced by other rules than ADM's.
    """
    config = config_of(net)
    if isinstance(config, ADMConfig):
        return net
    for name, need in (("norm", "channels_per_group"), ("concat_slicing", "source")):
        got = getattr(config, name)
        if got != need:
            raise Refusal(f"as an ADM network: {name} is {got!r}; need {need!r}, or one width")
    weight = next(net.parameters())
    made = SlimmableNetwork(adm_form(config), device=weight.device, dtype=weight.dtype)
    made.load_state_dict(adm_weights(config, net.state_dict()))
    return made.train(net.training)
