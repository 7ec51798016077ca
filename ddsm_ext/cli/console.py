"""Progress bars and lines for people; results for programs go to stdout by themselves."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any


def say(text: str = "") -> None:
    """Print a line for the user on stderr, so that stdout holds results only."""
    print(text, file=sys.stderr, flush=True)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return rows of text as aligned columns, the first to the left, the others to the right."""
    from tabulate import tabulate

    sides = ["left", *["right"] * (len(head) - 1)]
    return tabulate(rows, head, "plain", colalign=sides, disable_numparse=True)


class Bars:
    """Shows progress as one tqdm bar after another on stderr; nothing where it is no terminal."""

    def __init__(self) -> None:
        self._title: str | None = None
        self._bar: Any = None

    def __call__(
        self, title: str, done: int, total: int | None, unit: str, remark: str = ""
    ) -> None:
        """Move the bar of `title`; another title, or the end, closes it."""
        if not sys.stderr.isatty():
            return
        if title != self._title:
            self.close()
            self._open(title, total, unit)
        bar = self._bar
        if bar is None:
            return
        bar.total = total
        if remark:
            bar.set_postfix_str(remark, refresh=False)
        bar.update(done - bar.n)
        if done == total:
            self.close()

    def _open(self, title: str, total: int | None, unit: str) -> None:
        from tqdm import tqdm

        self._title = title
        self._bar = tqdm(
            desc=title,
            total=total,
            unit=unit,
            file=sys.stderr,
            delay=0.5,
            dynamic_ncols=True,
            smoothing=0.05,
        )

    def write(self, text: str) -> None:
        """Write a logger's line on stderr; the bar that is shown goes on below it."""
        if self._bar is not None:
            self._bar.clear()
        print(text, end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        """End the bar that is shown."""
        if self._bar is not None:
            self._bar.close()
        self._title = self._bar = None


@contextmanager
def told() -> Iterator[Bars]:
    """Show what the workflow tells while it runs: its lines, and its progress as bars."""
    import logging

    bars = Bars()
    logger, handler = logging.getLogger("ddsm_ext"), logging.StreamHandler(bars)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield bars
    finally:
        bars.close()
        logger.setLevel(level)
        logger.removeHandler(handler)


@contextmanager
def stage(title: str) -> Iterator[None]:
    """Say what starts, and how long it took."""
    started = time.perf_counter()
    say(f"{title} ...")
    yield
    say(f"{title}: {time.perf_counter() - started:.1f} s")
