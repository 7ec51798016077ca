"""Reads the files of a run folder for the report; a file that is not there reads as empty."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddsm_ext.io.files import read_json, read_jsonl
from ddsm_ext.settings import Refusal


@dataclass(frozen=True)
class RunFiles:
    """What a run folder holds, as parsed JSON.

    `metrics["rows"]` has one entry a score: label, kind ("full", "strategy" or "width"), width,
    seeds, images, frechet, kid, macs_per_image, ms_per_image.
    """

    path: Path
    config: dict[str, Any]
    env: dict[str, Any]
    log: list[dict[str, Any]]
    archive: list[dict[str, Any]]
    front: dict[str, Any]
    history: dict[str, Any]
    sensitivity: dict[str, Any]
    steps: dict[str, Any]
    costs: dict[str, Any]
    metrics: dict[str, Any]
    samples: dict[str, Any]
    commands: list[dict[str, Any]]


def load_run(run: str | Path) -> RunFiles:
    """Read what the report needs from a run folder.

    Args:
        run: the run folder.

    Raises:
        FileNotFoundError: there is no such folder, or it has no config.json.
        ValueError: a file in it is not valid JSON, or no object.
    """
    path = Path(run)
    if not path.is_dir():
        raise FileNotFoundError(
            f"{path}: is no folder; need a run folder such as runs/00000-digits"
        )
    if not (path / "config.json").exists():
        raise FileNotFoundError(f"{path}: has no config.json; need a run folder made by ddsm")
    return RunFiles(
        path=path,
        config=_object(path / "config.json"),
        env=_object(path / "env.json"),
        log=read_jsonl(path / "log.jsonl", missing_ok=True),
        archive=read_jsonl(path / "search" / "archive.jsonl", missing_ok=True),
        front=_object(path / "search" / "front.json"),
        history=_object(path / "search" / "history.json"),
        sensitivity=_object(path / "search" / "sensitivity.json"),
        steps=_object(path / "search" / "steps.json"),
        costs=_object(path / "search" / "costs.json"),
        metrics=_object(path / "metrics.json"),
        samples=_object(path / "samples" / "compare" / "index.json"),
        commands=read_jsonl(path / "commands.jsonl", missing_ok=True),
    )


def _object(path: Path) -> dict[str, Any]:
    value = read_json(path) if path.exists() else {}
    if not isinstance(value, dict):
        raise Refusal(f"{path}: holds a {type(value).__name__}; need an object")
    return value


def losses_per_width(log: list[dict[str, Any]]) -> dict[float, tuple[list[int], list[float]]]:
    """Return width -> (steps, losses) from the rows of log.jsonl (`loss_w0.5` is width 0.5's)."""
    losses: dict[float, tuple[list[int], list[float]]] = {}
    for row in log:
        for key, loss in row.items():
            if key.startswith("loss_w") and loss is not None:  # None: it was not finite
                steps, values = losses.setdefault(float(key.removeprefix("loss_w")), ([], []))
                steps.append(row["step"])
                values.append(loss)
    return losses
