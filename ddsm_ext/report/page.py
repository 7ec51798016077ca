"""Builds report.html: one self-contained page from the files of a run folder."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import ChainableUndefined, Environment, FileSystemLoader, TemplateError
from matplotlib.figure import Figure

from ddsm_ext.io.files import read_json, read_jsonl, to_json, write_atomic
from ddsm_ext.report import figures
from ddsm_ext.report.comparison import Line, beside_full, lines_of
from ddsm_ext.report.headline import headline
from ddsm_ext.report.scores import number, score_table
from ddsm_ext.search.cost import share_of_paper
from ddsm_ext.settings import Refusal

_MAX_PICTURE_BYTES = 8 << 20
# What the page is made of: name -> file in the run folder. metrics["rows"] has one entry a score:
# label and kind (of `run.strategies.KINDS`), widths and cuts, seeds, images, frechet,
# macs_per_image, ms_per_image, and of `comparison.FURTHER` what was scored too.
_FILES = {
    "config": "config.json",
    "env": "env.json",
    "log": "log.jsonl",
    "archive": "search/archive.jsonl",
    "front": "search/front.json",
    "history": "search/history.json",
    "sensitivity": "search/sensitivity.json",
    "steps": "search/steps.json",
    "costs": "search/costs.json",
    "metrics": "metrics.json",
    "samples": "samples/compare/index.json",
    "commands": "commands.jsonl",
}


def build_report(run: str | Path) -> Path:
    """Write report.html into a run folder.

    Args:
        run: the run folder; what it lacks is left out of the page with a sentence.

    Returns:
        path of the page.

    Raises:
        FileNotFoundError: there is no such run folder.
        ValueError: a file in it cannot be read, or is not of the form that ddsm writes.
    """
    path = Path(run)
    files = _load_run(path)
    try:
        page = _render(path, files)
    except (ArithmeticError, AttributeError, LookupError, TemplateError, TypeError,
            ValueError) as error:  # fmt: skip
        raise Refusal(
            f"{run}: a file has another form ({type(error).__name__}: {error}); "
            "need the files that ddsm writes"
        ) from error
    return write_atomic(path / "report.html", page.encode("utf-8"))


def _render(path: Path, files: dict[str, Any]) -> str:
    """Return the page's HTML for the files of a run."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=ChainableUndefined,  # what a file lacks shows as nothing
    )
    lines = lines_of(files["metrics"].get("rows", []))
    scored = _last_scores(files["archive"], files["front"])
    head, rows = score_table(lines)
    environment.filters.update(svg_uri=figures.to_svg_uri, number=number)
    return environment.get_template("report.html.j2").render(
        run=files,
        name=path.resolve().name,
        source=Path(files["config"].get("data", {}).get("source", "images")).name,
        headline=headline(files["metrics"], files["front"].get("cost_unit", "macs")),
        share_of_paper=share_of_paper,
        lines=lines,
        score_head=head,
        score_rows=rows,
        samples=list(_samples(path, files["samples"])),
        evaluations=_evaluations(files["archive"]),
        scored=scored,
        trained=_trained(files["config"]),
        config_text=to_json(files["config"], indent=2),
        **_drawn(files, lines, scored),
    )


def _load_run(run: Path) -> dict[str, Any]:
    """Read the files of a run folder, by name; those that are not there yet are empty.

    Raises:
        FileNotFoundError: there is no such folder, or it has no config.json.
        ValueError: a file in it is not valid JSON, or no object.
    """
    if not run.is_dir():
        raise FileNotFoundError(f"{run}: is no folder; need a run folder such as runs/00000-digits")
    if not (run / "config.json").exists():
        raise FileNotFoundError(f"{run}: has no config.json; need a run folder made by ddsm")
    return {
        name: read_jsonl(run / file, missing_ok=True)
        if file.endswith(".jsonl")
        else _object(run / file)
        for name, file in _FILES.items()
    }


def _object(path: Path) -> dict[str, Any]:
    value = read_json(path) if path.exists() else {}
    if not isinstance(value, dict):
        raise Refusal(f"{path}: holds a {type(value).__name__}; need an object")
    return value


def _trained(config: dict[str, Any]) -> str:
    """Return in a sentence what a step of the run's training trains."""
    train, tune = config.get("train", {}), config.get("tune", {})
    widths = train.get("widths") or config.get("model", {}).get("widths", [])
    middle = min(train.get("middle_widths", 1), len(widths) - 2)
    if middle < 1:
        sandwich = "the widest and the narrowest width"
    else:
        between = "a random middle width" if middle == 1 else f"{middle} random middle widths"
        sandwich = f"the widest, the narrowest and {between}"
    if not tune.get("widths"):
        return f"The sandwich rule trains {sandwich} each step."
    routed = (
        "A step trains one width of the strategy that the run is tuned for, on the noise levels "
        "that it serves"
    )
    if not (share := tune["sandwich_share"]):
        return f"{routed}."
    return f"{routed}; {100 * share:.3g} % of the steps train {sandwich}, by the sandwich rule."


