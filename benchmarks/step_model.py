"""Predict the CIFAR-10 network's step on a Hopper GPU from its launches, and write the tables.

    python benchmarks/step_model.py --out docs/cuda-step-model.md
    python benchmarks/step_model.py --layers 0.25 128        # the costliest launches of a step

Builds the emulated host code (some CPU minutes) unless --library names what
`python -m cuda_kernels.bindings.library FOLDER` built.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import textwrap
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_suite.tiles import constant
from launch_costs import (
    ATTENTION_EFFICIENCY,
    CARDS,
    CLOCKS_A_US,
    EDGE_US,
    H100,
    H200,
    MULTIPROCESSORS,
    NORM_INSTRUCTIONS,
    OVERLAPPED_EDGE_US,
    SHORTEST_US,
    STATISTICS_CLOCKS,
    Cost,
    costs_of,
    step_us,
)

ROOT = Path(__file__).resolve().parent.parent
BATCHES, WIDTHS = (1, 16, 128, 512), (1.0, 0.5, 0.25)
Steps = Mapping[tuple[int, float], Sequence[Cost]]  # of a batch at a width

# Milliseconds of a step on an H200, by a review of the kernels before their first run: as they were
# then, and with all of its proposals.
REVIEW_NOW = {
    1: (1.5, 1.25, 1.07), 16: (1.9, 1.4, 1.1), 128: (6.1, 3.1, 1.9), 512: (21.4, 9.8, 5.1),
}  # fmt: skip
REVIEW_LAST = {
    1: (0.73, 0.69, 0.58), 16: (1.0, 0.76, 0.60), 128: (3.4, 1.6, 0.95), 512: (11.8, 4.6, 2.3),
}  # fmt: skip
REVIEW_LAUNCHES = {1: "280", 16: "260", 128: "242"}
# Its guess of the same network's dense weights under torch.compile with CUDA graphs: the middle of
# 1.0 to 1.1 at batch 1. And what this project promises over it.
COMPILED = {1: (1.05, 1.05, 1.05), 128: (4.1, 2.1, 1.3)}
TARGETS = {1: (1.8, 1.8, 1.8), 128: (1.25, 1.45, 1.7)}

CACHE_RATES = (25.0, 30.0, 40.0, 50.0)


@dataclass(frozen=True)
class Listed:
    """Launches of all steps, as the real host code makes them without a GPU.

    Attributes:
        steps: batch, width and calls of each, of launch_list.py.
        choices: what it printed for the convolutions, in order.
    """

    steps: Sequence[Mapping[str, Any]]
    choices: Sequence[str]

    def costs(self, cache_bytes: float | None = None) -> dict[tuple[int, float], list[Cost]]:
        """Return the launches of each step; cache_bytes: see `launch_costs.product_clocks`."""
        choices = iter(self.choices)
        found = {
            (step["batch"], step["width"]): costs_of(step["calls"], choices, cache_bytes)
            for step in self.steps
        }
        if next(choices, None) is not None:
            raise ValueError("launch_list.py printed more choices than it lists convolutions")
        return found


def listed_steps(library: Path) -> Listed:
    """List the launches of each step with a library of emulated kernels."""
    folder = ROOT / "python_tests" / "cuda_kernels" / "bindings"
    paths = [str(ROOT), str(ROOT / "python_tests")]
    environment = {name: value for name, value in os.environ.items() if name != "DDSM_SM90A"}
    environment |= {"DDSM_PRINT_CHOICES": "1", "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, str(folder / "launch_list.py"), str(library)]
    command += ["--batches", *map(str, BATCHES), "--widths", *map(str, WIDTHS)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"launch_list.py failed: {done.stderr[-2000:]}")
    found = json.loads(done.stdout)
    if found["multiprocessors"] != MULTIPROCESSORS:
        raise ValueError(f"the list is of {found['multiprocessors']} multiprocessors")
    choices = [line for line in done.stderr.splitlines() if "ddsm_ext: sliced_conv2d " in line]
    return Listed(found["steps"], choices)


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table in Markdown; figures to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def step_rows(steps: Steps) -> list[list[object]]:
    """Return a row for each batch and width: predictions beside the review's."""
    rows: list[list[object]] = []
    for batch in BATCHES:
        for i, width in enumerate(WIDTHS):
            costs = steps[batch, width]
            launches = f" ({REVIEW_LAUNCHES[batch]})" if batch in REVIEW_LAUNCHES else ""
            rows.append([
                f"B = {batch}, w = {width:g}", len(costs),
                *(f"{step_us(costs, card) / 1000:.2f}" for card in CARDS),
                f"{REVIEW_NOW[batch][i]:g}{launches}", f"{REVIEW_LAST[batch][i]:g}",
            ])  # fmt: skip
    return rows


