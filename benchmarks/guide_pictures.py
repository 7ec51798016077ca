"""Draw the pictures of docs/samplers-and-guidance.md: the same noise under samplers and guidance.

    python benchmarks/guide_pictures.py RUN [--out docs]

RUN is a trained and searched run of the preset "adm-digits". Ten of its seeds are an image of each
class; a row takes them all from the same noise. samplers.png has a row a sampler, at the run's
strategy; guidance.png a row a scale, at the full width. The 8x8 pixels are enlarged smoothly.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from ddsm_ext.diffusion import make_schedule
from ddsm_ext.run import Run
from ddsm_ext.sampling import SamplerConfig, evaluations

SEEDS = range(80, 90)  # of the first 200 those in which guidance is seen well
# The first is as good as exact, of the flow that all follow but ddpm, which adds noise; the others
# have 11 or 12 evaluations: Heun's method takes two a step, but one in the last.
HEUN: dict[str, Any] = {"kind": "heun", "spacing": "karras", "sigma_max": 80.0}
SAMPLERS: dict[str, dict[str, Any]] = {
    "the flow itself": {**HEUN, "steps": 100},
    "ddim": {"kind": "ddim", "steps": 12, "eta": 0.0},
    "heun": {**HEUN, "steps": 6},
    "dpmpp_2m": {"kind": "dpmpp_2m", "steps": 12},
    "unipc": {"kind": "unipc", "steps": 12},
    "ddpm": {"kind": "ddpm", "steps": 12},
}
SCALES = (1.5, 2.0, 3.0)
WEAK_WIDTH = 0.25
# Without noise on the way, so that rows differ by the guidance alone.
GUIDED: dict[str, Any] = {"kind": "ddim", "steps": 20, "eta": 0.0}
WEAK_MODELS: dict[str, dict[str, Any]] = {
    "no class": {"guidance_weak": "null"},
    f"width {WEAK_WIDTH:g}": {"guidance_weak": "width", "guidance_widths": (WEAK_WIDTH,)},
}


def drawn(run: Run, sampler: dict[str, Any], width: float | None) -> NDArray[np.uint8]:
    """The images of all classes, [10, 8, 8, 1]; width None takes the run's strategy."""
    changed = Run.open(run.folder.parent, run.folder, {"sampler": sampler}, device=run.device)
    return changed.sample(SEEDS, width).images


def sampler_rows(run: Run) -> dict[str, NDArray[np.uint8]]:
    """Text of a row -> its images."""
    schedule, rows = make_schedule(run.config.diffusion), {}
    for name, sampler in SAMPLERS.items():
        count = len(evaluations(schedule, SamplerConfig(**sampler)))
        rows[f"{name}\n{count} evaluations"] = drawn(run, sampler, None)
    return rows


def guidance_rows(run: Run) -> dict[str, NDArray[np.uint8]]:
    """Text of a row -> its images."""
    rows = {"no guidance\n(scale 1)": drawn(run, GUIDED, 1.0)}
    for weak, settings in WEAK_MODELS.items():
        for scale in SCALES:
            sampler = {**GUIDED, **settings, "guidance": scale}
            rows[f"away from {weak}\nscale {scale:g}"] = drawn(run, sampler, 1.0)
    return rows


def figure(rows: dict[str, NDArray[np.uint8]], parts: tuple[int, ...]) -> Figure:
    """Rows of images below each other, classes above, more space between parts.

    Args:
        rows: text in the margin -> images [10, 8, 8, 1].
        parts: rows of each part; their sum is all.
    """
    gap, side, margin = 0.12, 0.5, 1.45  # inches
    width = margin + len(SEEDS) * side + 0.05
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
            axes.imshow(image[..., 0], cmap="gray", vmin=0, vmax=255, interpolation="bicubic")
            axes.set_axis_off()
            if index == 0:
                axes.set_title(str(column), fontsize=9, pad=3)
        top += side
    made.text((margin - 0.1) / width, 1 - 0.2 / height, "class", ha="right", fontsize=9)
    return made


def main() -> None:
    """Sample and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help='folder of a run of the preset "adm-digits"')
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder (default: docs)")
    arguments = parser.parse_args()
    run = Run.open(arguments.run.parent, arguments.run)
    parts = (1, *(len(SCALES) for _ in WEAK_MODELS))
    for name, made in (
        ("samplers", figure(sampler_rows(run), (1, len(SAMPLERS) - 1))),
        ("guidance", figure(guidance_rows(run), parts)),
    ):
        drawing = io.BytesIO()
        made.savefig(drawing, dpi=130)
        Image.open(drawing).convert("L").save(arguments.out / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
