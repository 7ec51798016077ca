"""Places buffers that are in use at different times into one piece of memory. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# Every buffer starts on a cache line.
ALIGNMENT = 64


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
