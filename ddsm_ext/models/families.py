"""The families of networks that settings name, and the presets of all of them. No torch."""

from __future__ import annotations

from ddsm_ext.graph.config import NetworkConfig
from ddsm_ext.models import adm, edm, unet
from ddsm_ext.settings import Refusal, check_choice, did_you_mean

# By the value of their setting "family"; settings without one are of the first.
FAMILIES: dict[str, type[NetworkConfig]] = {
    "unet": unet.UNetConfig,
    "adm": adm.ADMConfig,
    "song-unet": edm.SongUNetConfig,
    "dhariwal-unet": edm.DhariwalUNetConfig,
}
PRESETS: dict[str, NetworkConfig] = {**unet.PRESETS, **adm.PRESETS, **edm.PRESETS}


def family_named(name: object, what: str = "family") -> type[NetworkConfig]:
    """Return the config class of a family; `what` names the setting in the error.

    Raises:
        ValueError: there is no such family.
    """
    return FAMILIES[check_choice(what, name, FAMILIES)]


def preset(name: str) -> NetworkConfig:
    """Return the config of a preset.

    Raises:
        ValueError: the name is unknown, with the nearest known one.
    """
    if name not in PRESETS:
        raise Refusal(f"unknown preset {name!r}{did_you_mean(name, PRESETS)}")
    return PRESETS[name]
