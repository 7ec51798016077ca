"""Notices that a network's weights changed, so that what was made from them is made again."""

from __future__ import annotations

from operator import attrgetter, is_not
from typing import Any

from torch import Tensor, nn

from ddsm_ext import _library

_data_ptr = Tensor.data_ptr
_version = attrgetter("_version")


class WatchedWeights:
    """The parameters of a network as they were last seen: which tensors, where, which content.

    Asked before every step, in which it reads each parameter's place and version and, as edits
    through `.data` change neither, a few of its values.
    """

    def __init__(self, net: nn.Module) -> None:
        # Looked up by name each time, as a parameter may be replaced by another.
        self._slots = [(m._parameters, name) for m in net.modules() for name in m._parameters]
        self._held: list[Tensor | None] = []
        self._watched: list[Tensor] = []
        self._versioned: list[Tensor] = []
        self._places: list[int] = []
        self._content: Any = None
        self._seen: Any = None

    def changed(self) -> bool:
        """True if anything differs from the last call, as it does at the first."""
        held = [slots[name] for slots, name in self._slots]
        if self._seen is None or any(map(is_not, held, self._held)):
            self._held = held
            self._watched = [p for p in held if p is not None]
            # A tensor made in inference mode has no version, and cannot be edited outside of it.
            self._versioned = [p for p in self._watched if not p.is_inference()]
        places = list(map(_data_ptr, self._watched))
        if self._content is None or places != self._places:
            self._places = places
            self._content = _library.native.Watched(
                [(p.data_ptr(), p.numel() * p.element_size()) for p in self._watched]
            )
        versions = list(map(_version, self._versioned))
        seen = (places, versions, self._content.bits(), _library.native.active_isa())
        same, self._seen = seen == self._seen, seen
        return not same
