"""Which memory of weights may have been written without torch's counting.

A tensor's version, which its views share, rises with every in-place operation. It does not when
something else writes the memory: another tensor on it with a count of its own, NumPy, a storage, an
optimizer's fused kernel. But whoever writes so was handed the memory before, by one of the methods
of torch.Tensor that are replaced here by themselves and a note. So the version tells every change
of memory that is noted by nobody, at no cost, and noted memory is compared until nobody holds it.

Not seen is an address that was kept and written through later on, by ctypes or C++.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributed
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

_HAS_COLLECTIVES = distributed.is_available()
_storage_of = torch._C.TensorBase.untyped_storage
_holders = torch._C._storage_Use_Count
_tensor = torch.empty(1, device="cpu")
# Those of a storage that one tensor has, and nothing else.
_ALONE = _holders(_storage_of(_tensor)._cdata)
# torch keeps a storage's object as long as the storage; of one that came and went nothing is known.
_OBJECTS_STAY = weakref.ref(_storage_of(_tensor))() is not None
del _tensor


class Memory:
    """The storage of weights from which something was made.

    Attributes:
        notes: how often it was handed out.
        contents: what is known of it, by what reads it: see `_weights.Content`.
    """

    all_notes = 0  # of all memories

    def __init__(self, storage: torch.UntypedStorage) -> None:
        self._address = address = storage._cdata
        # No reference to a tensor: torch.utils.swap_tensors would refuse it.
        self._storage = weakref.ref(storage, lambda _: _memories.pop(address, None))
        # Of NumPy, of a file, or of several processes: their owners write it when they like.
        owned = storage.resizable() and not storage.is_shared()
        self._is_foreign = not (owned and _OBJECTS_STAY)
        self.notes = 0
        self.contents: dict[Any, Any] = {}

    def is_held(self) -> bool:
        """True if something else than one tensor holds it now, as what it was handed to."""
        return self._is_foreign or _holders(self._address) > _ALONE

    def note(self) -> None:
        """It is handed out."""
        self.notes += 1
        Memory.all_notes += 1


_memories: dict[int, Memory] = {}


def memory_of(tensor: Tensor) -> Memory:
    """Return the memory of a tensor that has some, known from now on."""
    storage = _storage_of(tensor)
    memory = _memories.get(storage._cdata)
    # One for all threads: others would not be noted.
    return memory or _memories.setdefault(storage._cdata, Memory(storage))


def known_memory(tensor: Tensor) -> Memory | None:
    """Return the memory of a tensor if something was made of it."""
    try:
        return _memories.get(_storage_of(tensor)._cdata)
    except (RuntimeError, NotImplementedError):  # it has no storage of its own
        return None


def collectives_write() -> bool:
    """True if torch.distributed runs, whose collectives write what they receive uncounted."""
    return _HAS_COLLECTIVES and distributed.is_initialized()


def _note(tensor: Any) -> None:
    """Note that a tensor's memory is in other hands, where something was made of it."""
    if _memories and isinstance(tensor, Tensor):
        memory = known_memory(tensor)
        if memory is not None:
            memory.note()


def _noted(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def noted(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = method(self, *args, **kwargs)
        _note(self)  # afterwards: another thread finds it noted, or held by the result
        return result

    return noted


def _replace_methods() -> None:
    data: Any = torch._C.TensorBase.data

    def set_data(self: Tensor, value: Tensor) -> None:
        data.__set__(self, value)
        _note(value)

    @functools.wraps(torch.Tensor.set_)
    def set_(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        result = torch._C.TensorBase.set_(self, *args, **kwargs)
        _note(kwargs.get("source", args[0] if args else None))
        return result

    replaced = {"data": property(_noted(data.__get__), set_data, doc=data.__doc__), "set_": set_}
    for name in ("numpy", "untyped_storage", "__dlpack__", "data_ptr"):
        replaced[name] = _noted(getattr(torch.Tensor, name))
    for name, method in replaced.items():
        setattr(torch.Tensor, name, method)
    for module in (torch, torch.utils.dlpack):
        setattr(module, "to_dlpack", _noted(getattr(module, "to_dlpack")))  # noqa: B009, B010


def _note_parameters(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    if _memories:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                _note(parameter)


_replace_methods()
register_optimizer_step_post_hook(_note_parameters)
