"""What each section of the page shows of a run's files, as values for its part of the template."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ddsm_ext.report import figures
from ddsm_ext.report.comparison import Line, beside_full, lines_of
from ddsm_ext.report.files import Config, RunFiles
from ddsm_ext.report.headline import Headline, headline
from ddsm_ext.report.records import DecodingCost, LogRow
from ddsm_ext.report.scores import score_table
from ddsm_ext.search.cost import share_of_paper
from ddsm_ext.search.front import Front, FrontPoint
from ddsm_ext.search.history import Evaluation, GenomeRow

Scored = list[tuple[int, float, float]]  # generation that first scored it, cost, quality


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Args:
        values: files -> what its macro in sections.html.j2, named as it, is called with.
        files: those it reads, by their names in `RunFiles`.
        title: heading; None for what stands above the sections.
    """

    values: Callable[[RunFiles], dict[str, Any]]
    files: tuple[str, ...]
    title: str | None = None


def _intro(run: RunFiles) -> dict[str, Any]:
    source = Path(run.config.data.source).name if run.config else ""
    searched = run.front is not None or "front" in run.faults
    return {"config": run.config, "source": source, "searched": searched}


def _headline_of(run: RunFiles, decoding: DecodingCost | None = None) -> Headline | None:
    unit = run.front.cost_unit if run.front else "macs"
    return headline(run.metrics.to_dict(), unit, decoding) if run.metrics else None


def _cards(run: RunFiles) -> dict[str, Any]:
    return {"headline": _headline_of(run)}


def _samples(run: RunFiles) -> dict[str, Any]:
    seeds, rows = run.samples
    png = "data:image/png;base64,"
    uris = [(label, png + base64.b64encode(data).decode("ascii")) for label, data in rows]
    return {"seeds": seeds, "rows": uris}


def _lines(run: RunFiles) -> list[Line]:
    return lines_of(run.metrics.to_dict()["rows"]) if run.metrics else []


def _quality(run: RunFiles) -> dict[str, Any]:
    lines = _lines(run)
    compared = [found for _, found in beside_full(lines) if found]
    rows = [
        (
            _with_share(found.line, found.other),
            found.line.kind,
            found.line.mean,
            found.interval.mean,
            found.interval.half_width,
        )
        for found in compared
    ]
    label = "Fréchet distance above the full width's, same seeds (lower is better)"
    figure = figures.quality_figure(rows, label) if rows else None
    return {"lines": lines, "table": score_table(lines), "figure": figure}


def _with_share(line: Line, full: Line) -> str:
    """A line's label with its share of the full width's MACs."""
    if line.kind == "full" or not line.macs or not full.macs:
        return line.label
    return f"{line.label} ({100 * line.macs / full.macs:.0f} % MACs)"


def _strategy(run: RunFiles) -> dict[str, Any]:
    steps = run.steps
    if steps is None:
        return {"figure": None}
    figure = figures.strategy_figure(steps.timesteps, steps.log_snr, steps.widths)
    return {"figure": figure, "widths": steps.widths}


def _sensitivity(run: RunFiles) -> dict[str, Any]:
    """Errors of the widths; at the sampler's steps as they count there, where that is known."""
    harm, steps = run.sensitivity, run.steps
    if harm is None:
        return {"figure": None}
    gains = steps.gains if steps else ()
    if steps and gains:
        levels, errors = steps.log_snr, harm.for_steps(steps.log_snr, gains=gains)
        label = "error that the next image takes up"
    else:
        levels, errors, label = harm.log_snrs, harm.errors, "error against the full width"
    by_width = dict(zip(harm.widths, errors.T, strict=True))
    return {"figure": figures.sensitivity_figure(levels, by_width, label), "weighted": bool(gains)}


def _pareto(run: RunFiles) -> dict[str, Any]:
    front = run.front
    scored = _last_scores(run.evaluations, front) if front else []
    generations = run.history.generations if run.history else ()
    hypervolume = None
    if len(generations) > 1:
        # a search of an earlier version counted no evaluations
        work = [row.network_evaluations for row in generations]
        counted = [done for done in work if done is not None]
        known = len(counted) == len(work)
        hypervolume = figures.hypervolume_figure(
            counted if known else [row.generation for row in generations],
            [row.hypervolume for row in generations],
            "network evaluations" if known else "generation",
        )
    return {
        "front": front,
        "figure": _front_figure(front, scored) if front else None,
        "scores": sum(row.quality is not None for row in run.evaluations),
        "scored": len(scored),
        "stages": {row.stage for row in run.evaluations},
        "share_of_paper": share_of_paper,
        "hypervolume": hypervolume,
    }