def target_rows(steps: Steps) -> list[list[object]]:
    """Return a row for each target."""
    rows: list[list[object]] = []
    for batch, compiled in COMPILED.items():
        for i, width in enumerate(WIDTHS):
            costs, target = steps[batch, width], TARGETS[batch][i]
            ratio = 1000 * compiled[i] / step_us(costs, H200)
            rows.append([
                f"B = {batch}, w = {width:g}", f"{compiled[i]:g}", f"{ratio:.2f}x",
                f"{target:g}x", "reached" if ratio >= target else "missed",
            ])  # fmt: skip
    return rows


def verdict(steps: Steps) -> str:
    """Return which targets would be missed, in words."""
    found = [
        f"the step would **miss {row[3]} at {row[0]}** (predicted: {row[2]})"
        for row in target_rows(steps)
        if row[4] == "missed"
    ]
    return f"By this model and that guess {'; '.join(found) or 'no target would be missed'}."


def cache_rows(by_rate: Mapping[float, Steps]) -> list[list[object]]:
    """Return a row for each rate of the level-2 cache: times and ratios at batch 128."""
    rows: list[list[object]] = []
    for rate, steps in by_rate.items():
        row: list[object] = [f"{rate:g} ({rate * MULTIPROCESSORS * CLOCKS_A_US / 1e6:.1f} TB/s)"]
        for compiled, width in zip(COMPILED[128], WIDTHS, strict=True):
            costs = steps[128, width]
            ms = step_us(costs, H200) / 1000
            row.append(f"{ms:.2f} ms ({compiled / ms:.2f}x)")
        rows.append(row)
    return rows


def kernel_rows(costs: Sequence[Cost]) -> list[list[object]]:
    """Return a row for each kernel, the costliest first, one for the edges and one for all."""
    kernels: dict[str, list[Cost]] = defaultdict(list)
    for cost in costs:
        kernels[cost.kernel].append(cost)
    total = step_us(costs, H200)

    def row(name: str, of: Sequence[Cost], us: Sequence[float]) -> list[object]:
        return [
            name, len(of), f"{sum(c.nbytes for c in of) / 1e6:.1f}",
            f"{sum(c.macs for c in of) / 1e9:.2f}", *(f"{value:.1f}" for value in us),
            f"{us[-1] / total:.1%}",
        ]  # fmt: skip

    def spent(of: Sequence[Cost]) -> list[float]:
        return [sum(cost.us(card) for cost in of) for card in CARDS]

    names = sorted(kernels, key=lambda name: -spent(kernels[name])[-1])
    edges = sum(cost.edge_us for cost in costs)
    return [
        *(row(name, kernels[name], spent(kernels[name])) for name in names),
        ["edges between them", len(costs), "", "", *[f"{edges:.1f}"] * 2, f"{edges / total:.1%}"],
        row("all", costs, [step_us(costs, card) for card in CARDS]),
    ]


