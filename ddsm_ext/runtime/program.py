"""A list of kernel calls on named buffers, and the plan that it becomes on real memory."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddsm_ext import _library
from ddsm_ext.settings import Refusal

# Every buffer starts on a cache line.
ALIGNMENT = 64


@dataclass(frozen=True, eq=False)
class Buffer:
    """Memory that the calls of a program write and read; it has no place before `Program.bind`."""

    nbytes: int

    def at(self, offset: int) -> Place:
        """Return the place `offset` bytes behind its first."""
        return Place(self, offset)


@dataclass(frozen=True)
class Place:
    """A byte of a buffer, for what begins within it."""

    buffer: Buffer
    offset: int


class Struct(NamedTuple):
    """A struct of `_library.native`, to be made when its buffers have places.

    `fields` holds all of its keywords. Pointers are a Buffer, a Place, a Tensor or None (null); a
    field may be another Struct or a list of them.
    """

    kind: str
    fields: dict[str, Any]

    def native(self, address: Callable[[Buffer], int]) -> Any:
        """Make it, with buffers at these addresses.

        Raises:
            TypeError: a keyword is missing, unknown or of another type.
        """
        made = {name: _native(value, address) for name, value in self.fields.items()}
        return getattr(_library.native, self.kind)(**made)

    def sketch(self) -> Any:
        """Make it with null for all buffers: for questions about sizes."""
        return self.native(lambda _: 0)

    def nbytes(self) -> int:
        """Bytes of it and the structs in it, as a Python object; its buffers' excepted."""
        own = sys.getsizeof(self) + sys.getsizeof(self.fields)
        inner = (v for value in self.fields.values() for v in _listed(value))
        return own + sum(value.nbytes() for value in inner if isinstance(value, Struct))

    def pointers(self) -> Iterator[Buffer | Tensor]:
        """Yield the buffers and tensors in it."""
        for value in self.fields.values():
            for item in _listed(value):
                if isinstance(item, Struct):
                    yield from item.pointers()
                elif isinstance(item, Place):
                    yield item.buffer
                elif isinstance(item, (Buffer, Tensor)):
                    yield item


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


# With its dictionary and its offset.
_BUFFER_BYTES = sum(map(sys.getsizeof, (Buffer(1 << 29), vars(Buffer(1 << 29)), 1 << 29, 1 << 29)))


@dataclass
class Program:
    """Kernel calls in order, on buffers and on tensors that stay where they are.

    `pinned` buffers keep their content from before the first call until after the last.
    """

    calls: list[Struct] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    pinned: list[Buffer] = field(default_factory=list)

    def add(self, kind: str, **fields: Any) -> None:
        """Append a call.

        Args:
            kind: name of its Args struct in `_library.native`, such as "Conv2dForwardArgs".
            fields: as `Struct.fields`; tensors are kept alive.
        """
        call = Struct(kind, fields)
        self.tensors += [value for value in call.pointers() if isinstance(value, Tensor)]
        self.calls.append(call)

    @cached_property
    def _layout(self) -> tuple[dict[Buffer, int], int]:
        first: dict[Buffer, int] = {}
        last: dict[Buffer, int] = {}
        for index, call in enumerate(self.calls):
            for value in call.pointers():
                if isinstance(value, Buffer):
                    first.setdefault(value, index)
                    last[value] = index
        for buffer in self.pinned:
            first[buffer], last[buffer] = 0, len(self.calls)
        buffers = list(first)
        offsets, total = lay_out([Span(b.nbytes, first[b], last[b]) for b in buffers])
        return dict(zip(buffers, offsets, strict=True)), total

    @property
    def arena_bytes(self) -> int:
        """Bytes of memory that `bind` needs: the peak of all buffers."""
        return self._layout[1]

    def nbytes(self) -> int:
        """Bytes that this program and one plan of it hold: neither the arena nor the tensors."""
        native = len(self.calls) * _library.native.STEP_CALL_BYTES
        return native + sum(
            (
                sum(call.nbytes() for call in self.calls),
                len(self._layout[0]) * _BUFFER_BYTES,
                *map(sys.getsizeof, (self.calls, self.tensors, self.pinned, self._layout[0])),
            )
        )

    def bind(self, arena: Tensor) -> Plan:
        """Return the plan with its buffers in `arena`, a uint8 tensor of `arena_bytes` or more.

        Raises:
            ValueError: the arena is too small.
            TypeError: a call lacks a field of its struct, or has one too many.
        """
        offsets, total = self._layout
        if arena.numel() < total:
            raise Refusal(f"Program.bind: the arena has {arena.numel()} bytes; need {total}")
        start = arena.data_ptr()
        native = _library.native.StepPlan(len(self.calls))
        for call in self.calls:
            native.add(call.native(lambda buffer: start + offsets[buffer]))
        return Plan(native, arena, offsets, self)


@dataclass(frozen=True)
class Plan:
    """A program on real memory; `run` makes all of its calls."""

    native: Any
    arena: Tensor
    offsets: dict[Buffer, int]
    program: Program

    def run(self) -> None:
        """Make the calls in order, without holding the interpreter lock.

        Raises:
            MemoryError: a kernel found no memory for its workspace.
        """
        self.native.run()

    def view(self, buffer: Buffer, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
        """Return a pinned buffer's memory as a contiguous tensor."""
        begin = self.offsets[buffer]
        return self.arena[begin : begin + buffer.nbytes].view(dtype).view(shape)


def _native(value: Any, address: Callable[[Buffer], int]) -> Any:
    if isinstance(value, Struct):
        return value.native(address)
    if isinstance(value, list):
        return [_native(item, address) for item in value]
    if isinstance(value, Buffer):
        return address(value)
    if isinstance(value, Place):
        return address(value.buffer) + value.offset
    if isinstance(value, Tensor):
        return value.data_ptr()
    return 0 if value is None else value


@dataclass(frozen=True)
class Span:
    """A buffer of `nbytes` in use from step `first` to step `last`, both included."""

    nbytes: int
    first: int
    last: int


def lay_out(spans: Sequence[Span]) -> tuple[list[int], int]:
    """Return each span's offset in bytes and the bytes of all, none overlapping while in use.

    Largest first, each into the smallest gap that its neighbours in time leave. On the CIFAR-10
    U-Net that takes no more than the largest sum of simultaneous buffers.

    Source: Pisarchyk and Lee 2020, "Efficient Memory Management for Deep Neural Net Inference"
        (greedy by size).
    """
    offsets = [0] * len(spans)
    placed: list[int] = []
    for index in sorted(range(len(spans)), key=lambda i: -spans[i].nbytes):
        span = spans[index]
        size = _aligned(span.nbytes)
        together = sorted(
            (offsets[i], offsets[i] + _aligned(spans[i].nbytes))
            for i in placed
            if spans[i].first <= span.last and span.first <= spans[i].last
        )
        offsets[index] = _smallest_gap(together, size)
        placed.append(index)
    return offsets, max((offsets[i] + _aligned(s.nbytes) for i, s in enumerate(spans)), default=0)


def _smallest_gap(taken: Sequence[tuple[int, int]], size: int) -> int:
    best: tuple[int, int] | None = None
    end = 0
    for begin, after in taken:
        gap = begin - end
        if gap >= size and (best is None or gap < best[0]):
            best = (gap, end)
        end = max(end, after)
    return end if best is None else best[1]


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
