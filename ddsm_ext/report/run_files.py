"""Reads the files of a run folder for the report; a file that is not there reads as empty."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ddsm_ext.io.files import read_json, read_jsonl


@dataclass(frozen=True)
class RunFiles:
    """What a run folder holds, as parsed JSON.

    `metrics["rows"]` has one entry a score: label, kind ("full", "strategy" or "width"), width,
    seeds, images, frechet, kid, macs_per_image, ms_per_image.
    """

    path: Path
    config: dict[str, Any] = field(default_factory=dict)
    env: dict[str, Any] = field(default_factory=dict)
    log: list[dict[str, Any]] = field(default_factory=list)
    archive: list[dict[str, Any]] = field(default_factory=list)
    front: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    sensitivity: dict[str, Any] = field(default_factory=dict)
    steps: dict[str, Any] = field(default_factory=dict)
    costs: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    samples: dict[str, Any] = field(default_factory=dict)
    commands: list[dict[str, Any]] = field(default_factory=list)


def _object(path: Path) -> dict[str, Any]:
    value = read_json(path) if path.exists() else {}
    return value if isinstance(value, dict) else {}


def _rows(path: Path) -> list[dict[str, Any]]:
    return [row for row in read_jsonl(path) if isinstance(row, dict)] if path.exists() else []


def load_run(run: str | Path) -> RunFiles:
    """Read what the report needs from a run folder.

    Args:
        run: the run folder.

    Raises:
        FileNotFoundError: there is no such folder, or it has no config.json.
        ValueError: a file in it is not valid JSON.
    """
    path = Path(run)
    if not path.is_dir():
        raise FileNotFoundError(
            f"{path}: is no folder; needs a run folder such as runs/00000-digits"
        )
    if not (path / "config.json").exists():
        raise FileNotFoundError(f"{path}: has no config.json; needs a run folder made by ddsm")
    history = path / "search" / "history.json"
    generations = read_json(history) if history.exists() else []
    if isinstance(generations, dict):
        generations = generations.get("generations", [])
    return RunFiles(
        path=path,
        config=_object(path / "config.json"),
        env=_object(path / "env.json"),
        log=_rows(path / "log.jsonl"),
        archive=_rows(path / "search" / "archive.jsonl"),
        front=_object(path / "search" / "front.json"),
        history=[row for row in generations if isinstance(row, dict)],
        sensitivity=_object(path / "search" / "sensitivity.json"),
        steps=_object(path / "search" / "steps.json"),
        costs=_object(path / "search" / "costs.json"),
        metrics=_object(path / "metrics.json"),
        samples=_object(path / "samples" / "compare" / "index.json"),
        commands=_rows(path / "commands.jsonl"),
    )


def losses_per_width(log: list[dict[str, Any]]) -> dict[float, tuple[list[int], list[float]]]:
    """Return width -> (steps, losses) from the rows of log.jsonl (`loss_w0.5` is width 0.5's)."""
    losses: dict[float, tuple[list[int], list[float]]] = {}
    for row in log:
        for key, value in row.items():
            match = re.fullmatch(r"loss_w([0-9.]+)", key)
            if match and isinstance(value, int | float) and math.isfinite(value):
                steps, values = losses.setdefault(float(match[1]), ([], []))
                steps.append(int(row.get("step", len(steps))))
                values.append(float(value))
    return losses
