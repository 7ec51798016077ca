"""How a sampler calls the network: the seam where a compiled plan per width can take over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

Network = Callable[[Tensor, Tensor, float], Tensor]


@runtime_checkable
class StepRunner(Protocol):
    """A network that wants to know its shapes beforehand, e.g. to compile or capture a step.

    A plain network `net(x, t, width)` needs none of this; an object with `prepare` is told, before
    each batch, what the following calls will look like. Each call gets x [N, C, H, W] channels_last
    in the prepared shape and dtype, t [N] int64, and must return a prediction of x's shape, which
    the sampler reads before it makes the next call.
    """

    def prepare(
        self,
        widths: Sequence[float],
        shape: tuple[int, int, int, int],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Get ready for calls at `widths` with x of `shape`, `dtype` and `device`."""

    def __call__(self, x: Tensor, t: Tensor, width: float) -> Tensor:
        """Return the prediction for (x, t) at `width`."""
