"""Progress bars and lines for people; results for programs go to stdout by themselves.

Names of files, and whatever else is read, may hold what a terminal obeys: `harmless_output` stands
between all that is printed and the terminal.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TextIO


def printable(text: str) -> str:
    """Return a text with an escape in place of what is neither seen nor a line break or tab.

    Those are control characters, which move the cursor or rename the window, marks that turn the
    direction of writing, and bytes of a file name that are no text.
    """
    if text.isascii() and text.isprintable():
        return text
    shown = (c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)
    return "".join(shown)


def silence(stream: TextIO) -> None:
    """Let a stream whose reader has gone write to nowhere, whatever it still holds included."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


class Harmless:
    """A stream that writes `printable` texts, and fails for no text.

    Args:
        stream: where they go.
        escape: False leaves the texts as they are, for programs.
        needed: whether the work ends where nobody reads them any more; else it goes on unheard.
    """

    def __init__(self, stream: TextIO, *, escape: bool, needed: bool = True) -> None:
        self.stream, self.escape, self.needed = stream, escape, needed

    def write(self, text: str) -> int:
        """Write a text; what the stream's encoding lacks goes out as the bytes of a file name."""
        text = printable(text) if self.escape else text
        try:
            return self.stream.write(text)
        except UnicodeEncodeError:
            self.stream.flush()
            return self.stream.buffer.write(text.encode("utf-8", "surrogateescape"))
        except OSError:
            if self.needed:
                raise
            silence(self.stream)
            return len(text)

    def flush(self) -> None:
        """Write what is held back."""
        try:
            self.stream.flush()
        except OSError:
            if self.needed:
                raise
            silence(self.stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def harmless_output() -> Iterator[None]:
    """Let all that is printed be harmless; a program that reads stdout gets it as it is."""
    before = sys.stdout, sys.stderr
    if sys.stdout is not None:
        sys.stdout = Harmless(sys.stdout, escape=sys.stdout.isatty())
    with ExitStack() as opened:
        # print(file=None) is print to stdout
        stderr = sys.stderr or opened.enter_context(open(os.devnull, "w"))
        sys.stderr = Harmless(stderr, escape=True, needed=False)
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before


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
        if sys.stderr is None or not sys.stderr.isatty():
            return
        if title != self._title:
            self.close()
            self._open(title, total, unit)
        bar = self._bar
        if bar is None:
            return
        bar.total = total
        if remark:
            bar.set_postfix_str(printable(remark), refresh=False)
        bar.update(done - bar.n)
        if done == total:
            self.close()

    def _open(self, title: str, total: int | None, unit: str) -> None:
        from tqdm import tqdm

        self._title = title
        self._bar = tqdm(
            desc=printable(title),
            total=total,
            unit=unit,
            file=getattr(sys.stderr, "stream", sys.stderr),  # a bar moves the cursor
            delay=0.5,
            dynamic_ncols=True,
            smoothing=0.05,
        )

    def write(self, text: str) -> None:
        """Write a logger's line on stderr; the bar that is shown goes on below it."""
        if self._bar is not None:
            self._bar.clear()
        say(" ".join(text.split()))

    def close(self) -> None:
        """End the bar that is shown."""
        if self._bar is not None:
            self._bar.close()
        self._title = self._bar = None


@contextmanager
def told() -> Iterator[Bars]:
    """Show what the workflow tells while it runs: its lines, and its progress as bars."""
    import logging

    class Lines(logging.StreamHandler[Bars]):
        def format(self, record: logging.LogRecord) -> str:
            mark = "ddsm: warning: " if record.levelno >= logging.WARNING else ""
            return mark + super().format(record)

    bars = Bars()
    logger, handler = logging.getLogger("ddsm_ext"), Lines(bars)
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
