"""The report's matplotlib figures; each takes plain numbers and returns a `Figure`."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, MaxNLocator

INK, MUTED, GRID = "#1f2933", "#66727f", "#e4e8ec"
ACCENT, ACCENT_2, FAINT = "#c2410c", "#1d4ed8", "#b8c2cc"

_STYLE: Any = {
    "font.size": 10,
    "font.family": "DejaVu Sans",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "svg.hashsalt": "ddsm",  # the same numbers give the same bytes
}
_styled = matplotlib.rc_context(_STYLE)


def width_colour(width: float) -> tuple[float, float, float, float]:
    """Colour of a width, the same in every figure: dark for the full width, light for narrow."""
    return matplotlib.colormaps["viridis"](0.85 * (1.0 - width))


def _name(text: str) -> str:
    """A name from a file as matplotlib draws it: no formula, no control characters, not endless."""
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text[:60])
    return shown.replace("$", r"\$") + ("…" if len(text) > 60 else "")


def _figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.8, height), layout="tight")
    return figure, figure.subplots()


@_styled
def to_svg_uri(figure: Figure) -> str:
    """Return the figure as an SVG `data:` URI for an `<img>` (sharp on any screen, no request)."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None}, dpi=150)
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def smoothed(values: Sequence[float], weight: float) -> np.ndarray:
    """Exponential moving average of `values`, corrected for its start."""
    out, mean, norm = [], 0.0, 0.0
    for value in values:
        mean = weight * mean + (1.0 - weight) * value
        norm = weight * norm + (1.0 - weight)
        out.append(mean / norm)
    return np.asarray(out)


@_styled
def loss_figure(losses: Mapping[float, tuple[Sequence[int], Sequence[float]]]) -> Figure:
    """Training loss over the step, one line a width.

    Args:
        losses: width -> (steps, losses) of the logged steps at which that width was trained.
    """
    figure, axes = _figure(3.3)
    for width in sorted(losses, reverse=True):
        steps, values = losses[width]
        weight = 0.0 if len(values) < 10 else 1.0 - 1.0 / max(3.0, len(values) / 25.0)
        axes.plot(steps, smoothed(values, weight), color=width_colour(width), label=f"{width:g}")
    axes.set_yscale("log")
    axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
    axes.set_xlabel("training step")
    axes.set_ylabel("loss (smoothed)")
    axes.legend(title="width", ncols=2)
    return figure


@_styled
def sensitivity_figure(
    log_snrs: Sequence[float], by_width: Mapping[float, Sequence[float]], label: str
) -> Figure:
    """Harm done by each width at each noise level.

    Args:
        log_snrs: noise levels, log-SNR.
        by_width: width -> its error at these levels.
        label: what the error is.
    """
    figure, axes = _figure(3.3)
    for width in sorted(by_width, reverse=True):
        values = np.asarray(by_width[width], dtype=float)
        if not (values > 0).any():
            continue  # the full width's own error is zero, which a log axis cannot show
        axes.plot(
            log_snrs,
            np.where(values > 0, values, np.nan),
            "o-",
            ms=3,
            color=width_colour(width),
            label=f"{width:g}",
        )
    axes.set_yscale("log")
    _noise_axis(axes)
    axes.set_ylabel(label)
    axes.legend(title="width", ncols=2)
    return figure


def _noise_axis(axes: Axes) -> None:
    axes.set_xlabel("log-SNR   (pure noise ← → clean image; sampling runs left to right)")


@_styled
def pareto_figure(
    evaluations: Sequence[tuple[int, float, float]],
    front: Sequence[tuple[float, float]],
    constants: Mapping[float, tuple[float, float]],
    chosen: tuple[float, float] | None,
    cost_label: str,
    quality_label: str,
) -> Figure:
    """All evaluated strategies, cost against quality, with the Pareto front.

    Args:
        evaluations: (generation that first scored it, cost, quality) of every strategy.
        front: (cost, quality) of the strategies that no other one beats in both.
        constants: width -> (cost, quality) of a constant width.
        chosen: (cost, quality) of the chosen strategy; None marks none.
        cost_label: x axis.
        quality_label: y axis (lower is better); it stands above, where a long one has room.
    """
    figure, axes = _figure(4.0)
    if evaluations:
        _scatter_by_generation(figure, axes, np.asarray(evaluations, dtype=float))
    if front:
        costs, qualities = zip(*sorted(front), strict=True)
        axes.plot(costs, qualities, "-o", ms=3.5, color=INK, lw=1.2, label="Pareto front")
    for width, (cost, quality) in sorted(constants.items()):
        axes.scatter([cost], [quality], marker="s", s=44, color=width_colour(width), zorder=4)
        axes.annotate(f"{width:g}", (cost, quality), (6, 6), textcoords="offset points")
    if constants:
        axes.scatter([], [], marker="s", s=44, color=MUTED, label="constant width")
    if chosen is not None:
        axes.scatter(
            [chosen[0]],
            [chosen[1]],
            marker="*",
            s=230,
            color=ACCENT,
            zorder=5,
            edgecolors="white",
            label="chosen",
        )
    values = [q for _, _, q in evaluations] + [q for _, q in front]
    if max(values) > 20 * min(values) > 0:
        axes.set_yscale("log")
    axes.set_xlabel(cost_label)
    axes.set_title(_name(quality_label))
    axes.legend()
    return figure