def _losses_per_width(log: list[dict[str, Any]]) -> dict[float, tuple[list[int], list[float]]]:
    """Return width -> (steps, losses) from the rows of log.jsonl (`loss_w0.5` is width 0.5's)."""
    losses: dict[float, tuple[list[int], list[float]]] = {}
    for row in log:
        for key, loss in row.items():
            if key.startswith("loss_w") and loss is not None:  # None: it was not finite
                steps, values = losses.setdefault(float(key.removeprefix("loss_w")), ([], []))
                steps.append(row["step"])
                values.append(loss)
    return losses


def _samples(run: Path, index: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield label and PNG `data:` URI of each row of samples that lies in the run folder."""
    for entry in index.get("rows", []):
        picture = run / "samples" / "compare" / Path(str(entry.get("file", ""))).name
        if picture.is_file() and picture.stat().st_size <= _MAX_PICTURE_BYTES:
            data = base64.b64encode(picture.read_bytes()).decode("ascii")
            yield entry.get("label", picture.stem), f"data:image/png;base64,{data}"


def _drawn(
    files: dict[str, Any], lines: list[Line], scored: list[tuple[int, float, float]]
) -> dict[str, Figure]:
    """Return the figures by section; those whose file is not there yet are left out."""
    result = {}
    if compared := [found for _, found in beside_full(lines) if found]:
        result["quality"] = figures.quality_figure(
            [
                (
                    _with_share(found.line, found.other),
                    found.line.kind,
                    found.line.mean,
                    found.interval.mean,
                    found.interval.half_width,
                )
                for found in compared
            ],
            "Fréchet distance above the full width's, same seeds (lower is better)",
        )
    if steps := files["steps"]:
        result["strategy"] = figures.strategy_figure(
            steps["timesteps"], steps["log_snr"], steps["widths"]
        )
    if files["sensitivity"]:
        result["sensitivity"] = _sensitivity(files["sensitivity"], steps)
    if files["front"]:
        result["pareto"] = _pareto(files["front"], scored)
    generations = files["history"].get("generations", [])
    if len(generations) > 1:
        # a search of an earlier version counted no evaluations
        counted = "network_evaluations" in generations[0]
        result["hypervolume"] = figures.hypervolume_figure(
            [row["network_evaluations" if counted else "generation"] for row in generations],
            [row["hypervolume"] for row in generations],
            "network evaluations" if counted else "generation",
        )
    if rows := files["costs"].get("rows"):
        result["costs"] = figures.cost_figure(
            [row["width"] for row in rows],
            [row["macs"] for row in rows],
            [row["ms"] for row in rows],
        )
    if losses := _losses_per_width(files["log"]):
        result["training"] = figures.loss_figure(losses)
    return result


def _sensitivity(harm: dict[str, Any], steps: dict[str, Any]) -> Figure:
    """Errors of the widths; at the sampler's steps as they count there, where that is known."""
    levels, by_width = harm["log_snrs"], {float(w): e for w, e in harm["errors"].items()}
    label = "error against the full width"
    if gains := steps.get("gains"):
        at, weights = steps["log_snr"], np.square(gains)
        by_width = {w: np.interp(at, levels, e) * weights for w, e in by_width.items()}
        levels, label = at, "error that the next image takes up"
    return figures.sensitivity_figure(levels, by_width, label)


def _with_share(line: Line, full: Line) -> str:
    """A line's label with its share of the full width's MACs."""
    if line.kind == "full" or not line.macs or not full.macs:
        return line.label
    return f"{line.label} ({100 * line.macs / full.macs:.0f} % MACs)"


def _evaluations(archive: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the archive's rows that have a cost and a quality."""
    wanted = ("cost", "quality")
    return [row for row in archive if all(isinstance(row.get(k), int | float) for k in wanted)]


def _last_scores(
    archive: list[dict[str, Any]], front: dict[str, Any]
) -> list[tuple[int, float, float]]:
    """Return (generation that first scored it, cost, quality) of each strategy of a search.

    Scores of different samples compare, as in the search's race, by what each is above the full
    width's on the same samples: the quality is that of the last score, on top of the full width's
    in the front.
    """
    if not front:
        return []
    full, rows = front["constants"][0], _evaluations(archive)
    base = {
        str(row.get("samples")): row["quality"]
        for row in rows
        if "samples" in row and row["genome"]["widths"] == [full["width"]]
    }
    last: dict[str, tuple[int, float, float]] = {}
    for row in rows:
        above = row["quality"] - base.get(str(row.get("samples")), full["quality"])
        first, *_ = last.get(str(row["genome"]), (row["generation"],))
        last[str(row["genome"])] = first, row["cost"], full["quality"] + above
    return [*last.values()]


def _pareto(front: dict[str, Any], scored: list[tuple[int, float, float]]) -> Figure:
    unit, scale = ("ms", 1.0) if front["cost_unit"] == "ms" else ("million MACs", 1e-6)

    def place(point: dict[str, Any]) -> tuple[float, float]:
        return scale * point["cost"], point["quality"]

    return figures.pareto_figure(
        [(generation, scale * cost, quality) for generation, cost, quality in scored],
        [place(point) for point in front["points"]],
        {point["width"]: place(point) for point in front["constants"]},
        place(front["chosen"]) if front["chosen"] else None,
        f"cost of an image, {unit}",
        f"{front['quality_name']} (lower is better)",
    )
