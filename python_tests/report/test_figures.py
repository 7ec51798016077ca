"""Figures: drawn from edge cases without warnings, as SVG that needs nothing from outside."""

from __future__ import annotations

import base64
import warnings

import numpy as np
import pytest

from ddsm_ext.report import figures


def svg(figure: object) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        uri = figures.to_svg_uri(figure)  # type: ignore[arg-type]
    head, data = uri.split(",", 1)
    assert head == "data:image/svg+xml;base64"
    return base64.b64decode(data).decode("utf-8")


CASES = {
    "loss": lambda: figures.loss_figure({1.0: ([1, 2], [1.0, 0.5]), 0.5: ([2], [0.7])}),
    "sensitivity": lambda: figures.sensitivity_figure(
        [-1.0, 1.0], {1.0: [0.0, 0.0], 0.5: [0.1, 0.0]}, "error"
    ),
    "pareto": lambda: figures.pareto_figure([(0, 1.0, 2.0)], [(1.0, 2.0)], {1.0: (1.0, 2.0)},
                                            (1.0, 2.0), "cost", "quality"),
    "pareto without points": lambda: figures.pareto_figure([], [(1.0, 2.0)], {}, None, "c", "q"),
    "hypervolume": lambda: figures.hypervolume_figure([0, 1], [0.1, 0.2], "generation"),
    "strategy": lambda: figures.strategy_figure([9, 0], [-3.0, 4.0], [0.25, 1.0]),
    "cost": lambda: figures.cost_figure([1.0, 0.5], [10.0, 3.0], [2.0, 1.0]),
    "quality": lambda: figures.quality_figure([("strategy", "strategy", 2.0, 0.1, 0.0)], "score"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_edge_cases_draw(name: str) -> None:
    text = svg(CASES[name]())
    assert text.rstrip().endswith("</svg>")
    assert 'href="http' not in text


def test_smoothing_keeps_a_constant_and_starts_unbiased() -> None:
    assert figures.smoothed([2.0] * 5, 0.9) == pytest.approx([2.0] * 5)
    # weights 0.5, 0.25, ... normalised: (1*0.25 + 4*0.5) / 0.75 = 3
    assert figures.smoothed([1.0, 4.0], 0.5) == pytest.approx([1.0, 3.0])


def test_widths_keep_their_colour_and_differ() -> None:
    colours = np.array([figures.width_colour(w) for w in (1.0, 0.75, 0.5, 0.25)])
    assert len(np.unique(colours, axis=0)) == 4
    assert (np.diff(colours[:, :3].sum(axis=1)) > 0).all()  # narrower is lighter


def test_generations_are_counted_in_whole_numbers() -> None:
    points = [(0, 1.0, 2.0), (1, 1.5, 1.5)]
    figure = figures.pareto_figure(points, [(1.0, 2.0)], {}, None, "cost", "quality")
    _, bar = figure.axes
    low, high = bar.get_ylim()
    assert [tick for tick in bar.get_yticks() if low <= tick <= high] == [0, 1]
