"""The scores that a run keeps in its metrics.json, and what they depend on."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ddsm_ext.io.files import read_json, write_json
from ddsm_ext.run.strategies import KINDS
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


def _saved(run: Path, context: Mapping[str, Any]) -> dict[str, Any]:
    """Return metrics.json if its scores depend on the same things, else an empty one."""
    path, now = run / "metrics.json", plain(context)
    if path.exists():
        saved = _as_of_now(completed(read_json(path), context), now)
        if all(saved.get(key) == value for key, value in now.items()):
            return saved
    return {**now, "rows": []}


def _as_of_now(saved: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """What an earlier version wrote, as it is written now.

    It knew a reference by its name; whatever strategy was named was of the kind "strategy", and the
    last of them was timed.
    """
    rows, found = [], dict(saved)
    for row in saved.get("rows", ()):
        named = row["kind"] == "strategy" and row["label"] != "strategy"
        rows.append({**row, "kind": "other"} if named else row)
        if named:
            found.pop("timing", None)
    reference = {**now["reference"], **saved.get("reference", {})}
    return {**found, "reference": reference, "rows": rows}


def saved_row(
    run: Path,
    context: Mapping[str, Any],
    name: str,
    kind: str,
    strategy: Strategy,
    seeds: Sequence[int],
) -> dict[str, Any] | None:
    """Return a strategy's score for these seeds and this context, None where there is none yet."""
    keys = ("label", "kind", "widths", "cuts", "seeds")
    wanted = [name, kind, list(strategy.widths), list(strategy.cuts), seeds_text(seeds)]
    for row in _saved(run, context)["rows"]:
        if [row.get(key) for key in keys] == wanted:
            return dict(row)
    return None


def save_row(run: Path, context: Mapping[str, Any], row: Mapping[str, Any]) -> None:
    """Add a row to metrics.json in place of its like; rows of another context are dropped.

    So are those of its label that are of another strategy, as one mean over both would be of
    neither, and with the run's own strategy the time measured of it.
    """
    saved, keys = _saved(run, context), ("kind", "widths", "cuts")
    alike = [r for r in saved["rows"] if r["label"] == row["label"]]
    gone = [r for r in alike if any(r.get(key) != row[key] for key in keys)]
    replaced = [r for r in alike if r["seeds"] == row["seeds"]]
    if gone:
        log.info(
            "%s: %d scores of an earlier strategy are dropped", row["label"], len(gone)
        )
    if any(r["kind"] == "strategy" for r in gone):
        saved.pop("timing", None)
    kept = [r for r in saved["rows"] if r not in gone and r not in replaced]
    every = sorted([*kept, row], key=lambda r: (KINDS.index(r["kind"]), -r["macs_per_image"]))
    write_json(run / "metrics.json", {**saved, "rows": every})


def save_timing(run: Path, timing: dict[str, Any]) -> None:
    """Put times that were measured side by side into metrics.json."""
    path = run / "metrics.json"
    write_json(path, {**read_json(path), "timing": timing})
