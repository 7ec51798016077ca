"""The scores that a run keeps in its metrics.json, and what they depend on."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ddsm_ext.io.lock import RunLock
from ddsm_ext.report.records import KINDS, Metrics, Score, Timing
from ddsm_ext.sampling.strategy import Strategy
from ddsm_ext.settings import completed, plain

log = logging.getLogger(__name__)


def seeds_text(seeds: Sequence[int]) -> str:
    """Return seeds as text, ranges where they are consecutive."""
    ranges: list[tuple[int, int]] = []
    for seed in seeds:
        if ranges and seed == ranges[-1][1] + 1:
            ranges[-1] = (ranges[-1][0], seed)
        else:
            ranges.append((seed, seed))
    return ",".join(f"{a}-{b}" if b > a else f"{a}" for a, b in ranges)


def _path(run: Path) -> Path:
    return run / "metrics.json"


def load_metrics(run: Path) -> Metrics:
    """Return what metrics.json holds, or nothing where there is none.

    Raises:
        ValueError: it is damaged; the sentence names it.
    """
    path = _path(run)
    return Metrics.load(path) if path.exists() else Metrics()


def _saved(run: Path, context: Mapping[str, Any]) -> Metrics:
    """Return metrics.json if its scores depend on the same things, else one without scores."""
    found, now = load_metrics(run), plain(context)
    if found.rows:
        held = completed(found.to_dict(), context)
        held["reference"] = {**now["reference"], **held.get("reference", {})}
        if all(held.get(key) == value for key, value in now.items()):
            return replace(_as_of_now(found), **now)
    return Metrics(**now)


def _as_of_now(saved: Metrics) -> Metrics:
    """What an earlier version wrote, as it is written now.

    Whatever strategy was named was of the kind "strategy", and the last of them was timed; it knew
    a reference by its name alone, too.
    """
    named = [row.kind == "strategy" and row.label != "strategy" for row in saved.rows]
    rows = [
        replace(row, kind="other") if other else row
        for row, other in zip(saved.rows, named, strict=True)
    ]
    return replace(saved, rows=tuple(rows), timing=None if any(named) else saved.timing)


def saved_row(
    run: Path,
    context: Mapping[str, Any],
    name: str,
    kind: str,
    strategy: Strategy,
    seeds: Sequence[int],
) -> dict[str, Any] | None:
    """Return a strategy's score for these seeds and this context, None where there is none yet.

    Raises:
        ValueError: metrics.json is damaged.
    """
    wanted = (name, kind, strategy.widths, strategy.cuts, seeds_text(seeds))
    for row in _saved(run, context).rows:
        if (row.label, row.kind, row.widths, row.cuts, row.seeds) == wanted:
            return row.to_dict()
    return None


def save_row(run: Path, context: Mapping[str, Any], row: Mapping[str, Any]) -> None:
    """Add a row to metrics.json in place of its like; rows of another context are dropped.

    So are those of its label that are of another strategy, as one mean over both would be of
    neither, and with the run's own strategy the time measured of it.

    Raises:
        ValueError: metrics.json is damaged, the row is none, or another process writes into the
            run.
    """
    with RunLock(run):
        saved, new = _saved(run, context), Score.from_dict(row)
        if not saved.rows and (dropped := len(load_metrics(run).rows)):
            log.warning("%s: %d scores of other settings are dropped", _path(run), dropped)
        alike = [r for r in saved.rows if r.label == new.label]
        gone = [r for r in alike if (r.kind, r.widths, r.cuts) != (new.kind, new.widths, new.cuts)]
        replaced = [r for r in alike if r.seeds == new.seeds]
        if gone:
            log.info("%s: %d scores of an earlier strategy are dropped", new.label, len(gone))
        if any(r.kind == "strategy" for r in gone):
            saved = replace(saved, timing=None)
        kept = [r for r in saved.rows if r not in gone and r not in replaced]
        every = sorted([*kept, new], key=lambda r: (KINDS.index(r.kind), -(r.macs_per_image or 0)))
        replace(saved, rows=tuple(every)).save(_path(run))


def save_timing(run: Path, timing: Mapping[str, Any]) -> None:
    """Put times that were measured side by side into metrics.json.

    Raises:
        ValueError: metrics.json is damaged.
    """
    with RunLock(run):
        replace(load_metrics(run), timing=Timing.from_dict(timing)).save(_path(run))
