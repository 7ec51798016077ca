"""Fits the constants of csrc/cuda/tile_choice.h to what `sweep` timed.

    python -m gpu_suite.fit sweep.json

The estimates are the header's own: it is compiled with its constants in an array. Those are what it
declares as `constexpr double` with plain numbers.
"""

from __future__ import annotations

import ctypes
import json
import math
import re
import statistics
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from gpu_suite.tiles import HEADER, compiled, tiles

Rows = Sequence[Mapping[str, Any]]
_PROBLEM = ("m", "n", "k_steps", "k_padding", "batches", "multiprocessors")
_PRIOR = 0.02  # what no timing tells stays where it was
_NUMBER = r"[0-9]+(?:\.[0-9]*)?"
_DECLARED = re.compile(
    rf"constexpr double (k\w+\[\w+\]\s*=\s*\{{[^}}]*\}}|k\w+ = {_NUMBER}(?:, k\w+ = {_NUMBER})*);"
)
_WRAPPER = """
extern "C" void set_constants(const double* values, int count) {{
  for (int i = 0; i < count; ++i) fitted[i] = values[i];
}}
extern "C" void costs(const long* rows, int count, double* found) {{
  for (int i = 0; i < count; ++i, rows += 9) {{
    ddsm::GemmProblem p{{}};
    p.name = "";
    p.m = rows[0];
    p.n = rows[1];
    p.k_steps = rows[2];
    p.batches = rows[4];
    p.multiprocessors = static_cast<int>(rows[5]);
    p.aligned = true;
    p.hopper = rows[6] != 0;
    {more}
    found[i] = ddsm::{estimate}(
        p, {{static_cast<int>(rows[7]), static_cast<int>(rows[8])}});
  }}
}}
"""


class HeaderModel:
    """The header's estimates with its constants as numbers that can be set."""

    def __init__(self, text: str | None = None) -> None:
        self.text = HEADER.read_text(encoding="utf-8") if text is None else text
        self.declared = [match.group(1) for match in _DECLARED.finditer(self.text)]
        self.values = np.array([float(v) for d in self.declared for v in _numbers(d)])

    def source(self) -> str:
        """Return C++ of which `costs` and `set_constants` can be called."""
        names, at = [], 0
        for declaration in self.declared:
            count = len(_numbers(declaration))
            if "[" in declaration:
                names.append(f"#define {declaration.partition('[')[0]} (fitted + {at})")
            else:
                scalars = re.findall(r"k\w+", declaration)
                names += [f"#define {name} (fitted[{at + i}])" for i, name in enumerate(scalars)]
            at += count
        text = _DECLARED.sub("", self.text).replace("#pragma once", "")
        text = re.sub(r"constexpr double (\w+)\(", r"inline double \1(", text)
        estimate = re.search(r"inline double (estimated_\w+)\(const GemmProblem&", text)
        assert estimate is not None, f"{HEADER} estimates nothing"
        more = "\n    ".join(
            line
            for line in ("p.parts = 1;", "p.k_padding = rows[3];")
            if re.search(rf"\bint64_t {line[2:].partition(' ')[0]};", text)
        )
        wrapper = _WRAPPER.format(more=more, estimate=estimate.group(1))
        return f"static double fitted[{at or 1}];\n" + "\n".join(names) + "\n" + text + wrapper

    @cached_property
    def _library(self) -> ctypes.CDLL:
        return compiled(self.source())

    def costs(self, rows: Rows, values: np.ndarray) -> np.ndarray:
        """Return the estimate of each row with these values of the constants."""
        numbers = np.array(
            [
                [*(row[name] for name in _PROBLEM), int(tiles()[row["tile"] - 1].sm90a),
                 row["tile"] - 1, row["splits"]]
                for row in rows
            ],
            dtype=np.int64,
        )  # fmt: skip
        found, values = np.empty(len(rows)), np.ascontiguousarray(values, dtype=np.float64)
        address = ctypes.c_void_p
        self._library.set_constants(address(values.ctypes.data), len(values))
        self._library.costs(address(numbers.ctypes.data), len(rows), address(found.ctypes.data))
        return found

    def lines(self, values: np.ndarray) -> list[str]:
        """Return the declarations with these values, in the header's order."""
        left = iter(values)
        return [
            "constexpr double "
            + re.sub(
                rf"(?<=[={{,])(\s*){_NUMBER}", lambda m: m.group(1) + _written(next(left)), text
            )
            + ";"
            for text in self.declared
        ]


def _written(value: float) -> str:
    text = f"{value:.4g}"
    return f"{value:.0f}" if "e" in text else text