def _last_scores(evaluations: Sequence[Evaluation], front: Front) -> Scored:
    """Return the last score of each strategy of a search.

    Scores of different samples compare, as in the search's race, by what each is above the full
    width's on the same samples: the quality is that of the last score, on top of the full width's
    in the front.
    """
    widest, full = front.constants[0].strategy.widths, front.full_quality
    scores = [(row, row.quality) for row in evaluations if row.quality is not None]
    base: dict[tuple[int, int] | None, float] = {
        row.samples: quality
        for row, quality in scores
        if row.samples and row.genome.widths == widest
    }
    last: dict[GenomeRow, tuple[int, float, float]] = {}
    for row, quality in scores:
        first, *_ = last.get(row.genome, (row.generation,))
        last[row.genome] = first, row.cost, full + quality - base.get(row.samples, full)
    return [*last.values()]


def _front_figure(front: Front, scored: Scored) -> Figure:
    unit, scale = ("ms", 1.0) if front.cost_unit == "ms" else ("million MACs", 1e-6)

    def place(point: FrontPoint) -> tuple[float, float]:
        return scale * point.cost, point.quality

    return figures.pareto_figure(
        [(generation, scale * cost, quality) for generation, cost, quality in scored],
        [place(point) for point in front.points],
        {point.strategy.widths[0]: place(point) for point in front.constants},
        place(front.chosen) if front.chosen else None,
        f"cost of an image, {unit}",
        f"{front.quality_name} (lower is better)",
    )


def _costs(run: RunFiles) -> dict[str, Any]:
    costs = run.costs
    figure = costs and figures.cost_figure(
        [row.width for row in costs.rows],
        [row.macs for row in costs.rows],
        [row.ms for row in costs.rows],
    )
    decoding = costs.decoding if costs else None
    own = next((line.macs for line in _lines(run) if line.kind == "strategy"), None)
    return {
        "costs": costs,
        "figure": figure,
        "headline": _headline_of(run, decoding),
        "decoding": decoding,
        "decoder_share": decoding.macs / own if decoding and own else None,
    }


def _training(run: RunFiles) -> dict[str, Any]:
    losses = _losses_per_width(run.log)
    return {
        "figure": figures.loss_figure(losses) if losses else None,
        "caption": _trained(run.config) if run.config else "",
    }


def _losses_per_width(log: tuple[LogRow, ...]) -> dict[float, tuple[list[int], list[float]]]:
    """Return width -> (steps, losses)."""
    losses: dict[float, tuple[list[int], list[float]]] = {}
    for row in log:
        for width, loss in row.losses.items():
            steps, values = losses.setdefault(width, ([], []))
            steps.append(row.step)
            values.append(loss)
    return losses


def _trained(config: Config) -> str:
    """Return in a sentence what a step of the run's training trains."""
    train, tune = config.train, config.tune
    middle = min(train.middle_widths, len(train.widths or config.model.widths) - 2)
    if middle < 1:
        sandwich = "the widest and the narrowest width"
    else:
        between = "a random middle width" if middle == 1 else f"{middle} random middle widths"
        sandwich = f"the widest, the narrowest and {between}"
    if not tune.widths:
        return f"The sandwich rule trains {sandwich} each step."
    routed = (
        "A step trains one width of the strategy that the run is tuned for, on the noise levels "
        "that it serves"
    )
    if not (share := tune.sandwich_share):
        return f"{routed}."
    return f"{routed}; {100 * share:.3g} % of the steps train {sandwich}, by the sandwich rule."


def _measured(run: RunFiles) -> dict[str, Any]:
    return {"metrics": run.metrics, "lines": _lines(run), "environment": run.environment}


def _configuration(run: RunFiles) -> dict[str, Any]:
    return {"commands": [row.command for row in run.commands], "config_text": run.config_text}


SECTIONS: dict[str, Section] = {
    "intro": Section(_intro, ("config",)),
    "cards": Section(_cards, ("metrics", "front")),
    "samples": Section(_samples, ("samples",), "Samples"),
    "quality": Section(_quality, ("metrics",), "Quality"),
    "strategy": Section(_strategy, ("steps",), "Chosen width of each step"),
    "sensitivity": Section(
        _sensitivity, ("sensitivity", "steps"), "Which steps need the full width"
    ),
    "pareto": Section(_pareto, ("front", "evaluations", "history"), "Search"),
    "costs": Section(_costs, ("costs", "metrics", "front"), "Cost of each width"),
    "training": Section(_training, ("log", "config"), "Training"),
    "measured": Section(_measured, ("metrics", "environment"), "How this was measured"),
    "configuration": Section(_configuration, ("commands", "config"), "Commands and configuration"),
}
