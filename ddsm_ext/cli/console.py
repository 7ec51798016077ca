"""Progress bars and lines for people; results for programs go to stdout by themselves."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any


def say(text: str = "") -> None:
    """Print a line for the user on stderr, so that stdout holds results only."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def progress_bar(description: str, total: int | None, unit: str = "it") -> Iterator[Any]:
    """Show a tqdm bar on stderr with the time left; nothing when stderr is not a terminal.

    Args:
        description: what is being done.
        total: number of units; None when it is not known.
        unit: name of one unit.
    """
    from tqdm import tqdm

    with tqdm(
        desc=description,
        total=total,
        unit=unit,
        file=sys.stderr,
        disable=not sys.stderr.isatty(),
        delay=0.5,
        dynamic_ncols=True,
        smoothing=0.05,
    ) as bar:
        yield bar


def follow(bar: Any) -> Callable[[int, int], None]:
    """Return a (done, total) callback that moves a bar."""

    def update(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)

    return update


@contextmanager
def stage(title: str) -> Iterator[None]:
    """Say what starts, and how long it took."""
    started = time.perf_counter()
    say(f"{title} ...")
    yield
    say(f"{title}: {time.perf_counter() - started:.1f} s")


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Return rows of text as aligned columns, the first to the left, the others to the right."""
    columns = list(zip(head, *rows, strict=True))
    sizes = [max(len(cell) for cell in column) for column in columns]
    lines = []
    for row in (head, *rows):
        cells = [row[0].ljust(sizes[0])]
        cells += [cell.rjust(size) for cell, size in zip(row[1:], sizes[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
