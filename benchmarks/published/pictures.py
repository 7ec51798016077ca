"""Pictures of samples: rows of images below each other, from the same noise."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image


def rows_of_images(
    rows: Mapping[str, NDArray[np.uint8]],
    titles: Sequence[str],
    parts: Sequence[int],
    side: float = 0.5,
) -> Figure:
    """Return rows of images, their classes above, more space between parts; enlarged smoothly.

    Args:
        rows: text in the margin -> images [N, H, W, C], grey or RGB.
        titles: class of each column.
        parts: rows of each part; their sum is all.
        side: of an image, in inches.
    """
    gap, margin = 0.12, 1.45  # inches
    width = margin + len(titles) * side + 0.05
    height = 0.3 + len(rows) * side + (len(parts) - 1) * gap + 0.05
    made = Figure(figsize=(width, height))
    starts = [sum(parts[:i]) for i in range(1, len(parts))]
    top = 0.3  # of the row, from the figure's top
    for index, (text, images) in enumerate(rows.items()):
        top += gap if index in starts else 0.0
        middle = 1 - (top + side / 2) / height
        made.text((margin - 0.1) / width, middle, text, ha="right", va="center", fontsize=8)
        for column, image in enumerate(images):
            left, inner = margin + column * side, side - 0.04
            box = (left / width, 1 - (top + inner) / height, inner / width, inner / height)
            axes = made.add_axes(box)
            shown = image[..., 0] if image.shape[-1] == 1 else image
            axes.imshow(shown, cmap="gray", vmin=0, vmax=255, interpolation="bicubic")
            axes.set_axis_off()
            if index == 0:
                axes.set_title(titles[column], fontsize=9 if side >= 0.5 else 7, pad=3)
        top += side
    made.text((margin - 0.1) / width, 1 - 0.2 / height, "class", ha="right", fontsize=9)
    return made


def save_picture(figure: Figure, path: Path, mode: str) -> None:
    """Write a figure as a small PNG file, of mode "L" (grey) or "RGB"."""
    drawing = io.BytesIO()
    figure.savefig(drawing, dpi=130)
    Image.open(drawing).convert(mode).save(path, optimize=True)
