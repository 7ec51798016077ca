"""Figures of time against width: of the U-Net step, and of every width of several networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

from ddsm_ext.bench.width_curve import BLOCK, TARGETS
from ddsm_ext.report.figures import _STYLE, ACCENT, ACCENT_2, INK, MUTED

_LINES: dict[str, dict[str, Any]] = {
    "slicing": {"label": "sliced as the reference does", "color": MUTED},
    "dense_cl": {"label": "dense, channels_last", "color": "#60a5fa"},
    "compiled": {"label": "dense, torch.compile", "color": ACCENT_2},
    "ours": {"label": "ddsm_ext", "color": ACCENT, "lw": 2.6},
}

# target of a width curve -> how a width that breaks it is marked
_MARKS: dict[str, dict[str, Any]] = {
    "rise": {
        "marker": "x",
        "color": ACCENT,
        "s": 26,
        "label": f"slower than a wider step by over {100 * TARGETS['rise']:.0f} %",
    },
    "over_line": {
        "marker": "o",
        "edgecolors": ACCENT,
        "facecolors": "none",
        "s": 44,
        "label": f"over {100 * TARGETS['over_line']:.0f} % above the line between multiples of "
        f"{BLOCK} channels",
    },
}
_SHARES = [factor * 10.0**power for power in range(-5, 1) for factor in (1, 3)]
_TICKS_MS = [factor * 10.0**power for power in range(-4, 4) for factor in (1, 2, 5)]


def step_figure(results: Sequence[Mapping[str, Any]]) -> Figure:
    """Return one panel a batch size, both axes logarithmic so that equal ratios look equal.

    Args:
        results: results of `run_unet_step` in one file.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(3.5 * len(results) + 0.4, 4.3), layout="constrained")
        panels = figure.subplots(1, len(results), sharey=True, squeeze=False)[0]
        for axes, result in zip(panels, results, strict=True):
            _draw(axes, result)
        panels[0].set_ylabel("ms an image")
        by_label = {line.get_label(): line for axes in panels for line in axes.lines}
        figure.legend(by_label.values(), by_label.keys(), loc="outside upper left", ncols=2)
        return figure


def _draw(axes: Axes, result: Mapping[str, Any]) -> None:
    rows = sorted(result["rows"], key=lambda row: row["width"])
    widths = np.array([row["width"] for row in rows])
    for name, style in _LINES.items():
        timed = [(row["width"], row[f"{name}_ms"]) for row in rows if f"{name}_ms" in row]
        if timed:
            axes.plot(*zip(*timed, strict=True), "o-", ms=4, **style)
    square = rows[-1]["ours_ms"] * (widths / widths[-1]) ** 2
    axes.plot(widths, square, ":", color=ACCENT, lw=1.4, label="width² from ddsm_ext's widest")
    roof = [row["roof_ms"] for row in rows]
    axes.plot(widths, roof, "--", color=INK, lw=1.2, label="direct convolution at peak rate")
    _scale(axes, [0.25, 0.5, 0.75, 1.0], _TICKS_MS)
    axes.set_title(f"batch {result['conditions']['batch']}")


def _scale(axes: Axes, widths: Sequence[float], ticks: Sequence[float]) -> None:
    """Make both axes logarithmic, with these ticks alone."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis, places in ((axes.xaxis, widths), (axes.yaxis, ticks)):
        axis.set_major_locator(FixedLocator(places))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.set_xlabel("width")


def curve_figure(results: Sequence[Mapping[str, Any]]) -> Figure:
    """Return one panel a network, one line a batch: time against width, the full width's being 1.

    Both axes are logarithmic, so that the MACs are almost a straight line. Widths that break one of
    the targets are marked.

    Args:
        results: results of `run_width_curve` in one file, by network and batch.
    """
    networks = [list(group) for _, group in groupby(results, lambda r: r["conditions"]["name"])]
    networks.sort(key=lambda group: _widest(group[0])["macs"])
    batches = sorted({result["conditions"]["batch"] for result in results})
    colours = matplotlib.colormaps["viridis"](np.linspace(0.9, 0.1, len(batches)))
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(3.6 * len(networks) + 0.4, 5.0), layout="constrained")
        panels = figure.subplots(1, len(networks), squeeze=False)[0]
        for axes, group in zip(panels, networks, strict=True):
            _draw_curves(axes, group, dict(zip(batches, colours, strict=True)))
        panels[0].set_ylabel("time of a step / that of the full width")
        by_label = {
            drawn.get_label(): drawn
            for axes in panels
            for drawn in (*axes.lines, *axes.collections)
        }
        figure.legend(by_label.values(), by_label.keys(), loc="outside upper left", ncols=2)
        figure.supxlabel(_caption(results[0]), fontsize=8, color=MUTED)
        return figure


def _draw_curves(
    axes: Axes, results: Sequence[Mapping[str, Any]], colours: Mapping[int, Any]
) -> None:
    widest = _widest(results[0])
    widths = [row["width"] for row in results[0]["rows"]]
    macs = [row["macs"] / widest["macs"] for row in results[0]["rows"]]
    axes.plot(widths, macs, "--", color=INK, lw=1.2, label="MACs")
    for result in results:
        batch, full_ms = result["conditions"]["batch"], _widest(result)["ours_ms"]
        points = [(row["width"], row["ours_ms"] / full_ms) for row in result["rows"]]
        axes.plot(*zip(*points, strict=True), ".-", ms=4, lw=1.4, color=colours[batch],
                  label=f"batch {batch}")  # fmt: skip
    for target, style in _MARKS.items():
        marked = [
            (row["width"], row["ours_ms"] / _widest(result)["ours_ms"])
            for result in results
            for row in result["rows"]
            if target in row["breaks"]
        ]
        # Drawn where none is, too: the legend says what is not there.
        axes.scatter(*np.array(marked).reshape(-1, 2).T, lw=1.2, zorder=3, **style)
    _scale(axes, [1 / 32, 1 / 8, 1 / 4, 1 / 2, 1], _SHARES)
    axes.set_title(f"{results[0]['conditions']['name']}, {widest['channels']} channels")


def _widest(result: Mapping[str, Any]) -> Mapping[str, Any]:
    return max(result["rows"], key=lambda row: row["width"])


def _caption(result: Mapping[str, Any]) -> str:
    about, machine = result["conditions"], result["machine"]
    threads = f"{about['threads']} thread{'s' if about['threads'] > 1 else ''}"
    return (
        f"{machine['cpu']}, {about['isa']}, {threads}, {about['dtype']}, "
        f"ddsm_ext {machine['versions']['ddsm_ext']}, torch {about['torch']}"
    )
