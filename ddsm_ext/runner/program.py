"""A list of kernel calls on named buffers, and the plan that it becomes on real memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ddsm_ext import _library
from ddsm_ext.runner.memory import Span, lay_out


@dataclass(frozen=True, eq=False)
class Buffer:
    """Memory that the calls of a program write and read; it has no place before `Program.bind`."""

    nbytes: int


@dataclass
class Program:
    """Kernel calls in order, on buffers and on tensors that stay where they are.

    `pinned` buffers keep their content from before the first call until after the last.
    """

    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    pinned: list[Buffer] = field(default_factory=list)

    def add(self, kind: str, **fields: Any) -> None:
        """Append a call of `StepPlan.add_<kind>`.

        Args:
            kind: "conv2d", "linear", "norm_merge", "norm_apply" or "attention".
            fields: its fields; pointers are a Buffer, a Tensor (kept alive) or None.
        """
        self.tensors += [value for value in fields.values() if isinstance(value, Tensor)]
        self.calls.append((kind, fields))

    @cached_property
    def _layout(self) -> tuple[dict[Buffer, int], int]:
        first: dict[Buffer, int] = {}
        last: dict[Buffer, int] = {}
        for index, (_, fields) in enumerate(self.calls):
            for value in fields.values():
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

    def bind(self, arena: Tensor) -> Plan:
        """Return the plan with its buffers in `arena`, a uint8 tensor of `arena_bytes` or more.

        Raises:
            ValueError: the arena is too small.
        """
        offsets, total = self._layout
        if arena.numel() < total:
            raise ValueError(f"Program.bind: the arena has {arena.numel()} bytes; need {total}")
        start = arena.data_ptr()
        native = _library.native.StepPlan()
        for kind, fields in self.calls:
            places = {name: _place(value, start, offsets) for name, value in fields.items()}
            getattr(native, f"add_{kind}")(places)
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


def _place(value: Any, start: int, offsets: dict[Buffer, int]) -> Any:
    if isinstance(value, Buffer):
        return start + offsets[value]
    if isinstance(value, Tensor):
        return value.data_ptr()
    return 0 if value is None else value
