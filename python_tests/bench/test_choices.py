"""The table of chosen algorithms."""

from __future__ import annotations

from bench.small_network import SMALL

from ddsm_ext.bench.ops import explain_choices
from ddsm_ext.graph.shapes import op_shapes


def test_one_row_a_shape_with_one_choice() -> None:
    _, headings, *rows = explain_choices((1.0, 0.5), 4, config=SMALL).splitlines()
    shapes = [op_shapes(SMALL, width, "conv2d") for width in (1.0, 0.5)]
    assert len(rows) == sum(len(part) for part in shapes)
    assert all(row.count("*") == 1 for row in rows)
    # Winograd computes neither 1x1 kernels nor strides.
    for row in rows:
        if " 1x1 " in row or " /2 " in row:
            (chosen,) = (cell for cell in row.split() if cell.startswith("*"))
            assert row.index(chosen) + len(chosen) == headings.index(" us") + len(" us")
