"""What the report's template shows beside the run's files: pictures, figures, numbers."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ddsm_ext.report import figures
from ddsm_ext.report.run_files import RunFiles, losses_per_width

MAX_PICTURE_BYTES = 8 << 20


def samples(files: RunFiles) -> Iterator[tuple[str, str]]:
    """Yield label and PNG `data:` URI of each row of samples that lies in the run folder."""
    for entry in files.samples.get("rows", []):
        picture = files.path / "samples" / "compare" / Path(str(entry.get("file", ""))).name
        if picture.is_file() and picture.stat().st_size <= MAX_PICTURE_BYTES:
            data = base64.b64encode(picture.read_bytes()).decode("ascii")
            yield entry.get("label", picture.stem), f"data:image/png;base64,{data}"


def drawn(files: RunFiles) -> dict[str, Figure]:
    """Return the figures by section; those whose file is not there yet are left out."""
    result = {}
    if rows := files.metrics.get("rows"):
        full = [float(r["frechet"]) for r in rows if r.get("kind") == "full"]
        others = [(str(r["label"]), float(r["frechet"])) for r in rows if r.get("kind") != "full"]
        label = "Fréchet distance (lower is better)"
        result["quality"] = figures.quality_figure(full, others, label)
    if steps := files.steps:
        result["strategy"] = figures.strategy_figure(
            steps["timesteps"], steps["log_snr"], steps["widths"]
        )
    if harm := files.sensitivity:
        by_width = {float(width): errors for width, errors in harm["errors"].items()}
        result["sensitivity"] = figures.sensitivity_figure(harm["log_snrs"], by_width)
    if files.front:
        result["pareto"] = _pareto(files.front, evaluations(files))
    generations = files.history.get("generations", [])
    if len(generations) > 1:
        result["hypervolume"] = figures.hypervolume_figure(
            [row["generation"] for row in generations],
            [row["hypervolume"] for row in generations],
        )
    if rows := files.costs.get("rows"):
        result["costs"] = figures.cost_figure(
            [row["width"] for row in rows],
            [row["macs"] for row in rows],
            [row["ms"] for row in rows],
        )
    if losses := losses_per_width(files.log):
        result["training"] = figures.loss_figure(losses)
    return result


def evaluations(files: RunFiles) -> list[dict[str, Any]]:
    """Return the archive's rows that have a cost and a quality."""
    wanted = ("cost", "quality")
    return [
        row for row in files.archive if all(isinstance(row.get(k), int | float) for k in wanted)
    ]


def _pareto(front: dict[str, Any], scored: list[dict[str, Any]]) -> Figure:
    unit, scale = ("ms", 1.0) if front["cost_unit"] == "ms" else ("million MACs", 1e-6)

    def place(point: dict[str, Any]) -> tuple[float, float]:
        return scale * point["cost"], point["quality"]

    return figures.pareto_figure(
        [(row["generation"], *place(row)) for row in scored],
        [place(point) for point in front["points"]],
        {point["width"]: place(point) for point in front["constants"]},
        place(front["chosen"]) if front["chosen"] else None,
        f"cost of an image, {unit}",
        f"{front['quality_name']} (lower is better)",
    )


def number(value: Any, digits: int, scale: float = 1.0) -> str:
    """Return `scale * value` as text of about `digits` digits; a dash where it is no number."""
    if not isinstance(value, int | float):
        return "-"
    scaled = value * scale
    return f"{scaled:,.0f}" if abs(scaled) >= 10**digits else f"{scaled:.{digits}g}"
