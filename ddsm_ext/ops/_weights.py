"""Whether weights changed since something was made from them: asked by the ops and the runtime.

A change is noticed
- when another tensor, memory, dtype or layout takes a weight's place;
- by the tensor's version, which every in-place operation of torch raises: those of optimizers,
  averages, `load_state_dict`, `copy_`;
- and, as edits through `.data` or by another library on the same memory do neither, by a sample of
  the values, spread over the weight: 32 of one that an op is about to use, 3 of each before a step
  of a network, where 32 would cost 0.2 ms of cache misses instead of 0.03 (CIFAR-10 U-Net).
Such an edit that spares the samples goes unseen, unless `weights_changed` is told.
"""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter, getitem, is_not
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version
from torch.utils.weak import WeakIdKeyDictionary

from ddsm_ext import _library
from ddsm_ext.settings import TypeRefusal

Stamp = tuple[Any, ...]

_data_ptr, _stride = Tensor.data_ptr, Tensor.stride
_version = attrgetter("_version")
# Told changes of tensors made in inference mode: these have no version.
_told = WeakIdKeyDictionary()


def weights_changed(weights: nn.Module | Tensor) -> None:
    """Tell that weights were edited, so that whatever was made from them is made again.

    Only an edit through `.data`, or by another library on the same memory, wants it, as it may
    spare the few values by which it is noticed. Like every edit, it ends the use of the weights in
    a backward that is yet to come.

    Args:
        weights: a network, for all of its parameters, or one parameter itself (no view of it).

    Raises:
        TypeError: anything else.
    """
    if not isinstance(weights, (nn.Module, Tensor)):
        kind = type(weights).__name__
        raise TypeRefusal(f"weights_changed: got {kind}, need a torch.nn.Module or a torch.Tensor")
    for weight in [weights] if isinstance(weights, Tensor) else weights.parameters():
        if weight.is_inference():
            _told[weight] = _told.get(weight, 0) + 1
        else:
            increment_version(weight)


def content_stamp(weight: Tensor) -> Stamp:
    """Return what differs whenever a change of the weight is noticed, or the instruction set."""
    return (
        weight.data_ptr(),
        (_told.get(weight, 0),) if weight.is_inference() else weight._version,
        weight.dtype,
        weight.shape,
        weight.stride(),
        _library.native.sample_bits(*_memory(weight)),
        _library.native.active_isa(),
    )


def _memory(tensor: Tensor) -> tuple[int, int]:
    """Where a tensor begins, and the bytes from there to its end; none off the CPU's memory."""
    if tensor.numel() == 0 or tensor.device.type != "cpu" or tensor.data_ptr() == 0:
        return 0, 0  # also of a tensor class that keeps its values in other tensors
    reach = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), (1 + reach) * tensor.element_size()


class Modules(Protocol):
    """A network: a module, or what shows the modules of one."""

    def modules(self) -> Iterator[nn.Module]:
        """As of a module."""


def is_plain(tensor: Tensor) -> bool:
    """True for a tensor that holds its values itself, in memory that strides tell."""
    return type(tensor) in (nn.Parameter, Tensor) and tensor.layout == torch.strided


class _Watched:
    """The parameters and buffers of a network as they were last seen."""

    def __init__(self, net: Modules) -> None:
        kinds = [kind for m in net.modules() for kind in (m._parameters, m._buffers)]
        slots = [(kind, name) for kind in kinds for name in kind]
        self._dicts = [kind for kind, _ in slots]
        self._names = [name for _, name in slots]
        self._held: list[Tensor | None] = []
        self._look()

    def _look(self) -> bool:
        """Look them up by name, as one may be replaced by another; True: one was."""
        try:
            held = list(map(getitem, self._dicts, self._names))
        except KeyError:
            held = [slots.get(name) for slots, name in zip(self._dicts, self._names, strict=True)]
        if len(held) == len(self._held) and not any(map(is_not, held, self._held)):
            return False
        self._held = held
        self._plain = [p for p in held if p is not None and is_plain(p)]
        # What can be transposed in its memory and still serve the network.
        self._square = [p for p in self._plain if p.dim() > 1 and p.shape[0] == p.shape[1]]
        return True

    def _layout(self) -> Any:
        """Where they are, and how the memory is read."""
        return list(map(_data_ptr, self._plain)), list(map(_stride, self._square))


class WatchedPlaces(_Watched):
    """For what reads the weights' memory itself: new values in it are no change.

    Nothing here waits for a device.
    """

    def __init__(self, net: Modules) -> None:
        super().__init__(net)
        self._seen = self._layout()

    def changed(self) -> bool:
        """True if a weight is another one, elsewhere or of another layout than at the last call."""
        replaced, now = self._look(), self._layout()
        same, self._seen = now == self._seen, now
        return replaced or not same


class WatchedWeights(_Watched):
    """For what was made from the weights' content, in the CPU's memory."""

    def __init__(self, net: Modules) -> None:
        super().__init__(net)
        self._places: Any = None
        self._seen: Any = None

    def changed(self) -> bool:
        """True if a change is noticed since the last call, as it is at the first."""
        replaced, places = self._look(), self._layout()
        moved = replaced or places != self._places
        if moved:
            self._places = places
            self._versioned = [p for p in self._plain if not p.is_inference()]
            self._unversioned = [p for p in self._plain if p.is_inference()]
            self._content = _library.native.Watched([_memory(p) for p in self._plain])
        versions = list(map(_version, self._versioned))
        if self._unversioned:
            versions += [_told.get(p, 0) for p in self._unversioned]
        seen = (versions, self._content.bits(), _library.native.active_isa())
        same, self._seen = seen == self._seen and not moved, seen
        return not same
