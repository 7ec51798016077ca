"""Pictures and times of strategies side by side, from the same noise and in the same minutes."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddsm_ext.bench.timing import interleaved
from ddsm_ext.data.images import image_grid, save_png
from ddsm_ext.data.pixels import to_uint8
from ddsm_ext.io.files import write_json
from ddsm_ext.run.compose import Sampler
from ddsm_ext.run.config import seeds_text
from ddsm_ext.run.progress import counter
from ddsm_ext.sampling.strategy import Strategy

COLUMNS = 16
TURNS = 3


def write_comparison(
    run: Path, sampler: Sampler, dataset: Any, strategies: dict[str, Strategy]
) -> None:
    """Write samples/compare: a row of real images, then one row a strategy from the same seeds."""
    folder = run / "samples" / "compare"
    seeds = list(range(COLUMNS))
    real = np.random.default_rng(0).choice(len(dataset), COLUMNS, replace=len(dataset) < COLUMNS)
    pictures = {"real images": dataset.images[np.sort(real)]}
    told = counter(sampler.progress, "samples side by side", "row")
    for done, (label, strategy) in enumerate(strategies.items(), 1):
        pictures[label] = to_uint8(sampler.images(strategy, seeds)).cpu().numpy()
        if told is not None:
            told(done, len(strategies))
    rows = []
    for number, (label, images) in enumerate(pictures.items()):
        strip = image_grid(images.transpose(0, 2, 3, 1), COLUMNS)  # [N, H, W, C] -> [h, w, C]
        file = f"row-{number}.png"
        save_png(folder / file, strip)
        rows.append({"label": label, "file": file})
    write_json(folder / "index.json", {"seeds": seeds_text(seeds), "rows": rows})


def interleaved_ms(
    sampler: Sampler, strategies: dict[str, Strategy], images: int
) -> dict[str, Any]:
    """Measure the ms an image of each strategy, taking turns so that all meet the same machine.

    Args:
        sampler: what makes the samples.
        strategies: name -> strategy.
        images: images of one turn.

    Returns:
        "ms_per_image" by name, medians over the turns, and what it depends on.
    """
    seeds = list(range(images))

    def run(strategy: Strategy) -> None:
        sampler.images(strategy, seeds)
        if sampler.device.type == "cuda":
            torch.cuda.synchronize(sampler.device)

    for strategy in strategies.values():  # a few images warm up
        sampler.images(strategy, seeds[:8])
    calls = {name: partial(run, strategy) for name, strategy in strategies.items()}
    told = counter(sampler.progress, "timing", "turn")
    times = interleaved(calls, rounds=TURNS, warmup_rounds=0, progress=told)
    return {
        "ms_per_image": {name: timing.median_ms / images for name, timing in times.items()},
        "images": images,
        "batch_size": sampler.batch_size,
        "rounds": TURNS,
        "threads": torch.get_num_threads(),
        "device": str(sampler.device),
    }
