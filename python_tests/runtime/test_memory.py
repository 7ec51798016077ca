"""Placing buffers: no overlap while in use, and no more memory than needed."""

from __future__ import annotations

import random

from ddsm_ext.runtime.program import ALIGNMENT, Span, lay_out


def peak(spans: list[Span]) -> int:
    """The largest sum of aligned buffers in use together: no layout takes less."""
    steps = range(max(s.last for s in spans) + 1)
    sizes = [(s, -(-s.nbytes // ALIGNMENT) * ALIGNMENT) for s in spans]
    return max(sum(size for s, size in sizes if s.first <= step <= s.last) for step in steps)


def test_nothing():
    assert lay_out([]) == ([], 0)


def test_disjoint_times_share_memory():
    offsets, total = lay_out([Span(1000, 0, 1), Span(800, 2, 3), Span(640, 4, 4)])
    assert offsets == [0, 0, 0]
    assert total == 1024


def test_a_gap_is_filled_by_what_fits_it():
    # The middle buffer ends early; the one after it fits between its neighbours.
    spans = [Span(640, 0, 9), Span(320, 0, 3), Span(512, 0, 9), Span(256, 4, 9)]
    offsets, total = lay_out(spans)
    assert total == 640 + 512 + 320
    assert offsets[3] == offsets[1]


def test_random_programs():
    generator = random.Random(0)
    for _ in range(200):
        spans = []
        for _ in range(generator.randint(1, 40)):
            first = generator.randint(0, 30)
            last = first + generator.randint(0, 6)
            spans.append(Span(generator.randint(1, 5000), first, last))
        offsets, total = lay_out(spans)
        for i, (a, at) in enumerate(zip(spans, offsets, strict=True)):
            assert at % ALIGNMENT == 0
            assert at + a.nbytes <= total
            for b, bt in zip(spans[:i], offsets[:i], strict=True):
                if a.first <= b.last and b.first <= a.last:
                    assert at + a.nbytes <= bt or bt + b.nbytes <= at
        assert peak(spans) <= total <= 1.5 * peak(spans)