def _scatter_by_generation(figure: Figure, axes: Axes, data: np.ndarray) -> None:
    """Rows of (generation, cost, quality); a bar tells the generations where there are several."""
    generation, cost, quality = data.T
    points = axes.scatter(
        cost, quality, c=generation, cmap="Blues", vmin=-3, s=16, edgecolors="none",
        label="evaluated",
    )  # fmt: skip
    if generation.max() > generation.min():
        bar = figure.colorbar(points, ax=axes, pad=0.01, ticks=MaxNLocator(integer=True))
        bar.ax.set_ylim(generation.min(), generation.max())
        bar.set_label("generation")
        bar.outline.set_visible(False)


@_styled
def hypervolume_figure(work: Sequence[int], hypervolumes: Sequence[float], label: str) -> Figure:
    """Hypervolume of the front by the scores known at each time; new scores may lower it.

    Args:
        work: how far the search was.
        hypervolumes: of the front then.
        label: what `work` counts.
    """
    figure, axes = _figure(2.5)
    axes.plot(work, hypervolumes, "o-", ms=4, color=ACCENT_2)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(label)
    axes.set_ylabel("hypervolume")
    return figure


@_styled
def strategy_figure(
    timesteps: Sequence[float], log_snrs: Sequence[float], widths: Sequence[float]
) -> Figure:
    """Chosen width of every sampling step, over t and over log-SNR.

    Args:
        timesteps: t of each step, in any order.
        log_snrs: noise level of each step.
        widths: width of each step.
    """
    figure = Figure(figsize=(6.8, 4.4), layout="tight")
    axes = figure.subplots(2)
    for panel, xs in zip(axes, (timesteps, log_snrs), strict=True):
        order = np.argsort(xs)
        x, w = np.asarray(xs, dtype=float)[order], np.asarray(widths, dtype=float)[order]
        panel.step(x, w, where="mid", color=MUTED, lw=1.2)
        panel.scatter(x, w, c=[width_colour(v) for v in w], s=22, zorder=3)
        panel.set_ylim(0, 1.08)
        panel.set_yticks(sorted({0.0, 1.0, *w}))
        panel.set_ylabel("width")
    axes[0].invert_xaxis()
    axes[0].set_xlabel("t   (pure noise ← → clean image; sampling runs left to right)")
    _noise_axis(axes[1])
    return figure


@_styled
def cost_figure(widths: Sequence[float], macs: Sequence[float], ms: Sequence[float]) -> Figure:
    """MACs and measured time of a step at each width, as shares of the widest one.

    Args:
        widths: the widths.
        macs: multiply-accumulates an image and step.
        ms: measured milliseconds an image and step.
    """
    figure, axes = _figure(2.9)
    order = np.argsort(widths)[::-1]
    x = np.arange(len(order))
    pairs = [
        (macs, "MACs", ACCENT_2, lambda v: f"{v / 1e6:.3g} M"),
        (ms, "time measured", ACCENT, lambda v: f"{v:.3g} ms"),
    ]
    for i, (values, label, colour, text) in enumerate(pairs):
        sorted_values = np.asarray(values, dtype=float)[order]
        share = 100.0 * sorted_values / sorted_values[0]
        bars = axes.bar(x + 0.4 * (i - 0.5), share, 0.376, color=colour, label=label)
        axes.bar_label(bars, [text(v) for v in sorted_values], fontsize=8, padding=2, color=INK)
    axes.set_xticks(x, [f"{widths[i]:g}" for i in order])
    axes.set_xlabel("width")
    axes.set_ylabel("% of the full width")
    axes.set_ylim(0, 118)
    axes.grid(axis="x", visible=False)
    axes.legend()
    return figure


@_styled
def quality_figure(rows: Sequence[tuple[str, str, float, float, float]], label: str) -> Figure:
    """How far each sampler scores from the full width on the same seeds, with 95 % intervals.

    Args:
        rows: (name, kind, mean score, mean difference, half-width of its interval) of each, the
            full width's difference being 0.
        label: name of the difference, with its direction.
    """
    figure, axes = _figure(1.1 + 0.36 * len(rows))
    axes.axvline(0.0, color=MUTED, lw=1)
    for place, (_, kind, score, difference, half_width) in enumerate(rows):
        colour = {"strategy": ACCENT, "full": INK}.get(kind, MUTED)
        axes.errorbar(
            [difference], [place], xerr=[half_width], fmt="o", ms=6, capsize=3, color=colour
        )
        axes.annotate(
            f"{score:.3g}", (difference, place), (0, 7), textcoords="offset points",
            ha="center", fontsize=8,
        )  # fmt: skip
    axes.set_yticks(range(len(rows)), [_name(name) for name, *_ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.7)
    axes.set_xlabel(label)
    return figure
