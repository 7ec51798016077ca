"""Pictures and figure of the page: the same noise under each way, and cost against quality."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from published.pictures import rows_of_images, save_picture

from ddsm_ext.report.figures import _STYLE, ACCENT, ACCENT_2, INK, MUTED
from ddsm_ext.run.classes import class_names
from ddsm_ext.search.front import nondominated
from step_aware.presets import PRESETS, Preset, short
from step_aware.study import Study
from step_aware.tables import FULL, constant_beside, cost_share, lines_of, percent

SEEDS = list(range(20))  # two of each of ten classes
_SHORT = {"airplane": "plane", "automobile": "car"}


def draw(study: Study, folder: Path) -> None:
    """Write PRESET-samples.png and PRESET-front.png."""
    study.choose_sampler()
    name = next(name for name, preset in PRESETS.items() if preset is study.preset)
    target = study.preset.targets[-1]
    beside = constant_beside(study.results, target)
    compared = [target.name, *([beside] if beside else [])]
    general = {_margin(study, each): study.pictures(each, SEEDS) for each in (FULL, *compared)}
    tuned = {
        _margin(study, each, tuned=True): study.pictures(each, SEEDS, tuned=True)
        for each in compared
    }
    count = study.run.config.model.label_count
    titles = [""] * len(SEEDS)
    if count:
        classes = class_names(study.run.folder, count)
        titles = [_SHORT.get(classes[seed % count], classes[seed % count]) for seed in SEEDS]
    parts = (len(general), len(tuned))
    picture = rows_of_images({**general, **tuned}, titles, parts, side=0.45)
    save_picture(picture, folder / f"{name}-samples.png", "RGB")
    front = front_figure(study.results, study.preset)
    save_picture(front, folder / f"{name}-front.png", "RGB")


def _margin(study: Study, name: str, *, tuned: bool = False) -> str:
    """What stands beside a row: the strategy, its weights and its time."""
    more = ", tuned" if tuned else ""
    return f"{name}{more}\n{percent(cost_share(study.results, name))} of the time"


def front_figure(results: Mapping[str, Any], preset: Preset) -> Figure:
    """Return a panel for what the searches found, and one for the scores in each features, of a
    training seed.

    Without intervals: the ranges of seeds move all points together, and those of the paired
    differences are in the table of the claims.
    """
    features = preset.features
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(4.2 * (1 + len(features)), 4.4), layout="constrained")
        first, *others = figure.subplots(1, 1 + len(features), squeeze=False)[0]
        _draw_front(first, results["fronts"], preset)
        for axes, name in zip(others, features, strict=True):
            _draw_scores(axes, results, preset, name)
        shown = {}
        for axes in (first, *others):
            axes.set_xlabel("time of an image, % of the full width's")
            handles, labels = axes.get_legend_handles_labels()
            shown |= dict(zip(labels, handles, strict=True))
        figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=4)
        return figure


def _draw_front(axes: Axes, fronts: Mapping[str, Any], preset: Preset) -> None:
    """What the searches by the first features found together, on their own seeds."""
    first = preset.features[0]
    found = [fronts[each.name] for each in preset.targets if each.features == first]
    points = [(p["quality"], p["cost_relative"]) for front in found for p in front["points"]]
    constants = [(p["quality"], p["cost_relative"]) for p in found[-1]["constants"]]
    for label, colour, marker, each in (
        ("constant widths", MUTED, "s", sorted(constants)),
        ("front of the searches", INK, "o", [points[i] for i in nondominated(points)]),
    ):
        quality, cost = zip(*each, strict=True)
        axes.plot([100 * c for c in cost], quality, marker=marker, ms=4, color=colour, label=label)
    axes.set_title(f"searches by {short(first)}, their own seeds")
    axes.set_ylabel("Fréchet distance, extrapolated")  # to infinitely many images


def _draw_scores(axes: Axes, results: Mapping[str, Any], preset: Preset, features: str) -> None:
    """Final scores with the general weights and with tuned ones."""
    chosen = {target.name: target.features for target in preset.targets}
    for tuned in (False, True):
        lines = lines_of(results, features, tuned=tuned).values()
        more, dashes = (", tuned", "--") if tuned else ("", "-")
        drawn = [("constant widths", MUTED, "s", [x for x in lines if x.kind in ("width", "full")])]
        for by, colour in zip(preset.features, (ACCENT, ACCENT_2), strict=False):
            own = [line for line in lines if chosen.get(line.label) == by]
            drawn.append((f"strategies by {short(by)}", colour, "o", own))
        for label, colour, marker, each in drawn:
            points = sorted((100 * cost_share(results, line.label), line.mean) for line in each)
            if points:
                x, y = zip(*points, strict=True)
                axes.plot(x, y, dashes, marker=marker, ms=4, color=colour, label=label + more)
    axes.set_title(f"scores by {short(features)}")
    axes.set_ylabel("Fréchet distance")
