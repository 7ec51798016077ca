"""The figure of the U-Net step: time an image against width, beside the MACs and the roof."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

from ddsm_ext.report.figures import _STYLE, ACCENT, ACCENT_2, INK, MUTED

_LINES: dict[str, dict[str, Any]] = {
    "slicing": {"label": "sliced as the reference does", "color": MUTED},
    "dense_cl": {"label": "dense, channels_last", "color": "#60a5fa"},
    "compiled": {"label": "dense, torch.compile", "color": ACCENT_2},
    "ours": {"label": "ddsm_ext", "color": ACCENT, "lw": 2.6},
}

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
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(FixedLocator([0.25, 0.5, 0.75, 1.0]))
    axes.yaxis.set_major_locator(FixedLocator(_TICKS_MS))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.set_xlabel("width")
    axes.set_title(f"batch {result['conditions']['batch']}")
