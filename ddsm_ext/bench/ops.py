"""Every op over the CIFAR-10 U-Net's layer shapes, timed; and which algorithms are chosen there."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple

import torch

from ddsm_ext import _library
from ddsm_ext.bench.candidates import CANDIDATES, OPS, candidates, check_agreement
from ddsm_ext.bench.conditions import (
    CPU,
    REFERENCE_CIFAR10,
    WIDTHS,
    Setting,
    check_batch,
    config_at,
    roof_ms,
)
from ddsm_ext.bench.table import align
from ddsm_ext.bench.timing import time_columns
from ddsm_ext.graph.config import NetworkConfig
from ddsm_ext.graph.shapes import ConvShape, Shape, least_bytes, op_shapes
from ddsm_ext.ops import _packed
from ddsm_ext.ops._call import runs_native
from ddsm_ext.settings import check_choice


class _Job(NamedTuple):
    """A layer shape, and how often a step at this width runs it."""

    op: str
    width: float
    shape: Shape
    calls: int

    def __str__(self) -> str:
        return f"{self.op} at width {self.width:g}, {self.shape}"


def run_ops(
    widths: Sequence[float] = WIDTHS,
    batch: int = 8,
    rounds: int = 9,
    *,
    setting: Setting = CPU,
    ops: Sequence[str] = OPS,
    costliest: int | None = None,
    limit_s: float = math.inf,
    config: NetworkConfig = REFERENCE_CIFAR10,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Time every op at every distinct layer shape; each is checked against slicing first.

    On a GPU every candidate runs captured into a CUDA graph, one call after the other, so that the
    caches hold what fits in them.

    Args:
        widths: widths of the network.
        batch: images.
        rounds: measured rounds.
        setting: device, threads and arithmetic.
        ops: which of `candidates.OPS`: those of the U-Net's step that have a table here.
        costliest: only so many shapes of each op and width, those with the most MACs; None for all.
        limit_s: no shape is begun after so many seconds; the rest is left out.
        config: the network whose shapes are taken; see `config_at`.
        progress: called with (shapes done, shapes in all); None for silence.

    Returns:
        JSON-ready: "rows" (one a shape: op, width, shape, calls (how often a step runs it), macs
        an image, `<candidate>_ms` and `_min_ms` of a batch, ratio_slicing and ratio_dense_cl to
        ours, roof_ms of a batch (on the CPU None for ops that memory limits), error, native; on
        a GPU moved_bytes and, of dense_cl and ours, `_tflop_per_s` and `_gb_per_s`; with all
        shapes, a row with shape "step total" sums each op and width), "failed" (why shapes have no
        row: candidates that differ, or an error), "left_out", "roof" and "conditions".

    Raises:
        ValueError: an argument that cannot be used.
    """
    check_batch(batch)
    for op in ops:
        check_choice("run_ops: op", op, OPS)
    jobs = [job for op in ops for width in widths for job in _jobs(config, op, width, costliest)]
    with setting.active(), torch.no_grad():
        roof = setting.measure_roof()
        measure = partial(_measure, batch=batch, setting=setting, rounds=rounds, roof=roof)
        rows, failed, left = _measure_in_time(jobs, measure, limit_s, progress)
    complete = set() if costliest else {(job.op, job.width) for job in jobs}
    return {
        "rows": _with_totals(rows, complete - {(job.op, job.width) for job in (*failed, *left)}),
        "failed": [f"{job}: {reason}" for job, reason in failed.items()],
        "left_out": [str(job) for job in left],
        "roof": roof,
        "conditions": {"network": config.to_dict(), **setting.conditions(batch)},
    }


def heaviest_first(config: NetworkConfig, width: float, op: str) -> list[tuple[Shape, int]]:
    """Return an op's distinct shapes, and how often a step calls each, the most work first.

    Work are MACs or, where nothing is multiplied, the elements that are read and written.

    Args:
        config: the network; see `config_at`.
        width: of the step.
        op: one of `graph.shapes.OPS`.
    """
    shapes = op_shapes(config_at(config, width), width, op)
    return sorted(shapes.items(), key=lambda item: -(item[0].macs or item[0].activations) * item[1])


def _jobs(config: NetworkConfig, op: str, width: float, costliest: int | None) -> list[_Job]:
    heaviest = heaviest_first(config, width, op)[:costliest]
    return [_Job(op, width, shape, calls) for shape, calls in heaviest]


def _measure_in_time(
    jobs: Sequence[_Job],
    measure: Callable[[_Job], dict[str, Any]],
    limit_s: float,
    progress: Callable[[int, int], None] | None,
) -> tuple[list[dict[str, Any]], dict[_Job, str], Sequence[_Job]]:
    """Return the rows, why shapes have none, and the shapes that there was no time for."""
    rows: list[dict[str, Any]] = []
    failed: dict[_Job, str] = {}
    end = time.monotonic() + limit_s
    for done, job in enumerate(jobs):
        if time.monotonic() > end:
            return rows, failed, jobs[done:]
        try:
            rows.append(measure(job))
        except (RuntimeError, ValueError) as error:
            failed[job] = str(error)
        if progress is not None:
            progress(done + 1, len(jobs))
    return rows, failed, ()


