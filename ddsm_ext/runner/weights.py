"""Notices that a network's weights changed, so that what was made from them is made again."""

from __future__ import annotations

from typing import Any

from torch import nn

from ddsm_ext import _library


class WatchedWeights:
    """The parameters of a network as they were last seen: which tensors, where, which content."""

    def __init__(self, net: nn.Module) -> None:
        # Looked up by name each time, as a parameter may be replaced by another.
        self._slots = [(m._parameters, name) for m in net.modules() for name in m._parameters]
        self._seen: Any = None
        self._watched: Any = None

    def changed(self) -> bool:
        """True if anything differs from the last call, as it does at the first."""
        parameters = [slots[name] for slots, name in self._slots]
        places = [p.data_ptr() for p in parameters]
        if self._seen is None or places != self._seen[0]:
            self._watched = _library.native.Watched(
                [(p.data_ptr(), p.numel() * p.element_size()) for p in parameters]
            )
        versions = [-1 if p.is_inference() else p._version for p in parameters]
        seen = (places, versions, self._watched.bits(), _library.native.active_isa())
        same, self._seen = seen == self._seen, seen
        return not same
