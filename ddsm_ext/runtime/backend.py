"""What a step of a network is made ready for, and what a backend that makes it ready does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ddsm_ext.graph.config import NetworkConfig
from ddsm_ext.graph.graph import Graph


class StepKey(NamedTuple):
    """What a step is compiled or captured for."""

    width: float
    images: int
    image_height: int
    image_width: int
    dtype: torch.dtype
    labels: int = 1  # of each image: the result has as many blocks of all images
    tokens: int = 0  # of each image's context; 0: there is none


class Network(Protocol):
    """A described network, as backends see it: `models.SlimmableNetwork`."""

    config: NetworkConfig
    graph: Graph
    training: bool

    def layer(self, name: str) -> Any:
        """Return the module of a layer: `weight`, `bias`, `skip_offset`, `group_count(c)`."""

    def structure_problem(self) -> str | None:
        """Return which module is not as the network made it, or None."""

    def structure_version(self) -> int:
        """Return a number that rises when modules are found to be other ones than before."""

    def first_parameter(self) -> Tensor | None:
        """Return the first parameter; None: there is none, as in the replicas of DataParallel."""

    def run_modules(
        self, x: Tensor, t: Tensor, width: float, y: Tensor | None, *, context: Tensor | None
    ) -> Tensor:
        """Return the prediction by the modules."""

    def get_buffer(self, target: str) -> Tensor:
        """As of a module."""

    def modules(self) -> Iterator[nn.Module]:
        """As of a module."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """As of a module."""

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """As of a module."""


class Steps(Protocol):
    """The steps of one network on one kind of device, each made ready at its first use.

    The caller holds a lock around every call and gives the network that this was made for.
    """

    def reason_against(self, net: Network) -> str | None:
        """Return why no step of the network can run here, or None."""

    def renew(self, net: Network, *, whole: bool = False) -> bool:
        """Look whether weights changed; True: parameters are other ones or elsewhere.

        whole: read what was made from their content, even where versions tell every change.
        """

    def prepare(self, net: Network, key: StepKey) -> None:
        """Make a step ready.

        Raises:
            StepError: the step cannot be made ready.
        """

    def run(self, net: Network, key: StepKey, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the prediction [N, C', H, W], channels_last, for the network's inputs by name.

        Raises:
            StepError: the step cannot be made ready.
        """

    def activation_bytes(self, net: Network, key: StepKey) -> int:
        """Return the memory that a step's activations need if it is the only one."""

    def held_bytes(self) -> int:
        """Return the memory that all steps hold together from call to call, weights excepted."""


class StepError(RuntimeError):
    """A step cannot be made ready; the message is the reason, to follow a colon."""