_TEXT = """# A model of the CUDA step

What `benchmarks/step_model.py` predicts for a step of the CIFAR-10 network (bfloat16,
channels_last, replayed as a CUDA graph) on an H100 SXM and an H200. **Nothing here was measured**:
the kernels have not run on a GPU yet. A measurement is to be compared with it, and where they
differ the model's assumption is the first suspect.

{steps}

`launches`: of the kernels as they are. The review's columns are carried over from a review of the
kernels before their first run (H200; launches of that time in brackets): its estimate of the
kernels as it found them, and with everything done that it proposed.

Targets are ratios over dense weights under `torch.compile` with CUDA graphs. No measurement of
that exists either; the milliseconds are the review's guess for an H200 (its 1.0 to 1.1 at batch 1
in the middle).

{targets}

{verdict} A ratio is a guess divided by a model that is hardly better than the review's own +-30 %,
so none of this is sure: the suite's `compiled` stages replace it.

No constant decides more than the bytes that a multiprocessor gets from the level-2 cache, in which
narrow tiles live: {cache} a clock by the header. te42kyfo's gpu-benches (gpu-l2-cache) read 9.7
TB/s there on an H200 from 10 to 40 MB, by loads alone, which is 42 at {clock} GHz or 37 at 1.98,
and 6.9 TB/s on an H100 PCIe of 114 multiprocessors, 34 at {clock} GHz. With the same tiles, on an
H200 at B = 128:

{rates_of_cache}

## By kernel

Names as torch's profiler shows them, without `_kernel`; "(tile 9)" is the number in
`HopperTile<9,` or `BlockTile<9,`. MB and GMAC: what the layers need, everything read or written
once; the microseconds are of all launches of the kernel.

{kernels}

## What it assumes

- The launches, grids and tiles are real: the package's host code runs on an emulator that lists
  launches for {multiprocessors} multiprocessors
  (`python_tests/cuda_kernels/bindings/launch_list.py`), and prints the tile and the splits of each
  product.
- A launch takes `kLaunchClocks` of `csrc/cuda/tile_choice.h`, then the longer of its computation
  and its bytes through device memory: {rates}. At least {shortest} us (the review's). The clock is
  {clock} GHz.
- Convolutions compute for `estimated_clocks` of that header, of which {cache} bytes a clock and
  multiprocessor from the level-2 cache limit narrow tiles most; nothing of it is fitted yet. Where
  a source has fewer channels than a step of K (32 of 64, w = 0.25 at 32x32), the rest is neither
  fetched nor multiplied and counts as nothing; how fast bulk copies bring such half rows is not
  known. The first convolution counts as one step of the portable path's tile.
- GroupNorm reads and writes every number once, beside {norm_silu} instructions a number with SiLU
  and {norm_plain} without (counted in the sm_90a machine code of its row loop), at 128 a clock and
  multiprocessor, after {statistics} clocks for the statistics.
- Linears of many rows compute as a 64x64 tile of the portable path, of few rows with 2
  instructions a product.
- Attention is torch's; {attention:.0%} of the products' peak reproduces the review's 80 us for the
  six of batch 128 at width 1; a block takes 128 queries.
- An edge of the graph takes {edge} us (the review's), {overlapped} us where the later kernel may
  begin early (programmatic dependent launch; the review expects 0.4 to 0.8 us less).
- Every activation comes from device memory. What the kernel before left in the level-2 cache (50
  MB) comes faster: small batches and widths may be quicker than predicted, where the shortest
  kernel and the edges do not hide it.
- Not counted: refetched moments of GroupNorm's blocks, clocks lowered by the power limit further
  than that, and what the runner does outside of the graph.

## To compare a measurement

`benchmarks/gpu_suite.sh OUT_DIR graphs profile` gives both sides. `graphs` times whole steps as
users run them, with the copies of x, t and the result around the graph (three short launches and a
synchronisation shared by many steps): put its milliseconds beside the first table. `profile` lists
each kernel's calls and microseconds at B = 128 and 1: put them beside the tables by kernel,
template instances of one tile added up; the sum of its kernels is less than a step by the edges. A
kernel that is off tells which constant is: `conv_sm90` the header's (the suite's `sweep` fits
them), `group_norm_apply` the memory's rate or the statistics, everything at B = 1 the shortest
kernel and the edge. After a change of the kernels or of `tile_choice.h`, run the script again; a
test compares.
"""


