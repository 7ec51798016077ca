"""Notices that a network's weights changed, so that what was made from them is made again."""

from __future__ import annotations

from operator import attrgetter, is_not
from typing import Any

from torch import Tensor, nn

from ddsm_ext import _library

_data_ptr = Tensor.data_ptr
_version = attrgetter("_version")


def _slots(net: nn.Module) -> list[tuple[dict[str, Any], str]]:
    """Where parameters are looked up by name each time, as one may be replaced by another."""
    return [(m._parameters, name) for m in net.modules() for name in m._parameters]


class WatchedPlaces:
    """Where the parameters of a network are: for what reads their memory itself.

    New values in the same memory are no change. Nothing here waits for a device.
    """

    def __init__(self, net: nn.Module) -> None:
        self._slots = _slots(net)
        held = self._held()
        self._pointers = list(map(_data_ptr, held))
        self.layout = [(p.data_ptr(), p.dtype, p.shape, p.stride()) for p in held]

    def moved(self) -> bool:
        """True if a parameter is elsewhere than at first: a third of the cost of all of `layout`.

        Another dtype or layout comes with other memory, but for assignments to `.data` that
        reinterpret the old one.
        """
        return list(map(_data_ptr, self._held())) != self._pointers

    def _held(self) -> list[Tensor]:
        held = (slots[name] for slots, name in self._slots)
        return [p for p in held if p is not None]


class WatchedWeights:
    """The parameters of a network as they were last seen: which tensors, where, which content.

    Asked before every step, in which it reads each parameter's place and version and, as edits
    through `.data` change neither, a few of its values.
    """

    def __init__(self, net: nn.Module) -> None:
        self._slots = _slots(net)
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
