"""The fit of tile_choice.h: its estimates are the header's, and it finds what timings follow."""

from __future__ import annotations

import ctypes
import random
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench.scripts import ROOT  # makes gpu_suite importable
from gpu_suite.fit import HeaderModel, fit
from gpu_suite.tiles import HEADER, tiles

SOURCE = """
#include "tile_choice.h"
extern "C" double cost(long m, long n, long k_steps, int sms, int hopper, int tile, int splits) {
  ddsm::GemmProblem p{};
  p.m = m, p.n = n, p.k_steps = k_steps, p.batches = 1, p.multiprocessors = sms;
  p.aligned = true, p.hopper = hopper != 0;
  MORE
  return ddsm::ESTIMATE(p, {tile, splits});
}
"""
pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not on PATH")


def rows_of(count: int = 400) -> list[dict[str, Any]]:
    """Problems of a step at several batches, with every tile and some splits."""
    draw = random.Random(0)
    rows: list[dict[str, Any]] = []
    for tile in tiles():
        for batch in (128, 16, 1):
            for size, n, k in ((32, 128, 18), (16, 256, 72), (8, 256, 36), (4, 256, 36)):
                for splits in (1, 2, 4, 8):
                    rows.append({
                        "shape": f"{n} @{size}", "batch": batch, "tile": tile.algo,
                        "splits": splits, "m": batch * size * size, "n": n, "k_steps": k,
                        "k_padding": 0,
                        "batches": 1, "multiprocessors": 132,
                    })  # fmt: skip
    return draw.sample(rows, min(count, len(rows)))


def test_the_estimates_are_those_of_the_header(tmp_path: Path) -> None:
    text = HEADER.read_text()
    estimate = re.search(r"inline double (estimated_\w+)\(const GemmProblem", text).group(1)
    more = "p.parts = 1;" if "int64_t parts;" in text else ""
    (tmp_path / "c.cpp").write_text(SOURCE.replace("ESTIMATE", estimate).replace("MORE", more))
    include = (f"-I{ROOT / 'csrc' / 'cuda'}", f"-I{ROOT / 'csrc' / 'include'}")
    flags = ("-std=c++17", "-shared", "-fPIC")
    subprocess.run(
        ["g++", *flags, *include, tmp_path / "c.cpp", "-o", tmp_path / "c.so"], check=True
    )
    cost = ctypes.CDLL(str(tmp_path / "c.so")).cost
    cost.restype = ctypes.c_double
    rows, model = rows_of(), HeaderModel()
    expected = [
        cost(*(ctypes.c_long(row[name]) for name in ("m", "n", "k_steps")), 132,
             int(tiles()[row["tile"] - 1].sm90a), row["tile"] - 1, row["splits"])
        for row in rows
    ]  # fmt: skip
    np.testing.assert_allclose(model.costs(rows, model.values), expected, rtol=1e-12)
    assert not np.allclose(model.costs(rows, 2 * model.values), expected, rtol=1e-3)


def test_every_constant_of_the_header_is_found_and_written_as_it_was() -> None:
    model = HeaderModel()
    assert len(model.values) > 3
    text = HEADER.read_text()
    for declaration in model.declared:
        assert f"constexpr double {declaration};" in text
    assert [float(v) for line in model.lines(model.values) for v in numbers(line)] == list(
        model.values
    )
    doubled = model.lines(2 * model.values)
    assert [float(v) for line in doubled for v in numbers(line)] == list(2 * model.values)
    assert [re.sub(r"[\d.]+", "", line) for line in doubled] == [
        re.sub(r"[\d.]+", "", f"constexpr double {declaration};") for declaration in model.declared
    ]


def numbers(line: str) -> list[str]:
    return re.findall(r"[={,] ?(\d[\d.]*)", line)


TEXT = """
#pragma once
namespace ddsm {
struct GemmTile { int m, n; };
constexpr GemmTile kTiles[] = {{128, 128}, {64, 64}};
struct GemmProblem {
  const char* name; long m, n, k_steps; long batches; int64_t parts;
  int multiprocessors; bool aligned, hopper;
};
struct GemmChoice { int tile, splits; };
constexpr double kStep = 2.5, kFill = 7;  // two
constexpr double step(int tile) {
  constexpr double kEfficiency[2] = {1, 0.5};
  return kStep / kEfficiency[tile];
}
inline double estimated_time(const GemmProblem& p, const GemmChoice& c) {
  return p.parts * (kFill + p.k_steps * step(c.tile));
}
}
"""


def test_constants_may_stand_anywhere() -> None:
    """Several in one declaration, arrays within functions that are constexpr."""
    model = HeaderModel("#include <cstdint>\n" + TEXT)
    assert model.values.tolist() == [2.5, 7, 1, 0.5]
    row = {
        "m": 1,
        "n": 1,
        "k_steps": 10,
        "k_padding": 0,
        "batches": 1,
        "multiprocessors": 1,
        "tile": 2,
        "splits": 1,
    }
    assert model.costs([row], model.values)[0] == 7 + 10 * 5
    assert model.costs([row], np.array([3.0, 1.0, 1.0, 0.1]))[0] == pytest.approx(1 + 10 * 30)
    assert model.lines(np.array([2.25, 8, 1, 0.3333333])) == [
        "constexpr double kStep = 2.25, kFill = 8;",
        "constexpr double kEfficiency[2] = {1, 0.3333};",
    ]


def timings(noise: float) -> list[dict[str, Any]]:
    """What a sweep gives on a GPU with other constants than the header's, in us."""
    model, draw = HeaderModel(), np.random.default_rng(1)
    true = model.values * draw.uniform(0.6, 1.6, len(model.values))
    rows = rows_of()
    costs = model.costs(rows, true) * draw.uniform(1 - noise, 1 + noise, len(rows))
    return [
        {**row, "us": cost * (0.11 if tiles()[row["tile"] - 1].sm90a else 0.08)}
        for row, cost in zip(rows, costs, strict=True)
    ]


def test_timings_without_noise_are_met() -> None:
    found = fit([*timings(noise=0.0), {"shape": "", "batch": 1, "refused": "no kernel"}])
    assert found is not None
    assert found.error < 0.01
    assert found.off_the_best["fitted"] < 0.01
    assert found.off_the_best["fitted"] <= found.off_the_best["before"]


def test_noise_leaves_a_fit_that_chooses_better_than_before() -> None:
    found = fit(timings(noise=0.1))
    assert found is not None
    assert found.error < 0.1
    assert found.off_the_best["fitted"] <= found.off_the_best["before"] + 0.01
    text = found.text("NVIDIA Fake")
    assert all(line in text for line in found.lines)
    assert {row["path"] for row in found.best} == {"sm_80", "sm_90a"}


def test_too_few_timings_are_no_fit() -> None:
    assert fit(timings(noise=0.0)[:6]) is None
    assert fit([]) is None
