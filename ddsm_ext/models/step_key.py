"""What a step of a network is made ready for, and what does that."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ddsm_ext.models.unet import SlimmableUNet


class StepKey(NamedTuple):
    """What a step is compiled or captured for."""

    width: float
    images: int
    image_height: int
    image_width: int
    dtype: torch.dtype


class Steps(Protocol):
    """The steps of one network on one kind of device, each made ready at its first use.

    The caller holds a lock around every call and gives the network that this was made for.
    """

    dtypes: tuple[torch.dtype, ...]

    def reason_against(self, net: SlimmableUNet) -> str | None:
        """Return why no step of the network can run here, or None."""

    def renew(self, net: SlimmableUNet) -> None:
        """Look at the network anew: its modules, parameters and their layout."""

    def prepare(self, net: SlimmableUNet, key: StepKey) -> None:
        """Make a step ready.

        Raises:
            StepError: the step cannot be made ready.
        """

    def run(self, net: SlimmableUNet, key: StepKey, x: Tensor, t: Tensor) -> Tensor:
        """Return the prediction [N, C, H, W], channels_last, for x [N, C, H, W] and t [N].

        Raises:
            StepError: the step cannot be made ready.
        """

    def activation_bytes(self, net: SlimmableUNet, key: StepKey) -> int:
        """Return the memory that a step's activations need if it is the only one."""

    def held_bytes(self) -> int:
        """Return the memory that all steps hold together from call to call, weights excepted."""


class StepError(RuntimeError):
    """A step cannot be made ready; the message is the reason, to follow a colon."""
