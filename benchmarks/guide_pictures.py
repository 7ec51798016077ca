"""Draw the pictures of docs/samplers-and-guidance.md: the same noise under samplers and guidance.

    python benchmarks/guide_pictures.py RUN [--out docs]

RUN is a trained and searched run of the preset "adm-digits". Ten of its seeds are an image of each
class; a row takes them all from the same noise. samplers.png has a row a sampler, at the run's
strategy; guidance.png a row a scale, at the full width. The 8x8 pixels are enlarged smoothly.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from published.pictures import rows_of_images, save_picture

from ddsm_ext.diffusion import make_schedule
from ddsm_ext.run import Run
from ddsm_ext.sampling import SamplerConfig, evaluations

SEEDS = range(80, 90)  # of the first 200 those in which guidance is seen well
CLASSES = [str(seed % 10) for seed in SEEDS]
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
        ("samplers", rows_of_images(sampler_rows(run), CLASSES, (1, len(SAMPLERS) - 1))),
        ("guidance", rows_of_images(guidance_rows(run), CLASSES, parts)),
    ):
        save_picture(made, arguments.out / f"{name}.png", "L")


if __name__ == "__main__":
    main()
