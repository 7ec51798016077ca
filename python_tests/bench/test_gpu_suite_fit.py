"""The fit of tile_choice.h: its model is the header's, and it finds constants that are known."""

from __future__ import annotations

import ctypes
import random
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from bench.scripts import ROOT  # makes gpu_suite importable
from gpu_suite.fit import Problem, fit, header_constants
from gpu_suite.tiles import tiles

SOURCE = """
#include "tile_choice.h"
extern "C" double cost(long m, long n, long k_steps, int sms, int hopper, int tile, int splits) {
  ddsm::GemmProblem p{"", ddsm::Math::kBFloat16, m, n, k_steps, 1, true, sms, hopper != 0};
  return ddsm::estimated_cost(p, {tile, splits});
}
"""


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not on PATH")
def test_the_cost_is_that_of_the_header(tmp_path: Path) -> None:
    (tmp_path / "cost.cpp").write_text(SOURCE)
    library = tmp_path / "cost.so"
    include = f"-I{ROOT / 'csrc' / 'cuda'}"
    subprocess.run(
        ["g++", "-std=c++17", "-shared", "-fPIC", include, tmp_path / "cost.cpp", "-o", library],
        check=True,
    )
    cost = ctypes.CDLL(str(library)).cost
    cost.restype = ctypes.c_double
    constants, draw = header_constants(), random.Random(0)
    for _ in range(300):
        problem = Problem(draw.randrange(1, 200_000), draw.choice((3, 32, 64, 128, 256, 512)),
                          draw.randrange(1, 80), draw.choice((108, 132)))  # fmt: skip
        tile, splits = draw.choice(tiles()), draw.randrange(1, min(problem.k_steps, 16) + 1)
        expected = cost(
            ctypes.c_long(problem.m), ctypes.c_long(problem.n), ctypes.c_long(problem.k_steps),
            problem.multiprocessors, int(tile.sm90a), tile.algo - 1, splits,
        )  # fmt: skip
        assert constants.cost(problem, tile, splits) == pytest.approx(expected, rel=1e-12)


def timings(noise: float) -> tuple[list[dict[str, object]], object]:
    """What a sweep gives on a GPU whose constants are known, in us."""
    draw = random.Random(1)
    before = header_constants()
    efficiency = tuple(
        value if tile.m * tile.n == 128 * 128 else value * draw.uniform(0.6, 1.3)
        for value, tile in zip(before.efficiency, tiles(), strict=True)
    )
    true = replace(
        before, efficiency=efficiency, fill_steps=9.0, bytes_per_step=3500.0, reduce_launch=4.0
    )
    rows: list[dict[str, object]] = []
    for tile in tiles():
        unit = 0.11 if tile.sm90a else 0.08
        for batch in (128, 16, 1):
            for size, n, k in ((32, 128, 18), (16, 256, 72), (8, 256, 36), (4, 256, 36)):
                problem = Problem(batch * size * size, n, k, 132)
                for splits in (1, 2, 4, 8):
                    us = unit * true.cost(problem, tile, splits)
                    us *= draw.uniform(1 - noise, 1 + noise)
                    rows.append({"shape": f"{n} @{size}", "batch": batch, "tile": tile.algo,
                                 "splits": splits, "us": us, **problem.to_dict()})  # fmt: skip
    return rows, true


def test_known_constants_are_found_again() -> None:
    rows, true = timings(noise=0.0)
    found = fit([*rows, {"shape": "", "batch": 1, "refused": "no kernel"}])
    assert found is not None
    assert found.error < 1e-3
    assert found.off_the_best["fitted"] < 1e-9
    assert found.constants.efficiency == pytest.approx(true.efficiency, rel=1e-2)
    assert found.constants.fill_steps == pytest.approx(9.0, rel=1e-2)
    assert found.constants.bytes_per_step == pytest.approx(3500.0, rel=1e-2)
    assert found.constants.reduce_launch == pytest.approx(4.0, rel=2e-2)
    assert found.us_a_step == pytest.approx({"sm_80": 0.08, "sm_90a": 0.11}, rel=1e-2)


def test_noise_leaves_a_fit_that_chooses_better_than_before() -> None:
    rows, _ = timings(noise=0.1)
    found = fit(rows)
    assert found is not None
    assert found.error < 0.1
    assert found.off_the_best["fitted"] <= found.off_the_best["before"]
    text = found.text("NVIDIA Fake")
    assert f"kEfficiency[kTileCount] = {{{found.constants.efficiency[0]:.3g}, " in text
    for name in ("kFillSteps", "kBytesPerStep", "kReduceLaunch"):
        assert f"constexpr double {name} = " in text
    assert all(len(line) <= 110 for line in text.splitlines())
    assert len(found.best) == 2 * 3 * 4  # paths, batches, shapes


def test_too_few_timings_are_no_fit() -> None:
    rows, _ = timings(noise=0.0)
    assert fit(rows[:10]) is None
    assert fit([]) is None