def _numbers(declaration: str) -> list[str]:
    return re.findall(rf"(?<=[={{,])\s*({_NUMBER})", declaration)


@dataclass(frozen=True)
class Fit:
    """Fitted constants.

    `lines` are the header's declarations with new values; `us_a_unit` is what a unit of an estimate
    takes on each path; `error` the median of |estimate / time - 1|; `off_the_best` by how much
    choices are slower than the best that was timed, in the mean, with the fitted constants and with
    those before; `best` a row for each path of each shape.
    """

    lines: list[str]
    us_a_unit: dict[str, float]
    error: float
    off_the_best: dict[str, float]
    best: list[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return asdict(self)

    def text(self, gpu: str) -> str:
        """Return lines to put into the header, and the best choices as comments."""
        off = self.off_the_best
        return "\n".join([
            f"// Fitted to timings of an {gpu}: half of the estimates within {self.error:.0%},",
            f"// choices {off['fitted']:.0%} slower than the best that was timed (before: "
            f"{off['before']:.0%}).",
            *self.lines,
            *(
                f"// {row['path']:<6} batch {row['batch']:>3} {row['shape']:<26} best "
                f"{row['tile']:>8} x{row['splits']:<2} {row['us']:8.1f} us, fitted choice "
                f"{row['off']:.0%} slower"
                for row in self.best
            ),
        ])  # fmt: skip


def fit(rows: Rows) -> Fit | None:
    """Return the constants nearest to the timings, by least squares of logarithms.

    Args:
        rows: of `sweep`: shape, batch, tile (an algo), splits, m, n, k_steps, batches,
            multiprocessors, us.

    Returns:
        None where there are few timings beside the constants.
    """
    model = HeaderModel()
    timed = [row for row in rows if "us" in row and row.get("tile")]
    if len(timed) < 3 * len(model.values):
        return None
    us = np.log([row["us"] for row in timed])
    hopper = np.array([tiles()[row["tile"] - 1].sm90a for row in timed])
    paths = [path for path in (False, True) if (hopper == path).any()]
    count, start = len(model.values), np.log(model.values)
    before = np.log(model.costs(timed, model.values))
    units = [float(np.median((us - before)[hopper == path])) for path in paths]

    def residuals(logs: np.ndarray) -> np.ndarray:
        of_path = dict(zip(paths, logs[count:], strict=True))
        scale = np.array([of_path[bool(path)] for path in hopper])
        estimates = np.log(model.costs(timed, np.exp(logs[:count])))
        return np.concatenate([estimates + scale - us, _PRIOR * (logs[:count] - start)])

    logs = _least_squares(residuals, np.concatenate([start, units]))
    costs = model.costs(timed, np.exp(logs[:count]))
    best, off = _choices(timed, costs)
    _, off_before = _choices(timed, np.exp(before))
    names = {False: "sm_80", True: "sm_90a"}
    return Fit(
        model.lines(np.exp(logs[:count])),
        {names[p]: math.exp(unit) for p, unit in zip(paths, logs[count:], strict=True)},
        float(np.median(np.abs(np.expm1(residuals(logs)[: len(timed)])))),
        {"fitted": off, "before": off_before},
        best,
    )


def _choices(timed: Rows, costs: np.ndarray) -> tuple[list[dict[str, Any]], float]:
    """Return the best choice of each path of each shape, and how far off chosen ones are."""
    groups: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for i, row in enumerate(timed):
        path = "sm_90a" if tiles()[row["tile"] - 1].sm90a else "sm_80"
        groups[path, row["batch"], row["shape"]].append(i)
    best = []
    for (path, batch, shape), found in groups.items():
        fastest = timed[min(found, key=lambda i: timed[i]["us"])]
        chosen = timed[min(found, key=lambda i: costs[i])]
        best.append({
            "path": path, "batch": batch, "shape": shape, "us": fastest["us"],
            "tile": str(tiles()[fastest["tile"] - 1]), "splits": fastest["splits"],
            "off": chosen["us"] / fastest["us"] - 1,
        })  # fmt: skip
    return best, statistics.mean(row["off"] for row in best)


def _least_squares(residuals: Any, start: np.ndarray, rounds: int = 80) -> np.ndarray:
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


def main(words: Sequence[str]) -> int:
    """Print the lines for the header."""
    content = json.loads(Path(words[0]).read_text(encoding="utf-8"))
    found = fit(content["rows"])
    if found is None:
        print("too few timings to fit the constants")
        return 1
    print(found.text(content["conditions"].get("gpu", "the GPU")))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