def _measure(
    job: _Job, batch: int, setting: Setting, rounds: int, roof: dict[str, Any]
) -> dict[str, Any]:
    op, _, shape, _ = job
    calls = candidates(shape, batch, setting.kind, device=setting.place)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the column `native` tells what the warning would
        outputs = {name: call() for name, call in calls.items()}
        x = torch.empty(0, dtype=setting.kind, device=setting.place)
        native = runs_native(f"sliced_{op}", x, needs_grad=False)
    error = check_agreement("the results", outputs, setting.tolerance)
    del outputs
    times = setting.device.time_kernels(calls, rounds=rounds, **setting.timing)
    columns = time_columns(times)
    macs = batch * shape.macs
    if setting.on_gpu:
        moved = least_bytes(shape, batch, setting.kind.itemsize)
        limit_ms: float | None = roof_ms(macs, roof, moved)
        columns |= _rates(columns, macs, moved)
    else:
        # Memory limits a norm.
        limit_ms = None if op in ("group_norm", "layer_norm") else roof_ms(macs, roof)
    return {
        "op": op,
        "width": job.width,
        "shape": str(shape),
        "calls": job.calls,
        "macs": shape.macs,
        **columns,
        "roof_ms": limit_ms,
        "error": error,
        "native": native,
    }


def _rates(columns: dict[str, float], macs: int, moved_bytes: int) -> dict[str, float]:
    """TFLOP (2 x MACs) and GB a second of the two that need no copy of the weights."""
    rates: dict[str, float] = {"moved_bytes": moved_bytes}
    for name in ("dense_cl", "ours"):
        seconds = columns[f"{name}_ms"] / 1000
        rates[f"{name}_tflop_per_s"] = 2e-12 * macs / seconds
        rates[f"{name}_gb_per_s"] = 1e-9 * moved_bytes / seconds
    return rates


def _with_totals(
    rows: list[dict[str, Any]], complete: set[tuple[str, float]]
) -> list[dict[str, Any]]:
    """Append, after each complete op and width, the sum over a whole step (calls x time)."""
    result: list[dict[str, Any]] = []
    for (op, width), group in groupby(rows, key=itemgetter("op", "width")):
        part = list(group)
        result += part
        if (op, width) not in complete:
            continue
        total = {
            "op": op,
            "width": width,
            "shape": "step total",
            "calls": sum(row["calls"] for row in part),
            "error": max(row["error"] for row in part),
            "native": part[0]["native"],
        }
        for key in ("macs", "roof_ms", *(f"{name}_ms" for name in CANDIDATES)):
            known = part[0][key] is not None
            total[key] = sum(row["calls"] * row[key] for row in part) if known else None
        for name in ("slicing", "dense_cl"):
            total[f"ratio_{name}"] = total[f"{name}_ms"] / total["ours_ms"]
        result.append(total)
    return result


def explain_choices(
    widths: Sequence[float] = WIDTHS,
    batch: int = 8,
    dtype: str = "float32",
    config: NetworkConfig = REFERENCE_CIFAR10,
) -> str:
    """Return a table of every convolution shape with its estimated us per algorithm.

    Args:
        widths: widths of the network.
        batch: images a step.
        dtype: "float32" or "bfloat16", of images and weights.
        config: the network whose shapes are taken; see `config_at`.

    Raises:
        ValueError: an argument that cannot be used.
    """
    check_batch(batch)
    check_choice("explain_choices: dtype", dtype, ("float32", "bfloat16"))
    rows = []
    for width in widths:
        for shape, calls in op_shapes(config_at(config, width), width, "conv2d").items():
            assert isinstance(shape, ConvShape)
            rows.append([f"{width:g}", str(shape), str(calls), *_costs(shape, batch, dtype)])
    headings = ["width", "convolution", "calls", *(f"{name} us" for name in _packed.ALGORITHMS)]
    isa = _library.native.active_isa()
    return f"{isa}, batch {batch}, {dtype}, one core; chosen algorithm marked *\n" + align(
        [headings, *rows], left=[1]
    )


def _costs(shape: ConvShape, batch: int, dtype: str) -> list[str]:
    """The estimated us of each algorithm, a * before that of the chosen one."""
    native = _library.native
    problem = _packed.ConvProblem(
        batch,
        shape.size,
        shape.size,
        shape.c_in + shape.c_in2,
        shape.c_out,
        shape.kernel,
        shape.stride,
        2 if shape.upsample else 1,
        dtype == "bfloat16",
    )
    chosen = _packed.choose_algorithm(native.active_isa(), problem)
    given = native.Conv2dProblem(**problem._asdict())
    return [
        f"{'*' if number == chosen else ''}{native.conv2d_cost_ns(given, number) / 1000:.0f}"
        for number in range(len(_packed.ALGORITHMS))
    ]
