"""The networks whose layers are timed, and the widths. No torch."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from ddsm_ext.graph.config import NetworkConfig
from ddsm_ext.models.unet import UNetConfig

# The network of the published figures: groups and concats as in the reference code, so that slicing
# with PyTorch computes the same function and outputs can be compared; its time table is frozen.
REFERENCE_CIFAR10 = UNetConfig(
    image_size=32, norm="fixed_groups", concat_slicing="prefix", time_table_rows=1000
)
WIDTHS = (1.0, 0.75, 0.5, 0.25)
Config = TypeVar("Config", bound=NetworkConfig)


def config_at(config: Config, width: float) -> Config:
    """Return `config`, or its twin with norms of fixed channels a group where `width` needs one.

    The reference code's 32 fixed groups divide the channels of its four widths only; the twin has
    the same layers and shapes and takes any width.

    Raises:
        TypeError, ValueError: the width is not in (0, 1].
    """
    if isinstance(config, UNetConfig) and not config.runs_at(width):
        config = replace(config, norm="channels_per_group")
    config.check_width(width)
    return config
