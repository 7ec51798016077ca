"""Operands of an emulated call, copied so that nothing lies beside them.

An allocator may put two tensors next to each other, and then a kernel that leaves one touches the
other: what is out of bounds would depend on what the process had allocated before.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

GAP = 1 << 20  # bytes between operands; never touched, so they cost no memory
PAGE = 4096  # an address keeps its place in a page: what is aligned stays so


class Memory(NamedTuple):
    start: int  # address
    bytes: int

    @property
    def end(self) -> int:
        return self.start + self.bytes


def memory_of(tensor: Tensor) -> Memory:
    """Where the elements of a strided tensor lie, with what is between them."""
    if tensor.numel() == 0:
        return Memory(tensor.data_ptr(), 0)
    last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return Memory(tensor.data_ptr(), (last + 1) * tensor.element_size())


def united(memories: Iterable[Memory]) -> list[Memory]:
    """The memories by address, those that share a byte as one."""
    found: list[Memory] = []
    for memory in sorted(memories):
        if found and memory.start < found[-1].end:
            start = found[-1].start
            found[-1] = Memory(start, max(memory.end, found[-1].end) - start)
        elif memory.bytes:
            found.append(memory)
    return found


class Operands:
    """Copies of tensors that a kernel takes, GAP bytes apart."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        memories = united(map(memory_of, tensors))
        room = sum(memory.bytes + GAP + PAGE for memory in memories) + GAP + PAGE
        self._room = torch.empty(room, dtype=torch.uint8)
        self._copies: list[tuple[Memory, int]] = []
        free = self._room.data_ptr() + GAP
        for memory in memories:
            copy = free + (memory.start - free) % PAGE
            ctypes.memmove(copy, memory.start, memory.bytes)
            self._copies.append((memory, copy))
            free = copy + memory.bytes + GAP

    def address(self, given: int | None) -> int | None:
        """Of the copy; as given outside of the tensors."""
        for memory, copy in self._copies:
            if given is not None and memory.start <= given < memory.end:
                return copy + given - memory.start
        return given

    def arguments(self, value: Any) -> Any:
        """A copy of a structure or array of ctypes with the copies' addresses."""
        if isinstance(value, ctypes.Array):
            return type(value)(*map(self.arguments, value))
        if not isinstance(value, ctypes.Structure):
            return value
        copy = type(value).from_buffer_copy(value)
        for name, kind in value._fields_:
            field = getattr(value, name)
            if kind is ctypes.c_void_p:
                setattr(copy, name, self.address(field))
            elif isinstance(field, ctypes.Structure | ctypes.Array):
                setattr(copy, name, self.arguments(field))
            elif issubclass(kind, ctypes._Pointer):  # parts: part_count of them
                count = getattr(value, f"{name.removesuffix('s')}_count")
                array = (kind._type_ * count)(*field[:count])
                setattr(copy, name, self.arguments(array))
        return copy

    def write_back(self) -> None:
        """Into the tensors, what kernels left in the copies."""
        for memory, copy in self._copies:
            ctypes.memmove(memory.start, copy, memory.bytes)
