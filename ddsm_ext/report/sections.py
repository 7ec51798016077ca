"""The sections of the report: each takes the run's files and returns HTML."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

from ddsm_ext.report import figures, style
from ddsm_ext.report.headline import headline
from ddsm_ext.report.run_files import RunFiles, losses_per_width

MAX_PICTURE_BYTES = 8 << 20


def _missing(what: str, command: str) -> str:
    return style.paragraph(f"{what} {command}", "none")


def samples(files: RunFiles) -> str:
    """Rows of samples from the same noise: real images, each width, the strategy."""
    rows = []
    for entry in files.samples.get("rows", []):
        picture = files.path / "samples" / "compare" / Path(str(entry.get("file", ""))).name
        if picture.is_file() and picture.stat().st_size <= MAX_PICTURE_BYTES:
            data = base64.b64encode(picture.read_bytes()).decode("ascii")
            label = str(entry.get("label", picture.stem))
            rows.append(
                f"<tr><th>{escape(label)}</th><td>"
                f'<img src="data:image/png;base64,{data}" '
                f'alt="{escape(f"row of images: {label}", quote=True)}"></td></tr>'
            )
    if not rows:
        return _missing("No samples yet:", "ddsm sample makes them.")
    seeds = files.samples.get("seeds", "")
    text = (
        f"Every column starts from the same noise (seeds {seeds}), so differences down a column "
        "are the width's doing; the real images have no such pairing."
    )
    return style.paragraph(text) + f'<div class="samples"><table>{"".join(rows)}</table></div>'


def quality(files: RunFiles) -> str:
    """Scores of the full width's seeds, the strategy and the constant widths."""
    rows = files.metrics.get("rows", [])
    if not rows:
        return _missing("No scores yet:", "ddsm eval makes them.")
    full = [float(r["frechet"]) for r in rows if r.get("kind") == "full"]
    others = [(str(r["label"]), float(r["frechet"])) for r in rows if r.get("kind") != "full"]
    figure = figures.quality_figure(full, others, "Fréchet distance (lower is better)")
    alt = "Fréchet distance of each scored sampler; " + "; ".join(
        f"{n}: {s:.3g}" for n, s in others
    )
    html = style.image(
        figures.to_svg_uri(figure),
        alt,
        "Each dot of the full width is another range of seeds; the band is their spread, the "
        "least difference that means anything.",
    )
    head = ("sampler", "seeds", "images", "Fréchet", "KID", "MMACs/image", "ms/image")
    cells = [
        (
            str(r.get("label", "")),
            str(r.get("seeds", "")),
            str(r.get("images", "")),
            _number(r.get("frechet"), 1.0, 4),
            _number(r.get("kid"), 1.0, 3),
            _number(r.get("macs_per_image"), 1e-6, 4),
            _number(r.get("ms_per_image"), 1.0, 3),
        )
        for r in rows
    ]
    return html + style.data_table(head, cells)


def _number(value: Any, scale: float, digits: int) -> str:
    if not isinstance(value, int | float):
        return "-"
    scaled = value * scale
    return f"{scaled:,.0f}" if abs(scaled) >= 10**digits else f"{scaled:.{digits}g}"


def strategy(files: RunFiles) -> str:
    """Chosen width of every sampling step."""
    steps = files.steps
    if not steps.get("widths"):
        return _missing("No strategy yet:", "ddsm search chooses one.")
    figure = figures.strategy_figure(steps["timesteps"], steps["log_snr"], steps["widths"])
    counts = {w: steps["widths"].count(w) for w in sorted(set(steps["widths"]), reverse=True)}
    used = ", ".join(f"{n} at width {w:g}" for w, n in counts.items())
    text = f"Of {len(steps['widths'])} sampling steps: {used}."
    caption = (
        "One dot is one sampling step. The strategy is stored over log-SNR, so it serves "
        "any sampler and any number of steps."
    )
    return style.paragraph(text) + style.image(figures.to_svg_uri(figure), text, caption)


def sensitivity(files: RunFiles) -> str:
    """Harm of each width at each noise level."""
    data = files.sensitivity
    if not data.get("errors"):
        return _missing("No sensitivity yet:", "ddsm search measures it first.")
    by_width = {float(w): values for w, values in data["errors"].items()}
    figure = figures.sensitivity_figure(data["log_snrs"], by_width)
    caption = (
        "Error of a narrow width's prediction against the full width's, on the same noised "
        "images. Where the lines are low, the step does not need the whole network."
    )
    return style.image(
        figures.to_svg_uri(figure), "error against the full width, by noise level", caption
    )


