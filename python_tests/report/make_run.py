"""Writes small run folders with realistic content, for the report's tests."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import numpy as np
from PIL import Image

WIDTHS = (1.0, 0.75, 0.5, 0.25)
MACS = {1.0: 6_100_000, 0.75: 3_500_000, 0.5: 1_600_000, 0.25: 430_000}
FULL_COST = MACS[1.0] * 50
MS = {1.0: 0.21, 0.75: 0.14, 0.5: 0.081, 0.25: 0.044}


def _json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def _jsonl(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def make_run(root: Path, name: str = "00000-quickstart", parts: str = "all") -> Path:
    """Make a run folder.

    Args:
        root: folder to make it in.
        name: its name.
        parts: "all", "trained" (no search, no scores) or "new" (configuration only).
    """
    run = root / name
    config = {
        "model": {"image_size": 8, "image_channels": 1, "ch": 32, "widths": list(WIDTHS)},
        "data": {"source": "digits"},
        "train": {"steps": 2000},
    }
    _json(run / "config.json", config)
    if parts == "new":
        return run
    _json(
        run / "env.json",
        {
            "machine": "test-machine",
            "cpu": "Some CPU",
            "cores": 2,
            "python": "3.11.2",
            "versions": {"torch": "2.13.0"},
        },
    )
    _jsonl(run / "commands.jsonl", [{"command": "ddsm quickstart"}])
    _write_log(run)
    if parts == "all":
        _write_search(run)
        _write_metrics(run)
        _write_samples(run)
    return run


def _write_log(run: Path) -> None:
    rng = np.random.default_rng(0)
    rows = []
    for step in range(10, 2001, 10):
        row = {"step": step, "loss": 1.0, "lr": 1e-3}
        for i, width in enumerate(WIDTHS):
            if width in (1.0, 0.25) or step % 20 == 10 * (i % 2):
                noise = math.exp(0.15 * rng.standard_normal())
                row[f"loss_w{width}"] = (0.1 + 0.02 * i + 0.9 * math.exp(-step / 200)) * noise
        rows.append(row)
    _jsonl(run / "log.jsonl", rows)


def _point(widths: list[float], cost: float, quality: float, generation: int) -> dict:
    """A point of front.json."""
    cuts = [float(i) for i in range(len(widths) - 1)]
    return {
        "cost": cost,
        "cost_relative": cost / FULL_COST,
        "quality": quality,
        "standard_error": 0.01,
        "samples": 256,
        "loss": quality - 0.5,
        "loss_half_width": 0.02,
        "proxy": 0.001,
        "generation": generation,
        "rescored": False,
        "strategy": {"widths": widths, "cuts": cuts, "origin": {}},
    }


def _write_search(run: Path) -> None:
    rng = np.random.default_rng(1)
    log_snrs = np.linspace(-8, 8, 21).tolist()
    errors = {
        str(w): [1e-6 if w == 1 else (1 - w) * 0.02 * math.exp(0.25 * s) + 1e-5 for s in log_snrs]
        for w in WIDTHS
    }
    _json(
        run / "search/sensitivity.json",
        {"version": 1, "images": 256, "log_snrs": log_snrs, "errors": errors, "conditions": {}},
    )
    full = {"genome": {"boundaries": [], "widths": [1.0]}, "samples": [0, 256]}
    archive = [{**full, "generation": 0, "stage": "race", "cost": FULL_COST, "quality": 0.5}]
    history = []
    for generation in range(10):
        for number in range(24):
            cost = rng.uniform(0.1, 1.0)
            quality = 0.5 + 0.6 * (1 - cost) ** 2 + rng.exponential(0.8 / (generation + 1))
            genome = {"boundaries": [generation, 24 + number], "widths": [0.25, 0.5, 0.75]}
            archive.append(
                {
                    "genome": genome,
                    "samples": [0, 256],
                    "generation": generation,
                    "stage": "evolution" if generation else "race",
                    "cost": cost * 3e8,
                    "quality": quality,
                }
            )
        history.append(
            {"generation": generation, "hypervolume": 1 - 0.5 * math.exp(-generation / 2)}
        )
    _jsonl(run / "search/archive.jsonl", archive)
    _json(run / "search/history.json", {"generations": history})
    best, points = math.inf, []
    for row in sorted(archive, key=lambda r: r["cost"]):
        if row["quality"] < best:
            best = row["quality"]
            points.append(_point(row["genome"]["widths"], row["cost"], best, row["generation"]))
    constants = [{"width": w, **_point([w], MACS[w] * 50, 0.5 + (1 - w) ** 2, 0)} for w in WIDTHS]
    _json(
        run / "search/front.json",
        {
            "version": 1,
            "cost_unit": "macs",
            "quality_name": "Fréchet distance",
            "full_cost": FULL_COST,
            "full_quality": 0.5,
            "network_evaluations": 0,
            "chosen": points[len(points) // 2],
            "constants": constants,
            "points": points,
        },
    )
    timesteps = list(range(999, -1, -20))
    _json(
        run / "search/steps.json",
        {
            "timesteps": timesteps,
            "log_snr": [10 - 0.019 * t for t in timesteps],
            "widths": [
                0.25 if t > 850 else 0.5 if t > 400 else 0.75 if t > 150 else 1.0 for t in timesteps
            ],
        },
    )
    _json(
        run / "search/costs.json",
        {
            "batch_size": 256,
            "threads": 2,
            "rows": [{"width": w, "macs": MACS[w], "ms": MS[w]} for w in WIDTHS],
        },
    )


def _write_metrics(run: Path) -> None:
    def row(label: str, kind: str, seeds: str, frechet: float, share: float) -> dict:
        return {
            "label": label,
            "kind": kind,
            "seeds": seeds,
            "images": 1024,
            "frechet": frechet,
            "kid": frechet / 900,
            "macs_per_image": 3.05e8 * share,
            "ms_per_image": 10.5 * share,
        }

    rows = [
        row("full width", "full", f"{k * 1024}-{k * 1024 + 1023}", f, 1.0)
        for k, f in enumerate((4.1, 4.5, 4.3))
    ]
    others = {
        ("strategy", "strategy"): ((4.38, 4.4, 4.36), 0.5),
        ("width 0.75", "width"): ((4.6, 4.9, 4.7), 0.56),
        ("width 0.5", "width"): ((6.2, 6.3, 6.1), 0.26),
        ("reverse", "reverse"): ((7.2, 7.5, 7.1), 0.5),
    }
    for (label, kind), (scores, share) in others.items():
        rows += [
            row(label, kind, f"{k * 1024}-{k * 1024 + 1023}", f, share)
            for k, f in enumerate(scores)
        ]
    _json(
        run / "metrics.json",
        {
            "features": {"name": "digits-classifier", "dimension": 64, "held_out_accuracy": 0.982},
            "reference": {"name": "digits", "images": 1797},
            "sampler": {"kind": "ddim", "steps": 50, "eta": 0.0},
            "rows": rows,
        },
    )


def _write_samples(run: Path) -> None:
    from sklearn.datasets import load_digits

    digits = (load_digits().images * 255 / 16).astype(np.uint8)
    rows = []
    for i, label in enumerate(["real images", "width 1", "width 0.5", "strategy"]):
        strip = np.concatenate(
            list(np.pad(digits[16 * i : 16 * i + 16], ((0, 0), (1, 1), (1, 1)))), 1
        )
        buffer = io.BytesIO()
        Image.fromarray(strip).save(buffer, format="PNG")
        path = run / "samples/compare" / f"row-{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(buffer.getvalue())
        rows.append({"label": label, "file": path.name})
    _json(run / "samples/compare/index.json", {"seeds": "0-15", "rows": rows})
