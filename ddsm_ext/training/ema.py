"""Averages of a network's weights over the steps of a training."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ddsm_ext.io.weights import copy_tensors
from ddsm_ext.training.loop_config import LoopConfig


class Ema:
    """Exponential moving average of a network's parameters; buffers are copied.

    theta_ema <- decay * theta_ema + (1 - decay) * theta after every step.

    Args:
        net: network whose present weights start the average.
    """

    def __init__(self, net: nn.Module) -> None:
        self.tensors = {name: t.detach().clone() for name, t in net.state_dict().items()}
        self._names = [name for name, p in net.named_parameters() if p.is_floating_point()]

    @torch.no_grad()
    def update(self, net: nn.Module, decay: float) -> None:
        """Move the average towards the network's weights.

        Args:
            net: the network that this average was made of.
            decay: weight of the old average, 0 to 1.
        """
        parameters = dict(net.named_parameters())
        averages = [self.tensors[name] for name in self._names]
        torch._foreach_lerp_(averages, [parameters[name] for name in self._names], 1.0 - decay)
        averaged = set(self._names)
        for name, tensor in net.state_dict().items():
            if name not in averaged:
                self.tensors[name].copy_(tensor)

    def as_network(self, net: nn.Module) -> nn.Module:
        """Return a copy of the network that holds the average itself, and so moves along with it.

        In eval mode, and no weight of it wants a gradient.

        Args:
            net: the network that this average was made of.
        """
        held = copy.deepcopy(net).eval().requires_grad_(False)
        tensors = held.state_dict()  # its own memory
        copy_tensors(self.tensors, tensors, "ema")
        self.tensors = dict(tensors)
        return held

    @contextlib.contextmanager
    def applied_to(self, net: nn.Module) -> Iterator[nn.Module]:
        """Put the average into the network, in eval mode; weights and mode return on leaving.

        Weights are copied in place, so that what is keyed by their storage stays valid.
        """
        own = {name: t.detach().clone() for name, t in net.state_dict().items()}
        was_training = net.training
        copy_tensors(self.tensors, net.state_dict(), "ema")
        net.eval()
        try:
            yield net
        finally:
            copy_tensors(own, net.state_dict(), "model")
            net.train(was_training)


def profile_power(length: float) -> float:
    """Return gamma of the averaging profile t^gamma whose deviation is `length` of the training.

    Args:
        length: standard deviation of the profile over the length of the training, sigma_rel; above
            0 and at most `training.config.GREATEST_EMA_LENGTH`.

    Source: Karras et al. 2024 (arXiv 2312.02696), eq. 7 and appendix C.1, algorithm 2.
    """
    precision = length**-2
    roots = np.roots([1.0, 7.0, 16.0 - precision, 12.0 - precision])
    return float(roots.real.max())


class Averages:
    """The averages that a training keeps: "ema", and one of a profile a length ("ema-0.1").

    Args:
        net: network whose present weights start all of them.
        config: decay of the first.
        lengths: deviations of the others' profiles over the training.
    """

    def __init__(
        self, net: nn.Module, config: LoopConfig, lengths: Sequence[float] = ()
    ) -> None:
        self._config = config
        self.ema = Ema(net)
        self._others = {length: Ema(net) for length in lengths}

    def update(self, net: nn.Module, step: int) -> None:
        """Move every average after `step` (0-based)."""
        self.ema.update(net, self._config.ema_decay_at(step))
        for length, average in self._others.items():
            # A power function over t = 0 ... step + 1: the first step's weights are all of it.
            decay = (1.0 - 1.0 / (step + 1)) ** (profile_power(length) + 1.0)
            average.update(net, decay)

    @property
    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Name -> tensors of each average."""
        others = {average_name(length): e.tensors for length, e in self._others.items()}
        return {"ema": self.ema.tensors, **others}


def average_name(length: float) -> str:
    """Return what the average of a length is called, as `--weights` takes it."""
    return f"ema-{length:g}"