def pareto(files: RunFiles) -> str:
    """Pareto front by generation with the chosen point, and the hypervolume."""
    points = files.front.get("points", [])
    if not points:
        return _missing("No Pareto front yet:", "ddsm search finds one.")
    unit, scale = _cost_unit(files)
    evaluations = [
        (int(row.get("generation", 0)), scale * row["cost"], row["quality"])
        for row in files.archive
        if _scored(row)
    ]
    chosen = files.front.get("chosen")
    figure = figures.pareto_figure(
        evaluations,
        [(scale * p["cost"], p["quality"]) for p in points],
        {
            float(p["width"]): (scale * p["cost"], p["quality"])
            for p in files.front.get("constants", [])
        },
        (scale * chosen["cost"], chosen["quality"]) if chosen else None,
        f"cost of an image, {unit}",
        str(files.front.get("quality_name", "quality loss")) + " (lower is better)",
    )
    text = f"{len(evaluations)} strategies were scored; {len(points)} are on the front."
    html = style.image(figures.to_svg_uri(figure), text, text)
    rows = [r for r in files.history if isinstance(r.get("hypervolume"), int | float)]
    if len(rows) > 1:
        volumes = figures.hypervolume_figure(
            [int(r["generation"]) for r in rows], [float(r["hypervolume"]) for r in rows]
        )
        caption = "The hypervolume under the front grows while the search still finds better ones."
        html += style.image(figures.to_svg_uri(volumes), "hypervolume by generation", caption)
    return html


def _scored(row: dict[str, Any]) -> bool:
    return isinstance(row.get("cost"), int | float) and isinstance(row.get("quality"), int | float)


def _cost_unit(files: RunFiles) -> tuple[str, float]:
    if files.front.get("cost_unit") == "ms":
        return "ms", 1.0
    return "million MACs", 1e-6


def costs(files: RunFiles) -> str:
    """MACs and measured milliseconds of a step at each width."""
    rows = files.costs.get("rows", [])
    if not rows:
        return _missing("No costs measured yet:", "ddsm search measures them.")
    ms = [r["ms"] for r in rows if isinstance(r.get("ms"), int | float)]
    ms = ms if len(ms) == len(rows) else []
    figure = figures.cost_figure([r["width"] for r in rows], [r["macs"] for r in rows], ms)
    batch = files.costs.get("batch_size")
    caption = "One step of one image"
    caption += f", in batches of {batch}" if batch and ms else ""
    caption += f", {files.costs['threads']} threads" if ms and files.costs.get("threads") else ""
    html = style.image(
        figures.to_svg_uri(figure), "MACs and time of a step at each width", caption + "."
    )
    figure_line = headline(files.metrics)
    if figure_line is not None and figure_line.realised_saving is not None:
        html += style.paragraph(
            f"The strategy saves {100 * (figure_line.macs_saved or 0):.0f} % of the MACs and "
            f"{100 * (figure_line.time_saved or 0):.0f} % of the time: a realised saving of "
            f"{figure_line.realised_saving:.2f} (time saved over MACs saved)."
        )
    return html


def training(files: RunFiles) -> str:
    """Loss per width over the training steps."""
    losses = losses_per_width(files.log)
    if not losses:
        return _missing("No training log yet:", "ddsm train writes it.")
    caption = (
        "The sandwich rule trains the widest, the narrowest and a random middle width each step."
    )
    uri = figures.to_svg_uri(figures.loss_figure(losses))
    return style.image(uri, "training loss of each width over the step", caption)


def measured(files: RunFiles) -> str:
    """How the figures were measured."""
    metrics, env = files.metrics, files.env
    features = metrics.get("features", {})
    facts: list[tuple[str, str]] = []
    if features:
        text = f"{features.get('name', '')}, {features.get('dimension', '?')} values an image"
        if isinstance(features.get("held_out_accuracy"), int | float):
            text += f"; classifies {100 * features['held_out_accuracy']:.1f} % of held-out images"
        facts.append(("features", text))
    reference = metrics.get("reference", {})
    if reference:
        facts.append(("real images", f"{reference.get('images')} of {reference.get('name')}"))
    sampler = metrics.get("sampler", {})
    if sampler:
        facts.append(("sampler", ", ".join(f"{k} {v}" for k, v in sampler.items())))
    for row in metrics.get("rows", []):
        facts.append(
            (f"seeds: {row.get('label')}", f"{row.get('seeds')} ({row.get('images')} images)")
        )
    for key in ("machine", "cpu", "cores", "system", "python"):
        if env.get(key):
            facts.append((key, str(env[key])))
    versions = env.get("versions", {})
    if isinstance(versions, dict) and versions:
        facts.append(("versions", ", ".join(f"{k} {v}" for k, v in versions.items())))
    if not facts:
        return _missing("Nothing has been measured yet:", "ddsm eval does it.")
    note = (
        "A Fréchet distance shrinks with the number of images and depends on the features: "
        "compare only scores with the same of both. It is not the FID of published tables."
        if metrics.get("rows")
        else ""
    )
    return style.facts_table(facts) + (style.paragraph(note, "muted") if note else "")


def configuration(files: RunFiles) -> str:
    """The commands that made the run, and its configuration."""
    commands = [str(row.get("command", "")) for row in files.commands]
    html = ""
    if commands:
        html += f"<pre>{escape(chr(10).join(commands))}</pre>"
    text = json.dumps(files.config, indent=2, ensure_ascii=False)
    return html + f"<details><summary>config.json</summary><pre>{escape(text)}</pre></details>"


SECTIONS: list[tuple[str, str, Callable[[RunFiles], str]]] = [
    ("samples", "Samples", samples),
    ("quality", "Quality", quality),
    ("strategy", "Chosen width of each step", strategy),
    ("sensitivity", "Which steps need the full width", sensitivity),
    ("pareto", "Search", pareto),
    ("costs", "Cost of each width", costs),
    ("training", "Training", training),
    ("measured", "How this was measured", measured),
    ("configuration", "Commands and configuration", configuration),
]
