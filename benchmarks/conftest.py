"""Options and parameters that the op benchmarks share; the rules are in `ddsm_ext.bench`."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from ddsm_ext.bench.candidates import CANDIDATES, candidates, check_agreement
from ddsm_ext.bench.conditions import REFERENCE_CIFAR10, WIDTHS, Setting
from ddsm_ext.bench.ops import heaviest_first
from ddsm_ext.bench.timing import clock_of, interleaved, time_columns
from ddsm_ext.graph.shapes import Shape

sys.path.insert(0, str(Path(__file__).parent))  # as Python does for a script here
ROUNDS = 9
MIN_SAMPLE_MS = 5.0
SHAPES_A_WIDTH = 3
RATIOS = pytest.StashKey[list[tuple["Case", dict[str, float]]]]()


@dataclass(frozen=True)
class Case:
    """One op at one layer shape, batch and dtype."""

    op: str
    width: float
    shape: Shape
    batch: int
    dtype: str

    def __str__(self) -> str:
        return f"{self.op} w={self.width:g} {self.shape} B={self.batch} {self.dtype}"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("ddsm benchmarks")
    group.addoption("--batch", type=int, action="append", help="images (repeatable, default 8)")
    group.addoption("--dtype", default="float32", choices=("float32", "bfloat16"))
    group.addoption("--threads", type=int, default=1, help="torch threads")
    group.addoption("--all-shapes", action="store_true", help="not only the costliest ones")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" not in metafunc.fixturenames:
        return
    config, module = metafunc.config, metafunc.module
    network = getattr(module, "NETWORK", REFERENCE_CIFAR10)
    cases = []
    for width in WIDTHS:
        if hasattr(module, "shapes"):  # no network's
            shapes = module.shapes(width)
        else:
            shapes = [shape for shape, _ in heaviest_first(network, width, module.OP)]
        wanted = list(filter(getattr(module, "wanted", None), shapes))
        for shape in wanted if config.getoption("--all-shapes") else wanted[:SHAPES_A_WIDTH]:
            for batch in config.getoption("--batch") or [8]:
                dtype = config.getoption("--dtype")
                cases.append(Case(module.OP, width, shape, batch, dtype))
    parameters = []
    clock, _ = clock_of(config.getoption("--threads"))
    for case in cases:
        mark = pytest.mark.benchmark(group=str(case), timer=clock)
        for name in CANDIDATES:
            parameters.append(pytest.param(case, name, marks=mark, id=f"{case}-{name}"))
    metafunc.parametrize(("case", "candidate"), parameters)


@pytest.fixture(autouse=True)
def _threads_without_gradients(request: pytest.FixtureRequest) -> Iterator[None]:
    setting = Setting(threads=request.config.getoption("--threads"))
    with setting.active(), torch.no_grad():
        yield


@pytest.fixture
def time_candidate(benchmark: Any, request: pytest.FixtureRequest) -> Any:
    """A function (case, candidate) that checks all candidates, then times the one."""
    threads = request.config.getoption("--threads")
    clock, _ = clock_of(threads)

    def run(case: Case, candidate: str) -> None:
        setting = Setting(case.dtype, threads)
        make = getattr(request.module, "candidates", candidates)
        calls = make(case.shape, case.batch, setting.kind)
        outputs = {name: call() for name, call in calls.items()}
        error = check_agreement(str(case), outputs, setting.tolerance)
        benchmark.extra_info.update(setting.conditions(case.batch))
        benchmark.extra_info |= {"macs": case.shape.macs, "error": error}
        if candidate == "ours":
            times = interleaved(calls, rounds=ROUNDS, min_sample_ms=MIN_SAMPLE_MS, clock=clock)
            columns = time_columns(times)
            request.config.stash.setdefault(RATIOS, []).append((case, columns))
            benchmark.extra_info |= columns
        one = interleaved({"it": calls[candidate]}, rounds=1, min_sample_ms=0.0, clock=clock)["it"]
        iterations = max(1, math.ceil(MIN_SAMPLE_MS / max(one.median_ms, 1e-3)))
        benchmark.pedantic(calls[candidate], rounds=ROUNDS, iterations=iterations, warmup_rounds=1)

    return run


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    rows = config.stash.get(RATIOS, [])
    if rows:
        terminalreporter.write_sep("-", "slicing / ours and dense_cl / ours, interleaved")
    for case, columns in rows:
        terminalreporter.write_line(
            f"{case!s:<56} slicing {columns['ratio_slicing']:5.2f}x  "
            f"dense_cl {columns['ratio_dense_cl']:5.2f}x  ours {columns['ours_ms']:.3g} ms"
        )
