"""Whether weights changed since something was made from them: the one answer for ops and runtime.

Guarantee: a change of weights between two calls is seen by the second, however it was made; a call
is an op, `net(...)`, a training step's forward or backward, or `sample`. Within one `sample` the
weights (and the modules) are taken as they were at its begin, unless `weights_changed` tells.

How, at the least cost:
- another tensor, memory, dtype or layout in a weight's place is seen by looking;
- in-place operations of torch raise the tensor's version, which is compared;
- memory that was handed out (`.data`, `.numpy()`, a storage, DLPack, an optimizer; see `_memory`),
  that NumPy, a file or other processes own, or whose tensor has no version, as those made in
  inference mode, is read whole and its digest compared, in every call until nobody else holds it;
- `sample` reads all weights once. So it sees even what was written through an address that ctypes
  or C++ kept, of which torch knows nothing: `weights_changed` tells other calls of that.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from operator import attrgetter, getitem, is_not
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from ddsm_ext import _library
from ddsm_ext._fixed_weights import tell_change
from ddsm_ext._locks import ForkSafeLock
from ddsm_ext.ops._memory import Memory, collectives_write, known_memory, memory_of
from ddsm_ext.settings import TypeRefusal

# Not those of torch.Tensor, which note that the memory is handed out.
_data_ptr = torch._C.TensorBase.data_ptr
_stride = Tensor.stride
_version = attrgetter("_version")
_serials = itertools.count()
_lock = ForkSafeLock()


class Content:
    """What a tensor's memory holds, as one dtype, shape and layout read it.

    Attributes:
        made: what was made from it, by kind; whoever makes it keeps the serial beside it.
    """

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._serial = next(_serials)
        self._version: int | None = None
        self._digest: int | None = None
        # Notes of the memory when nobody else held it and the content was known.
        self._settled: int | None = None if memory.is_held() else memory.notes
        self.made: dict[Any, Any] = {}

    def is_counted(self) -> bool:
        """True if only torch's counted operations can have written it since it was looked at."""
        return self._version is not None and self._settled == self._memory.notes

    def serial(self, tensor: Tensor, *, whole: bool = False) -> int:
        """Return a number that is another one whenever the content may be.

        Args:
            tensor: one with this content.
            whole: read it even where its version tells every change.
        """
        version = None if tensor.is_inference() else tensor._version
        if version == self._version and self.is_counted() and not (whole or collectives_write()):
            return self._serial
        with _lock:
            self._look(tensor, version, whole)
            return self._serial

    def _look(self, tensor: Tensor, version: int | None, whole: bool) -> None:
        notes, held = self._memory.notes, self._memory.is_held()
        changed, digest = version != self._version, None
        if whole or held or not changed or version is None or collectives_write():
            digest = _library.native.digest(*_extent(tensor))
            changed = changed or digest != self._digest
        # In this order: other threads read the serial once they find the rest as it is now.
        if changed:
            self._serial = next(_serials)
        self._digest, self._version = digest, version
        self._settled = None if held else notes


def _extent(tensor: Tensor) -> tuple[int, int]:
    """Where a tensor begins in the CPU's memory, and the bytes from there to its end."""
    if tensor.numel() == 0 or tensor.device.type != "cpu":
        return 0, 0
    reach = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return _data_ptr(tensor), (1 + reach) * tensor.element_size()


def content_of(tensor: Tensor) -> Content:
    """Return the content of a plain tensor; tensors that share memory and layout share it."""
    memory = memory_of(tensor)
    key = (_data_ptr(tensor), tensor.dtype, tensor.shape, tensor.stride())
    return memory.contents.get(key) or memory.contents.setdefault(key, Content(memory))


def contents_of(tensors: Iterable[Tensor]) -> set[Content]:
    """Return what is known of the tensors' memories."""
    memories = (known_memory(tensor) for tensor in tensors)
    return {content for m in memories if m is not None for content in m.contents.values()}


def weights_changed(weights: nn.Module | Tensor) -> None:
    """Tell that weights were edited, so that whatever was made from them is made again.

    Two edits alone want it: one by the callback of a `sample` that runs, and one by C++ or ctypes
    through an address that was kept. Like every edit, it ends the use of the weights in a backward
    that is yet to come.

    Args:
        weights: a network, for all of its parameters, or one parameter itself (no view of it).

    Raises:
        TypeError: anything else.
    """
    if not isinstance(weights, (nn.Module, Tensor)):
        kind = type(weights).__name__
        raise TypeRefusal(f"weights_changed: got {kind}, need a torch.nn.Module or a torch.Tensor")
    for weight in [weights] if isinstance(weights, Tensor) else weights.parameters():
        if not weight.is_inference():  # of those the content is read anyway
            increment_version(weight)
    tell_change()


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
        self._square = [
            p
            for p in self._plain
            if (p.dim() > 1 and p.shape[0] == p.shape[1])
            or (p.dim() == 3 and p.shape[1] == p.shape[2])
        ]
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
        self._contents: list[Content] = []
        self._serials: list[int] = []
        self._seen: Any = None  # None: versions do not tell every change

    def changed(self, *, whole: bool = False) -> bool:
        """True if a change is seen since the last call, as it is at the first.

        Args:
            whole: read all weights, even where versions tell every change.
        """
        replaced, places, isa = self._look(), self._layout(), _library.native.active_isa()
        moved = replaced or (places, isa) != self._places
        if moved:
            self._places = places, isa
            self._contents = list(map(content_of, self._plain))
            self._versioned = [p for p in self._plain if not p.is_inference()]
        seen = list(map(_version, self._versioned)), Memory.all_notes
        if seen == self._seen and not (moved or whole or collectives_write()):
            return False
        pairs = zip(self._contents, self._plain, strict=True)
        serials = [content.serial(p, whole=whole) for content, p in pairs]
        same, self._serials = serials == self._serials and not moved, serials
        self._seen = seen if all(content.is_counted() for content in self._contents) else None
        return not same
