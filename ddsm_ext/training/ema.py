"""Averaged weights: theta_ema <- decay * theta_ema + (1 - decay) * theta after every step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from ddsm_ext.io.weights import copy_tensors


class Ema:
    """Exponential moving average of a network's parameters; buffers are copied.

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
