"""What a launch of a step costs by its shapes: bytes, products, clocks; from these microseconds.

The launches are those that the host code makes (python_tests/cuda_kernels/bindings/launch_list.py),
the clocks of products those that csrc/cuda/tile_choice.h estimates for the tile that it chose.
Constants said to be measured are of an H200 (results/gpu).
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from gpu_suite.tiles import compiled, constant, parsed, tiles

MULTIPROCESSORS = 132  # of an H100 SXM and of an H200
# Under a load of tensor cores, a guess: below the 1.83 GHz that the data sheet's 989 TFLOP/s stand
# for, as large products run into the limit of 700 W.
CLOCKS_A_US = 1755
START_CLOCKS = 1500  # of a kernel other than a convolution, until its work begins: a guess
SHORTEST_US = 1.2  # of a kernel, however little it does: the embedding's, measured
# From a kernel's end to the next one's start in a graph. Measured: at batch 1 a step takes as long
# as its kernels together, and 0.77 us more a launch if they may not overlap.
EDGE_US, OVERLAPPED_EDGE_US = 0.8, 0.0
LANES_A_CLOCK = 128  # of a multiprocessor: four schedulers issue for 32 lanes each
# Of the row loop of group norm's apply for bf16, from its machine code (sm_90a; test_compile.py
# allows 12).
NORM_INSTRUCTIONS = {True: 9.4, False: 4.5}  # with SiLU, without
# Until a block has its groups' statistics from the moments: two trips to memory, sums in double,
# two barriers. By the 4.05 us that were measured at batch 1; other blocks of the multiprocessor
# hide it afterwards.
STATISTICS_CLOCKS = 5600
LINEAR_INSTRUCTIONS = 2  # of linear_rows, a product: FMA, and its share of loads and conversions
LINEAR_IMAGES = 8  # rows of x that read a weight together there
# Of the products' peak, in torch's attention: by the 141 us of the six of batch 128, width 1.
ATTENTION_EFFICIENCY = 0.35
ATTENTION_ROWS = 128  # queries of a block
PRODUCTS_A_CLOCK = 2048  # bf16 multiply-adds of a multiprocessor's tensor cores
NUMBER_BYTES, MOMENTS_BYTES, MOMENT_PIXELS = 2, 8, 64


@dataclass(frozen=True)
class Card:
    """A GPU: its name and the bytes that pass to or from its memory in a microsecond."""

    name: str
    bytes_a_us: float


# 3.35 TB/s in the data sheet, of which copies are known to reach 87 %.
H100 = Card("H100", 2.9e6)
# 4.8 TB/s in the data sheet; 4.3 measured with a copy.
H200 = Card("H200", 4.3e6)
CARDS = (H100, H200)


@dataclass(frozen=True)
class Cost:
    """A launch.

    Attributes:
        kernel: its name as torch's profiler shows it without "_kernel", and its tile.
        what: shapes, in words.
        nbytes: what it reads of memory and writes there, everything once.
        macs: multiply-adds that the layer needs.
        clocks: of a multiprocessor, to launch and to compute if memory is no limit.
        edge_us: from the end of the launch before.
    """

    kernel: str
    what: str
    nbytes: int
    macs: int
    clocks: float
    edge_us: float

    def us(self, card: Card) -> float:
        """Return the time from its start to its end."""
        memory = self.nbytes / card.bytes_a_us + START_CLOCKS / CLOCKS_A_US
        return max(SHORTEST_US, memory, self.clocks / CLOCKS_A_US)


_ENTRY = """
#include "tile_choice.h"
extern "C" double clocks(const long* of, int hopper, int tile, int splits) {
  ddsm::GemmProblem p{};
  p.math = ddsm::Math::kBFloat16;
  p.m = of[0], p.n = of[1], p.k_steps = of[2], p.parts = of[3], p.batches = of[4];
  p.k_padding = of[5], p.multiprocessors = of[6], p.aligned = true, p.hopper = hopper != 0;
  return ddsm::estimated_clocks(p, {tile, splits});
}
"""


@cache
def _header() -> ctypes.CDLL:
    """Compile the header."""
    loaded = compiled(_ENTRY)
    loaded.clocks.restype = ctypes.c_double
    return loaded


def product_clocks(
    m: int, n: int, k_steps: int, *, tile: tuple[int, int], sm90a: bool, splits: int = 1,
    parts: int = 1, batches: int = 1, k_padding: int = 0,
) -> float:  # fmt: skip
    """Return what tile_choice.h estimates for a product on MULTIPROCESSORS."""
    numbers = (ctypes.c_long * 7)(m, n, k_steps, parts, batches, k_padding, MULTIPROCESSORS)
    clocks = _header().clocks(numbers, int(sm90a), _index(tile, sm90a), splits)
    return float(clocks)


def _index(tile: tuple[int, int], sm90a: bool) -> int:
    """Return its place in kTiles."""
    (index,) = [t.algo - 1 for t in tiles() if (t.m, t.n) == tile and t.sm90a == sm90a]
    return index


def _named(tile: tuple[int, int], sm90a: bool) -> str:
    return f"{tile[0]}x{tile[1]} (tile {_index(tile, sm90a)})"


def _numel(tensor: Mapping[str, Any] | None) -> int:
    return math.prod(tensor["shape"]) if tensor else 0


def _conv2d_products(
    columns: int, pixels: int, choice: Mapping[str, Any] | None, parts: int
) -> tuple[str, float]:
    """Return the kernel and its clocks."""
    if choice is None:  # the first convolution: one step of K, a tile as wide as its output
        tile = (128, 128) if columns > 64 else (128, 64) if columns > 32 else (64, 32)
        clocks = product_clocks(pixels, columns, 1, tile=tile, sm90a=False)
        return f"conv_head {_named(tile, False)}", clocks
    tile, hopper = (choice["tile_m"], choice["tile_n"]), choice["sm90a"]
    names = ("m", "n", "k_steps", "k_padding", "batches", "sm90a", "splits")
    sizes = {name: choice[name] for name in names}
    clocks = product_clocks(**sizes, parts=parts, tile=tile)
    return f"conv{'_sm90' if hopper else ''} {_named(tile, hopper)}", clocks


def _conv2d(arguments: Sequence[Any], choice: Mapping[str, Any] | None) -> tuple[Any, ...]:
    """See schema.cpp for the arguments."""
    x, x2, weights, _, c_out, _, stride, _, upsample, shift, residual, shortcut = arguments[:12]
    kernel = weights[0]["shape"][-1]
    n, _, height, width = x["shape"]
    height, width = (size * (2 if upsample else 1) // stride for size in (height, width))
    pixels = n * height * width
    c_in = sum(t["shape"][1] for t in (x, x2) if t)
    deep = sum(t["shape"][1] for t in shortcut[2:])  # channels of the shortcut
    columns = len(weights) * c_out
    products = columns * (kernel**2 * c_in + deep)  # numbers of weights, and products of a pixel
    moments = pixels // min(MOMENT_PIXELS, height * width) * c_out if arguments[13] else 0
    numbers = _numel(x) + _numel(x2) + sum(_numel(t) for t in shortcut[2:])
    numbers += products + columns + (c_out if shortcut else 0)  # weights and biases
    numbers += _numel(shift) + _numel(residual) + pixels * columns
    nbytes = NUMBER_BYTES * numbers + MOMENTS_BYTES * moments
    name, clocks = _conv2d_products(columns, pixels, choice, len(weights))
    splits = f", {choice['splits']} splits" if choice and choice["splits"] > 1 else ""
    what = (
        f"{kernel}x{kernel}, {c_in} to {columns} at {height}x{width}"
        f"{f' and 1x1 of {deep}' if deep else ''}{', enlarged' if upsample else ''}"
        f"{', stride 2' if stride == 2 else ''}{splits}"
    )
    return name, what, nbytes, pixels * products, clocks


def _norm(arguments: Sequence[Any], _: Any) -> tuple[Any, ...]:
    x, x2, silu, down = (arguments[i] for i in (0, 1, 7, 12))
    elements = _numel(x) + _numel(x2)
    pixels = x["shape"][2] * x["shape"][3]
    moments = elements // min(MOMENT_PIXELS, pixels)
    channels = elements // (x["shape"][0] * pixels)
    issue = elements * NORM_INSTRUCTIONS[silu] / (LANES_A_CLOCK * MULTIPROCESSORS)
    clocks = START_CLOCKS + STATISTICS_CLOCKS + issue
    written = elements // 4 if down else elements
    rows = 2 * channels + sum(map(_numel, arguments[10:12]))  # parameters, scale and shift
    nbytes = NUMBER_BYTES * (elements + written + rows) + MOMENTS_BYTES * moments
    what = f"{channels} at {x['shape'][2]}x{x['shape'][3]}{', halved' if down else ''}"
    return "group_norm_apply", what, nbytes, 0, clocks


def _layer_norm(arguments: Sequence[Any], _: Any) -> tuple[Any, ...]:
    x, weight, _, _, scale, shift = arguments[:6]
    _, *tokens, c = x["shape"]
    rows = (2 * c if weight else 0) + _numel(scale) + _numel(shift)
    nbytes = NUMBER_BYTES * (2 * _numel(x) + rows)
    what = f"{c} of {math.prod(tokens)} tokens"
    return "layer_norm", what, nbytes, 0, START_CLOCKS


def _resample(arguments: Sequence[Any], _: Any) -> tuple[Any, ...]:
    x, up, _, _, *more = arguments
    taps, _, residual = more or (2, False, None)
    elements, (_, c, height, width) = _numel(x), x["shape"]
    nbytes = NUMBER_BYTES * ((elements * 5 if up else elements + elements // 4) + _numel(residual))
    filtered = f" by {taps} taps" if taps > 2 else ""
    what = f"{c} at {height}x{width}, {'enlarged' if up else 'halved'}{filtered}"
    return "resample", what, nbytes, 0, START_CLOCKS


def _linear(arguments: Sequence[Any], kernel: str) -> tuple[Any, ...]:
    x, _, _, c_out = arguments[:4]
    rows, c_in = x["shape"]
    columns = sum(c_out)
    nbytes = NUMBER_BYTES * (rows * c_in + columns * (c_in + 1) + rows * columns)
    macs = rows * c_in * columns
    if kernel == "linear_tile":
        steps = -(-c_in * NUMBER_BYTES // int(constant("kStepBytes")))
        clocks = product_clocks(rows, columns, steps, tile=(64, 64), sm90a=False)
    else:
        # A block multiplies for LINEAR_IMAGES rows, there or not.
        full = rows if rows == 1 else -(-rows // LINEAR_IMAGES) * LINEAR_IMAGES
        issue = LINEAR_INSTRUCTIONS * full * c_in * columns / (LANES_A_CLOCK * MULTIPROCESSORS)
        clocks = START_CLOCKS + issue
    return kernel, f"{c_in} to {columns}", nbytes, macs, clocks


def _attention(arguments: Sequence[Any], _: Any) -> tuple[Any, ...]:
    n, heads, t, d = arguments[0]["shape"]
    rounds = -(-n * heads * -(-t // ATTENTION_ROWS) // MULTIPROCESSORS)
    of_block = 2 * ATTENTION_ROWS * t * d / (PRODUCTS_A_CLOCK * ATTENTION_EFFICIENCY)
    clocks = START_CLOCKS + rounds * of_block
    nbytes = NUMBER_BYTES * 4 * n * heads * t * d
    macs = 2 * n * heads * t * t * d
    return "attention (torch's)", f"{t} of {d}", nbytes, macs, clocks


def _embedding(arguments: Sequence[Any], _: Any) -> tuple[Any, ...]:
    numbers = arguments[0]["shape"][0] * arguments[1]
    clocks = START_CLOCKS
    return "sinusoidal", f"{arguments[1]}", NUMBER_BYTES * numbers, 0, clocks


_COSTS = {
    "resample": _resample,
    "sinusoidal_embedding": _embedding,
    "sliced_attention": _attention,
    "sliced_conv2d_fused": _conv2d,
    "sliced_group_norm_apply": _norm,
    "sliced_layer_norm_apply": _layer_norm,
    "sliced_linear_fused": _linear,
}


def costs_of(calls: Sequence[Mapping[str, Any]], choices: Iterator[str]) -> list[Cost]:
    """Return a step's launches.

    Args:
        calls: of launch_list.py.
        choices: what DDSM_PRINT_CHOICES printed, one line a convolution.
    """
    found: list[Cost] = []
    before = None
    for call in calls:
        op = call["op"].removeprefix("ddsm_ext::")
        (launch,) = call["launches"]
        kernel = launch["kernel"]
        about: Any = kernel
        if op == "sliced_conv2d_fused":
            about = parsed(line := next(choices, "none"))
            if (about is None) != (kernel == "conv_head"):
                raise ValueError(f"a launch of {kernel} stands beside the choice '{line}'")
        # torch's kernels let none begin early.
        overlapped = launch["overlaps"] and before != "sliced_attention"
        edge_us = OVERLAPPED_EDGE_US if overlapped else EDGE_US
        found.append(Cost(*_COSTS[op](call["arguments"], about), edge_us))
        before = op
    return found


def step_us(costs: Sequence[Cost], card: Card) -> float:
    """Return the time of a step that is replayed as a graph."""
    return sum(cost.us(card) + cost.edge_us for cost in costs)
