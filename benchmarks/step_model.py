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

from gpu_suite.tiles import constant, tiles
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
    START_CLOCKS,
    STATISTICS_CLOCKS,
    Cost,
    costs_of,
    step_us,
)

ROOT = Path(__file__).resolve().parent.parent
BATCHES, WIDTHS = (1, 16, 128, 512), (1.0, 0.5, 0.25)
Steps = Mapping[tuple[int, float], Sequence[Cost]]  # of a batch at a width

RESULTS = ROOT / "benchmarks" / "results"
# What this project promises over dense weights under torch.compile with CUDA graphs.
TARGETS = {1: (1.8, 1.8, 1.8), 128: (1.25, 1.45, 1.7)}


@dataclass(frozen=True)
class Measured:
    """What `gpu_suite.sh` measured on an H200, of the results beside the benchmarks.

    Attributes:
        step_ms: batch and width -> milliseconds of a captured step.
        kernel_us: batch and width -> kernel, as `Cost.kernel` names it -> microseconds of a step.
        over_compiled: batch and width -> time of compiled dense weights by ours.
    """

    step_ms: Mapping[tuple[int, float], float]
    kernel_us: Mapping[tuple[int, float], Mapping[str, float]]
    over_compiled: Mapping[tuple[int, float], float]


def measured() -> Measured:
    """Read the committed results."""
    compared = json.loads((RESULTS / "nvidia-h200-bfloat16-inference.json").read_text())
    graphs = json.loads((RESULTS / "gpu" / "nvidia-h200-graphs.json").read_text())
    profile = json.loads((RESULTS / "gpu" / "nvidia-h200-profile.json").read_text())
    step_ms, over_compiled = {}, {}
    for result in compared["results"]:
        batch = result["conditions"]["batch"]
        for row in result["rows"]:
            step_ms[batch, row["width"]] = row["ours_ms"] * batch
            if "ratio_compiled" in row:
                over_compiled[batch, row["width"]] = row["ratio_compiled"]
    for batch, row in graphs["ms_a_step"].items():
        step_ms |= {(int(batch), float(width)): value["ms"] for width, value in row.items()}
    kernel_us: dict[tuple[int, float], dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for step in profile["tables"]:
        found = kernel_us[step["batch"], step["width"]]
        for kernel in step["kernels"]:
            found[_model_name(kernel["kernel"])] += kernel["us"]
    return Measured(step_ms, kernel_us, over_compiled)


def _model_name(kernel: str) -> str:
    """Return what the model calls a kernel of torch's profiler."""
    if "sdpa" in kernel:
        return "attention (torch's)"
    name = kernel.partition("<")[0].strip().removesuffix("_kernel")
    tile = re.search(r"(?:Hopper|Block)Tile<(\d+),", kernel)
    if tile is None or not name.startswith("conv"):
        return name
    of = tiles()[int(tile.group(1))]
    return f"{name} {of} (tile {tile.group(1)})"


@dataclass(frozen=True)
class Listed:
    """Launches of all steps, as the real host code makes them without a GPU.

    Attributes:
        steps: batch, width and calls of each, of launch_list.py.
        choices: what it printed for the convolutions, in order.
    """

    steps: Sequence[Mapping[str, Any]]
    choices: Sequence[str]

    def costs(self) -> dict[tuple[int, float], list[Cost]]:
        """Return the launches of each step."""
        choices = iter(self.choices)
        found = {
            (step["batch"], step["width"]): costs_of(step["calls"], choices) for step in self.steps
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


def step_rows(steps: Steps, found: Measured) -> list[list[object]]:
    """Return a row for each batch and width: predictions and what was measured."""
    rows: list[list[object]] = []
    for batch in BATCHES:
        for i, width in enumerate(WIDTHS):
            costs, ms = steps[batch, width], found.step_ms.get((batch, width))
            ratio, target = found.over_compiled.get((batch, width)), TARGETS.get(batch)
            rows.append([
                f"B = {batch}, w = {width:g}", len(costs),
                *(f"{step_us(costs, card) / 1000:.2f}" for card in CARDS),
                "" if ms is None else f"{ms:.2f}",
                "" if ratio is None else f"{ratio:.2f}x", f"{target[i]:g}x" if target else "",
            ])  # fmt: skip
    return rows


def kernel_rows(costs: Sequence[Cost], us: Mapping[str, float]) -> list[list[object]]:
    """Return a row for each kernel, the costliest first, one for the edges and one for all.

    Args:
        costs: of a step.
        us: what was measured of its kernels; what is not among them has a row of its own.
    """
    kernels: dict[str, list[Cost]] = defaultdict(list)
    for cost in costs:
        kernels[cost.kernel].append(cost)

    def row(
        name: str, of: Sequence[Cost], times: Sequence[float], seen: float | None
    ) -> list[object]:
        return [
            name, len(of), f"{sum(c.nbytes for c in of) / 1e6:.1f}",
            f"{sum(c.macs for c in of) / 1e9:.2f}", *(f"{value:.1f}" for value in times),
            "" if seen is None else f"{seen:.1f}",
        ]  # fmt: skip

    def spent(of: Sequence[Cost]) -> list[float]:
        return [sum(cost.us(card) for cost in of) for card in CARDS]

    names = sorted(kernels, key=lambda name: -spent(kernels[name])[-1])
    edges = sum(cost.edge_us for cost in costs)
    return [
        *(row(name, kernels[name], spent(kernels[name]), us.get(name)) for name in names),
        *([name, "", "", "", "", "", f"{us[name]:.1f}"] for name in us if name not in kernels),
        ["edges between them", len(costs), "", "", *[f"{edges:.1f}"] * 2, ""],
        row("all", costs, [step_us(costs, card) for card in CARDS], sum(us.values())),
    ]


_TEXT = """# A model of the CUDA step

What `benchmarks/step_model.py` predicts for a step of the CIFAR-10 network (bfloat16,
channels_last, replayed as a CUDA graph) on an H100 SXM and an H200, beside what an H200 took
(torch 2.11, CUDA 13.0; [results](../benchmarks/results/README.md)). Where they differ the model's
assumption is the first suspect.

{steps}

`launches`: of the kernels as they are. The last columns: the time of dense weights under
`torch.compile` with CUDA graphs, cuDNN's convolutions and cuBLAS's products, by ours, where the run
had the time to compile; and the target. Kernels as they were measured: the constants of
`csrc/cuda/tile_choice.h` were fitted to a sweep of the same run, and what that changes (a few tiles
at batch 1) was not measured again.

## By kernel

Names as torch's profiler shows them, without `_kernel`; "(tile 9)" is the number in
`HopperTile<9,` or `BlockTile<9,`. MB and GMAC: what the layers need, everything read or written
once; the microseconds are of all launches of the kernel, those measured by torch's profiler,
without what overlaps the kernel before.

{kernels}

## What the measurement says

- A step of K takes 650 to 750 clocks for a tile of 128 pixels whether it has 32, 64 or 128 columns,
  and 1240 for 256 pixels; the products of 128x128 need 512. So the sm_90a path seems to wait for
  its bulk copies to gather rows of pixels (im2col: each row for every tap), not for the bytes:
  narrow tiles, the ones of small widths, lose most. (From the sweep's convolutions at 32x32 and
  16x16, batch 128, less the launch.)
- A tile with its border could be fetched once for all taps: products of rows that begin anywhere
  within the swizzle's pattern are right with base offset 0 (`shifted-*` of the suite's atoms).
- At batch 1 and width 0.25, where there is next to nothing to compute, the 63 convolutions take 3.4
  to 9.2 us each, 6.9 in the median, and the 51 GroupNorms 3.5 to 5: launches are the step.
- GroupNorm moves 2.5 to 2.75 TB/s at 32x32 and width 1, of the 4.25 of a copy, and takes 8.5 us for
  1 MB at 4x4 with 256 channels, 4 us with 64: the statistics are likely the work there.

## What it assumes

- The launches, grids and tiles are real: the package's host code runs on an emulator that lists
  launches for {multiprocessors} multiprocessors
  (`python_tests/cuda_kernels/bindings/launch_list.py`), and prints the tile and the splits of each
  product.
- A convolution takes `kLaunchClocks` of `csrc/cuda/tile_choice.h` to begin and to end, another
  kernel {start} clocks; then the longer of its computation and its bytes through device memory:
  {rates}. At least {shortest} us. The clock is {clock} GHz.
- Convolutions compute for `estimated_clocks` of that header, of which {cache} bytes a clock and
  multiprocessor from the level-2 cache limit narrow tiles most. Where a source has fewer channels
  than a step of K (32 of 64, w = 0.25 at 32x32), the rest is neither fetched nor multiplied and
  counts as nothing; by the measurement such layers take longer. The first convolution counts as
  one step of the portable path's tile.
- GroupNorm reads and writes every number once, beside {norm_silu} instructions a number with SiLU
  and {norm_plain} without (counted in the sm_90a machine code of its row loop), at 128 a clock and
  multiprocessor, after {statistics} clocks for the statistics.
- Linears of many rows compute as a 64x64 tile of the portable path, of few rows with 2
  instructions a product.
- Attention is torch's; {attention:.0%} of the products' peak reproduces what the six of batch 128
  at width 1 took; a block takes 128 queries.
- An edge of the graph takes {edge} us, {overlapped:g} us where the later kernel may begin early
  (programmatic dependent launch).
- Every activation comes from device memory. What the kernel before left in the level-2 cache (50
  MB) comes faster: small batches and widths may be quicker than predicted, where the shortest
  kernel and the edges do not hide it.
- Not counted: refetched moments of GroupNorm's blocks, clocks lowered by the power limit further
  than that, and what the runner does outside of the graph.

## To compare another measurement

`benchmarks/gpu_suite.sh OUT_DIR graphs profile` gives both sides: `graphs` times whole steps as
users run them, with the copies of x, t and the result around the graph (three short launches and a
synchronisation shared by many steps), `profile` lists each kernel's calls and microseconds. A
kernel that is off tells which constant is: `conv_sm90` the header's (the suite's `sweep` fits
them), `group_norm_apply` the memory's rate or the statistics, everything at B = 1 the shortest
kernel and the edge. After a change of the kernels, of `tile_choice.h` or of the results, run the
script again; a test compares.
"""


def document(listed: Listed) -> str:
    """Return docs/cuda-step-model.md."""
    steps, found = listed.costs(), measured()
    head = ("kernel", "launches", "MB", "GMAC", "H100 us", "H200 us", "measured us")
    kernels = "\n\n".join(
        f"B = {batch}, w = {width:g}:\n\n"
        f"{table(head, kernel_rows(steps[batch, width], found.kernel_us[batch, width]))}"
        for batch in (128, 1)
        for width in (1.0, 0.25)
    )
    text = _TEXT.format(
        steps=table(
            ("step", "launches", "H100 ms", "H200 ms", "measured", "compiled/ours", "target"),
            step_rows(steps, found),
        ),
        kernels=kernels,
        multiprocessors=MULTIPROCESSORS,
        rates=" and ".join(f"{c.bytes_a_us / 1e6:g} TB/s ({c.name})" for c in (H100, H200)),
        start=START_CLOCKS,
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