def document(listed: Listed) -> str:
    """Return docs/cuda-step-model.md."""
    steps = listed.costs()
    head = ("kernel", "launches", "MB", "GMAC", "H100 us", "H200 us", "of the H200's step")
    kernels = "\n\n".join(
        f"B = {batch}, w = {width:g}:\n\n{table(head, kernel_rows(steps[batch, width]))}"
        for batch in (128, 1)
        for width in (1.0, 0.25)
    )
    text = _TEXT.format(
        steps=table(
            ("step", "launches", "H100 ms", "H200 ms", "review, as it was", "review, at best"),
            step_rows(steps),
        ),
        targets=table(
            ("step", "compiled ms (guess)", "predicted, H200", "target", "result"),
            target_rows(steps),
        ),
        verdict=verdict(steps),
        kernels=kernels,
        rates_of_cache=table(
            ("bytes a clock", *(f"w = {width:g}" for width in WIDTHS)),
            cache_rows({rate: listed.costs(rate) for rate in CACHE_RATES}),
        ),
        multiprocessors=MULTIPROCESSORS,
        rates=" and ".join(f"{c.bytes_a_us / 1e6:g} TB/s ({c.name})" for c in (H100, H200)),
        shortest=SHORTEST_US,
        clock=CLOCKS_A_US / 1000,
        cache=f"{constant('kCacheBytes'):g}",
        statistics=STATISTICS_CLOCKS,
        norm_silu=NORM_INSTRUCTIONS[True],
        norm_plain=NORM_INSTRUCTIONS[False],
        attention=ATTENTION_EFFICIENCY,
        edge=EDGE_US,
        overlapped=OVERLAPPED_EDGE_US,
    )
    return "\n\n".join(map(_wrapped, text.strip().split("\n\n"))) + "\n"


def _wrapped(block: str) -> str:
    if block.startswith(("|", "#")):
        return block
    lines: list[str] = []
    for item in re.split(r"\n(?=- )", block):
        indent = "  " if item.startswith("- ") else ""
        lines += textwrap.wrap(
            " ".join(item.split()), 100, subsequent_indent=indent, break_long_words=False,
            break_on_hyphens=False,
        )  # fmt: skip
    return "\n".join(lines)


def costliest(costs: Sequence[Cost], most: int = 10) -> str:
    """Return the layers that take longest, those of one shape together."""
    layers: dict[tuple[str, str], list[Cost]] = defaultdict(list)
    for cost in costs:
        layers[cost.kernel, cost.what].append(cost)
    rows = sorted(layers.items(), key=lambda row: -sum(c.us(H200) for c in row[1]))
    return "\n".join(
        f"{sum(c.us(H200) for c in of):8.1f} us  {len(of):3} x {of[0].us(H200):7.2f}  "
        f"{kernel}: {what}"
        for (kernel, what), of in rows[:most]
    )


def main(words: Sequence[str]) -> None:
    """Write the document, or print layers."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, help="the document's file; default: print it")
    parser.add_argument("--layers", nargs=2, type=float, metavar=("WIDTH", "BATCH"))
    parser.add_argument("--library", type=Path)
    arguments = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as folder:
        library = arguments.library
        if library is None:
            sys.path.insert(0, str(ROOT / "python_tests"))
            from cuda_kernels.bindings.library import build

            library = build(Path(folder))
        listed = listed_steps(library.resolve())
    if arguments.layers is not None:
        width, batch = arguments.layers
        print(costliest(listed.costs()[int(batch), width]))
    elif arguments.out is None:
        print(document(listed), end="")
    else:
        arguments.out.write_text(document(listed), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
