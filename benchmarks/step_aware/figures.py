"""Pictures and figure of the page: the same noise under each way, and cost against quality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from published.pictures import rows_of_images, save_picture

from ddsm_ext.intervals import mean_interval
from ddsm_ext.report.comparison import Line
from ddsm_ext.report.figures import _STYLE, ACCENT, ACCENT_2, FAINT, MUTED
from ddsm_ext.run.classes import class_names
from step_aware.presets import PRESETS, Preset, short
from step_aware.study import Study
from step_aware.tables import FULL, GENERAL, constant_beside, lines_of

SEEDS = list(range(20))  # two of each of ten classes
_SHORT = {"airplane": "plane", "automobile": "car"}


def draw(study: Study, folder: Path) -> None:
    """Write PRESET-samples.png and PRESET-front.png."""
    study.choose_sampler()
    name = next(name for name, preset in PRESETS.items() if preset is study.preset)
    target = study.preset.targets[-1]
    beside = constant_beside(study.results, target)
    compared = [target.name, *([beside] if beside else [])]
    names = [(GENERAL, each) for each in (FULL, *compared)]
    tuned = [("tuned", each) for each in compared]
    rows = study.pictures([*names, *tuned], SEEDS)
    count = study.run.config.model.label_count
    titles = [""] * len(SEEDS)
    if count:
        classes = class_names(study.run.folder, count)
        titles = [_SHORT.get(classes[seed % count], classes[seed % count]) for seed in SEEDS]
    picture = rows_of_images(rows, titles, (len(names), len(tuned)), side=0.45)
    save_picture(picture, folder / f"{name}-samples.png", "RGB")
    front = front_figure(study.results, study.preset)
    save_picture(front, folder / f"{name}-front.png", "RGB")


def front_figure(results: Mapping[str, Any], preset: Preset) -> Figure:
    """Return a panel for the front that the last search found, and one for the scores in each
    features, of a training seed."""
    features = preset.features
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(4.2 * (1 + len(features)), 3.9), layout="constrained")
        first, *others = figure.subplots(1, 1 + len(features), squeeze=False)[0]
        _draw_front(first, results["fronts"][preset.targets[-1].name])
        for axes, name in zip(others, features, strict=True):
            _draw_scores(axes, results, preset, name)
        for axes in (first, *others):
            axes.set_xlabel("time of an image, % of the full width's")
            axes.set_ylabel("Fréchet distance")
            axes.legend()
        return figure


def _draw_front(axes: Axes, front: Mapping[str, Any]) -> None:
    """The front of a search, on the search's own seeds."""
    for key, label, style in (
        ("constants", "constant widths", {"color": MUTED, "marker": "s"}),
        ("points", "front of the search", {"color": ACCENT, "marker": "o"}),
    ):
        points = sorted((100 * p["cost_relative"], p["quality"]) for p in front[key])
        axes.plot(*zip(*points, strict=True), ms=4, label=label, **style)
    axes.set_title("the search, its own seeds")


def _draw_scores(axes: Axes, results: Mapping[str, Any], preset: Preset, features: str) -> None:
    """Final scores with the general weights and with tuned ones."""
    chosen = {target.name: target.features for target in preset.targets}
    full_ms = results["strategies"][FULL]["ms"]
    for tuned in (False, True):
        lines = lines_of(results, features, tuned=tuned)
        constants = [line for line in lines.values() if line.kind in ("width", "full")]
        style: dict[str, Any] = {"ls": "--" if tuned else "-", "ms": 4, "capsize": 2}
        more = ", tuned" if tuned else ""
        _draw_lines(axes, constants, full_ms, f"constant widths{more}", MUTED, "s", style)
        for by, colour in zip(preset.features, (ACCENT, ACCENT_2), strict=False):
            own = [line for name, line in lines.items() if chosen.get(name) == by]
            label = f"strategies by {short(by)}{more}"
            _draw_lines(axes, own, full_ms, label, colour, "o", style)
    axes.set_title(f"scores by {short(features)}")


def _draw_lines(
    axes: Axes,
    lines: Sequence[Line],
    full_ms: float,
    label: str,
    colour: str,
    marker: str,
    style: Mapping[str, Any],
) -> None:
    ordered = sorted(lines, key=lambda line: line.ms or 0)
    if not ordered:
        return
    x = [100 * (line.ms or 0) / full_ms for line in ordered]
    found = [mean_interval(list(line.scores.values())) for line in ordered]
    y, errors = [each.mean for each in found], [each.half_width for each in found]
    axes.errorbar(x, y, errors, label=label, color=colour, marker=marker, ecolor=FAINT, **style)
