"""Notices that a network's weights changed, so that what was made from them is made again."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ddsm_ext import _library


class _Parameters:
    """The parameters of a network, looked up by name each time: one may replace another."""

    def __init__(self, net: nn.Module) -> None:
        self._slots = [(m._parameters, name) for m in net.modules() for name in m._parameters]
        self._seen: Any = None

    def _held(self) -> list[Tensor]:
        held = (slots[name] for slots, name in self._slots)
        return [p for p in held if p is not None]


class WatchedPlaces(_Parameters):
    """Where the parameters of a network are: for what reads their memory itself.

    New values in the same memory are no change. Nothing here waits for a device.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        held = self._held()
        self._pointers = [p.data_ptr() for p in held]
        self.layout = [(p.data_ptr(), p.dtype, p.shape, p.stride()) for p in held]

    def moved(self) -> bool:
        """True if a parameter is elsewhere than at first: a third of the cost of all of `layout`.

        Another dtype or layout comes with other memory, but for assignments to `.data` that
        reinterpret the old one.
        """
        return [p.data_ptr() for p in self._held()] != self._pointers


class WatchedWeights(_Parameters):
    """The parameters of a network as they were last seen: which tensors, where, which content."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        self._watched: Any = None

    def changed(self) -> bool:
        """True if anything differs from the last call, as it does at the first."""
        parameters = self._held()
        places = [p.data_ptr() for p in parameters]
        if self._seen is None or places != self._seen[0]:
            self._watched = _library.native.Watched(
                [(p.data_ptr(), p.numel() * p.element_size()) for p in parameters]
            )
        versions = [-1 if p.is_inference() else p._version for p in parameters]
        seen = (places, versions, self._watched.bits(), _library.native.active_isa())
        same, self._seen = seen == self._seen, seen
        return not same
