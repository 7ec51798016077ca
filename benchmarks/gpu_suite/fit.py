"""Fits the constants of csrc/cuda/tile_choice.h to what `sweep` timed.

    python -m gpu_suite.fit sweep.json

`Constants.cost` is `estimated_cost` of that header; a test holds them together.
"""

from __future__ import annotations

import json
import math
import re
import statistics
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpu_suite.tiles import HEADER, Tile, constant, tiles

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Problem:
    """A product of m x n outputs in k_steps steps of K."""

    m: int
    n: int
    k_steps: int
    multiprocessors: int

    def blocks(self, tile: Tile) -> int:
        """Tiles of all outputs."""
        return -(-self.m // tile.m) * -(-self.n // tile.n)

    def to_dict(self) -> dict[str, int]:
        """The fields."""
        return asdict(self)


@dataclass(frozen=True)
class Constants:
    """What the header calls kEfficiency, kFillSteps, kBytesPerStep and kReduceLaunch."""

    efficiency: tuple[float, ...]
    fill_steps: float
    bytes_per_step: float
    reduce_launch: float

    def cost(self, problem: Problem, tile: Tile, splits: int) -> float:
        """Steps of a 128x128 tile on one multiprocessor."""
        area = tile.m * tile.n / (128.0 * 128.0) / self.efficiency[tile.algo - 1]
        steps = -(-problem.k_steps // splits)
        rounds = -(-problem.blocks(tile) * splits // problem.multiprocessors)
        cost = rounds * (steps + self.fill_steps) * area
        if splits > 1:
            outputs = float(problem.m) * problem.n
            moved = outputs * 4 * (2 * splits + 1) / problem.multiprocessors
            cost += self.reduce_launch + moved / self.bytes_per_step
        return cost


def header_constants() -> Constants:
    """Return what the header has now."""
    found = re.search(r"kEfficiency\[\w+\]\s*=\s*\{([^}]*)\}", HEADER.read_text(encoding="utf-8"))
    assert found is not None
    efficiency = tuple(float(text) for text in found.group(1).split(","))
    names = ("kFillSteps", "kBytesPerStep", "kReduceLaunch")
    return Constants(efficiency, *(constant(name) for name in names))


@dataclass(frozen=True)
class Fit:
    """Fitted constants.

    `us_a_step` is what a step takes on each path; `error` the median of |time / estimate - 1|;
    `off_the_best` by how much choices are slower than the best that was timed, in the mean, by the
    fitted constants and by the header's; `best` a row for each path of each shape.
    """

    constants: Constants
    us_a_step: dict[str, float]
    error: float
    off_the_best: dict[str, float]
    best: list[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return asdict(self)

    def text(self, gpu: str) -> str:
        """Return lines to put into the header, and the best choices as comments."""
        c, off = self.constants, self.off_the_best
        efficiency = ", ".join(f"{value:.3g}" for value in c.efficiency)
        lines = [
            f"// Fitted to timings of an {gpu}: half of the estimates within {self.error:.0%}, "
            f"choices {off['fitted']:.0%}",
            f"// slower than the best that was timed (with the constants before: "
            f"{off['before']:.0%}).",
            f"constexpr double kEfficiency[kTileCount] = {{{efficiency}}};",
            f"constexpr double kFillSteps = {c.fill_steps:.3g};",
            f"constexpr double kBytesPerStep = {c.bytes_per_step:.4g};",
            f"constexpr double kReduceLaunch = {c.reduce_launch:.3g};",
        ]
        lines += [
            f"// {row['path']:<6} batch {row['batch']:>3} {row['shape']:<26} best "
            f"{row['tile']:>8} x{row['splits']:<2} {row['us']:8.1f} us, fitted choice "
            f"{row['off']:.0%} slower"
            for row in self.best
        ]
        return "\n".join(lines)


def fit(rows: Rows) -> Fit | None:
    """Return the constants nearest to the timings, by least squares of logarithms.

    Args:
        rows: of `sweep`: shape, batch, tile (an algo), splits, m, n, k_steps, multiprocessors, us.

    Returns:
        None where there are fewer timings than constants.
    """
    timed = [row for row in rows if "us" in row and row.get("tile")]
    used = sorted({row["tile"] for row in timed})
    if len(timed) < 3 * (len(used) + 5):
        return None
    before, every = header_constants(), tiles()
    paths = sorted({every[algo - 1].sm90a for algo in used})
    # Of each path the first tile has the header's efficiency; the rest is relative to it.
    fixed = {next(a for a in used if every[a - 1].sm90a == path) for path in paths}
    free = [algo for algo in used if algo not in fixed]

    def unpack(logs: np.ndarray) -> tuple[Constants, dict[bool, float]]:
        values = np.exp(logs)
        efficiency = list(before.efficiency)
        for algo, value in zip(free, values, strict=False):
            efficiency[algo - 1] = float(value)
        rest = [float(value) for value in values[len(free) :]]
        return Constants(tuple(efficiency), *rest[:3]), dict(zip(paths, rest[3:], strict=True))

    def residuals(logs: np.ndarray) -> np.ndarray:
        constants, units = unpack(logs)
        return np.array([
            math.log(units[every[row["tile"] - 1].sm90a] * _cost(constants, row) / row["us"])
            for row in timed
        ])  # fmt: skip

    units = [
        statistics.median(row["us"] / _cost(before, row) for row in timed
                          if every[row["tile"] - 1].sm90a == path)
        for path in paths
    ]  # fmt: skip
    start = [before.efficiency[algo - 1] for algo in free]
    start += [before.fill_steps, before.bytes_per_step, before.reduce_launch, *units]
    logs = _least_squares(residuals, np.log(np.array(start)))
    constants, of_path = unpack(logs)
    error = float(np.median(np.abs(np.expm1(-residuals(logs)))))
    best, off = _choices(timed, constants)
    _, off_before = _choices(timed, before)
    names = {False: "sm_80", True: "sm_90a"}
    return Fit(constants, {names[path]: unit for path, unit in of_path.items()}, error,
               {"fitted": off, "before": off_before}, best)  # fmt: skip


def _cost(constants: Constants, row: Mapping[str, Any]) -> float:
    problem = Problem(row["m"], row["n"], row["k_steps"], row["multiprocessors"])
    return constants.cost(problem, tiles()[row["tile"] - 1], row["splits"])


def _choices(timed: Rows, constants: Constants) -> tuple[list[dict[str, Any]], float]:
    """Return the best choice of each path of each shape, and how far off chosen ones are."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = defaultdict(list)
    for row in timed:
        path = "sm_90a" if tiles()[row["tile"] - 1].sm90a else "sm_80"
        groups[path, row["batch"], row["shape"]].append(row)
    best = []
    for (path, batch, shape), found in groups.items():
        fastest = min(found, key=lambda row: row["us"])
        chosen = min(found, key=lambda row: _cost(constants, row))
        best.append({
            "path": path, "batch": batch, "shape": shape, "us": fastest["us"],
            "tile": str(tiles()[fastest["tile"] - 1]), "splits": fastest["splits"],
            "off": chosen["us"] / fastest["us"] - 1,
        })  # fmt: skip
    return best, statistics.mean(row["off"] for row in best)


def _least_squares(residuals: Any, start: np.ndarray, rounds: int = 60) -> np.ndarray:
    """Levenberg and Marquardt with differences; steps of at most a factor of 2."""
    x, damping = start, 1e-2
    r = residuals(x)
    for _ in range(rounds):
        columns = []
        for i in range(len(x)):
            moved = x.copy()
            moved[i] += 1e-4
            columns.append((residuals(moved) - r) / 1e-4)
        jacobian = np.stack(columns, axis=1)
        normal = jacobian.T @ jacobian
        step = np.linalg.solve(
            normal + damping * np.diag(np.diag(normal) + 1e-6), -jacobian.T @ r
        ).clip(-math.log(2), math.log(2))
        found = residuals(x + step)
        if found @ found < r @ r:
            x, r, damping = x + step, found, damping / 3
        else:
            damping *= 4
    return x


def main() -> int:
    """Print the lines for the header."""
    content = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    found = fit(content["rows"])
    if found is None:
        print("too few timings to fit the constants")
        return 1
    print(found.text(content["conditions"].get("gpu", "the GPU")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
