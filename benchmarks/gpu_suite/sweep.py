"""Every tile and number of K splits for the large convolutions of a step, from CUDA graphs.

What it times fits the constants of csrc/cuda/tile_choice.h; see `fit`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddsm_ext.bench.ops import heaviest_first
from ddsm_ext.graph.config import NetworkConfig
from ddsm_ext.graph.shapes import ConvShape
from ddsm_ext.ops._call import conv_tf32
from gpu_suite import work
from gpu_suite.fit import Fit, fit
from gpu_suite.tiles import Tile, parsed, printed_choices, tiles

BATCHES = (128, 16, 1) if work.ON_GPU else (2,)
SPLITS = (1, 2, 3, 4, 6, 8, 12, 16)
COSTLIEST = 4  # shapes of a width
ROUNDS = 3
FIT_S = 4.0


def shapes_of(width: float, config: NetworkConfig = work.CONFIG) -> list[ConvShape]:
    """Return the convolutions of a step with the most MACs."""
    found = heaviest_first(config, width, "conv2d")[:COSTLIEST]
    return [shape for shape, _ in found if isinstance(shape, ConvShape)]


def splits_of(shape: ConvShape, batch: int, tile: Tile, multiprocessors: int) -> list[int]:
    """Return numbers of splits worth timing with a tile: up to four blocks a multiprocessor."""
    if tile.n > 32 and shape.c_out <= tile.n // 2:
        return []
    blocks = -(-batch * shape.size**2 // tile.m) * -(-shape.c_out // tile.n)
    return [splits for splits in SPLITS if splits == 1 or blocks * splits <= 4 * multiprocessors]


def calls_of(shape: ConvShape, batch: int) -> Callable[[int], Tensor]:
    """Return algo -> the convolution by it."""
    options = {"device": work.DEVICE, "dtype": torch.bfloat16}
    size, k = shape.in_size, shape.kernel
    c = shape.c_in + shape.c_in2
    x, x2 = (
        torch.randn(batch, n, size, size, **options).contiguous(memory_format=torch.channels_last)
        if n
        else None
        for n in (shape.c_in, shape.c_in2)
    )
    assert x is not None
    weight = torch.randn(shape.c_out_max, shape.c_in_max, k, k, **options) * (c * k * k) ** -0.5
    weight = weight.contiguous(memory_format=torch.channels_last)
    bias = torch.randn(shape.c_out_max, **options)
    numbers = (shape.c_out, shape.c_in, shape.stride, k // 2, shape.upsample, None)
    op = torch.ops.ddsm_ext.sliced_conv2d
    return lambda algo: op(x, x2, weight, bias, *numbers, algo, conv_tf32(x))


def time_shape(shape: ConvShape, batch: int, multiprocessors: int) -> list[dict[str, Any]]:
    """Return a row for every choice that the kernels accept, and for the one they make (algo 0)."""
    run = calls_of(shape, batch)
    rows: dict[int, dict[str, Any]] = {0: {}}
    for tile in tiles() if work.ON_GPU else ():
        for splits in splits_of(shape, batch, tile, multiprocessors):
            rows[tile.algo + 100 * splits] = {"tile": tile.algo, "splits": splits}
    calls, refused = {}, {}
    for algo in rows:
        try:
            with printed_choices() as lines:
                run(algo)
        except RuntimeError as error:
            refused[algo] = str(error).splitlines()[0]
            continue
        # What the kernels multiply, in their own words.
        rows[algo] |= next((found for line in lines if (found := parsed(line))), {})
        rows[algo]["multiprocessors"] = multiprocessors
        calls[algo] = partial(run, algo)
    work.synchronise()
    setting = work.setting()
    timing = setting.timing | {"min_sample_ms": 2.0}
    times = setting.device.time_kernels(calls, rounds=ROUNDS, **timing)
    about = {"shape": str(shape), "batch": batch}
    timed = [
        {**about, "algo": algo, **rows[algo], "us": 1000 * times[algo].median_ms} for algo in times
    ]
    return timed + [{**about, "algo": algo, "refused": text} for algo, text in refused.items()]


def main(words: Sequence[str]) -> None:
    """Time, then fit; the file is replaced after each shape."""
    parser = argparse.ArgumentParser(prog="gpu_suite.sweep")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seconds", type=float, required=True)
    arguments = parser.parse_args(words)
    end_s = time.monotonic() + arguments.seconds - FIT_S
    about = work.setting().conditions(0)
    multiprocessors = about.get("multiprocessors", 1)
    rows: list[dict[str, Any]] = []
    jobs = [(b, s) for b in BATCHES for width in work.WIDTHS for s in shapes_of(width)]
    done = 0
    with torch.no_grad():
        for batch, shape in dict.fromkeys(jobs):
            if time.monotonic() > end_s:
                break
            rows += time_shape(shape, batch, multiprocessors)
            done += 1
            content = {"rows": rows, "conditions": about}
            work.report(arguments.json, content, {"shapes": done, "timings": len(rows)})
    found = fit([row for row in rows if "m" in row])
    if found is None:
        print("too few timings to fit the constants")
        return
    text = found.text(about.get("gpu", "the CPU"))
    print(text)
    content |= {"fit": found.to_dict(), "text": text}
    work.report(arguments.json, content, {"shapes": done, "timings": len(rows), **_short(found)})


def _short(found: Fit) -> dict[str, Any]:
    return {"off_the_best": {k: round(v, 3) for k, v in found.off_the_best.items()}}


if __name__ == "__main__":
    main(sys.argv[1:])
