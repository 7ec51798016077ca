"""Progress of a search: what a callback is told, and a bar for terminals."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class SearchProgress:
    """State of a search after an evaluation.

    Args:
        evaluations: candidates and stages scored so far, those found in the archive included.
        expected: how many there are expected to be in the end (fewer in small spaces).
        generation: generation now running, from 0.
        generations: generations in all.
        stage: "cheap" or "full", what was last evaluated.
        hypervolume: share of the hypervolume box after the last generation; None before the first.
    """

    evaluations: int
    expected: int
    generation: int
    generations: int
    stage: str
    hypervolume: float | None


ProgressCallback = Callable[[SearchProgress], None]


def terminal_progress() -> ProgressCallback | None:
    """Return a callback that draws a bar with time left on stderr; None if that is no terminal."""
    if not sys.stderr.isatty():
        return None
    from tqdm import tqdm

    bar = tqdm(desc="search", unit="score", file=sys.stderr)

    def show(state: SearchProgress) -> None:
        bar.total = max(state.expected, state.evaluations)
        volume = "" if state.hypervolume is None else f", hypervolume {state.hypervolume:.4f}"
        bar.set_postfix_str(f"generation {state.generation + 1}/{state.generations}{volume}", False)
        bar.update(state.evaluations - bar.n)
        if state.evaluations >= state.expected:
            bar.close()

    return show
