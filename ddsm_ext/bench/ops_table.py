"""Every op over the CIFAR-10 U-Net's layer shapes: PyTorch slicing, dense weights, ours, roof."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ddsm_ext.bench.candidates import CANDIDATES, OPS, candidates, check_agreement, dtype_of
from ddsm_ext.bench.conditions import check_batch, conditions, using_threads
from ddsm_ext.bench.roof import measure_roof, roof_ms
from ddsm_ext.bench.shapes import REFERENCE_CIFAR10, WIDTHS, Shape, config_at, op_shapes
from ddsm_ext.bench.timing import clock_of, interleaved, time_columns
from ddsm_ext.models.config import UNetConfig
from ddsm_ext.ops._dispatch import runs_native


def run_ops(
    widths: Sequence[float] = WIDTHS,
    batch: int = 8,
    dtype: str = "float32",
    rounds: int = 9,
    *,
    ops: Sequence[str] = OPS,
    costliest: int | None = None,
    threads: int = 1,
    config: UNetConfig = REFERENCE_CIFAR10,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Time every op at every distinct layer shape; each is checked against slicing first.

    Args:
        widths: widths of the network.
        batch: images.
        dtype: "float32" or "bfloat16".
        rounds: measured rounds.
        ops: which of OPS.
        costliest: only so many shapes of each op and width, those with the most MACs; None for all.
        threads: torch threads; 1 is timed in the thread's CPU time, more in wall time.
        config: the network whose shapes are taken; see `config_at`.
        progress: called with (shapes done, shapes in all); None for silence.

    Returns:
        JSON-ready: "rows" (one a shape: op, width, shape, calls (how often a step runs it), macs
        an image, `<candidate>_ms` and `_min_ms` of a batch, ratio_slicing and ratio_dense_cl to
        ours, roof_ms of a batch (None for norms, which memory limits), error, native; with all
        shapes, a row with shape "step total" sums each op and width), "roof" and "conditions".

    Raises:
        ValueError: an argument that cannot be used, or a candidate that computes something else.
    """
    kind = dtype_of(dtype)
    check_batch(batch)
    jobs = [
        (op, width, shape, calls)
        for op in ops
        for width in widths
        for shape, calls in _chosen(op_shapes(config_at(config, width), width, op), costliest)
    ]
    rows: list[dict[str, Any]] = []
    with using_threads(threads), torch.no_grad():
        roof = measure_roof(kind, threads)
        for number, (op, width, shape, calls) in enumerate(jobs):
            row = {"op": op, "width": width, "shape": str(shape), "calls": calls}
            row |= _measure(op, shape, batch, kind, threads, rounds)
            row["roof_ms"] = None if op == "group_norm" else roof_ms(batch * shape.macs, roof)
            rows.append(row)
            if progress is not None:
                progress(number + 1, len(jobs))
    return {
        "rows": _with_totals(rows) if costliest is None else rows,
        "roof": roof,
        "conditions": {
            "network": config.to_dict(),
            **conditions(batch=batch, dtype=dtype, threads=threads),
        },
    }


def _chosen(shapes: dict[Shape, int], costliest: int | None) -> list[tuple[Shape, int]]:
    return sorted(shapes.items(), key=lambda item: -item[0].macs * item[1])[:costliest]


def _measure(
    op: str, shape: Shape, batch: int, kind: torch.dtype, threads: int, rounds: int
) -> dict[str, Any]:
    calls = candidates(shape, batch, kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the column `native` tells what the warning would
        outputs = {name: call() for name, call in calls.items()}
        native = runs_native(f"sliced_{op}", torch.empty(0, dtype=kind), needs_grad=False)
    error = check_agreement(f"{op} {shape}", outputs, kind)
    times = interleaved(calls, rounds=rounds, clock=clock_of(threads)[0])
    return {"macs": shape.macs, **time_columns(times), "error": error, "native": native}


def _with_totals(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Append, after each op and width, the sum over a whole step (calls x time)."""
    result: list[dict[str, Any]] = []
    for op, width in dict.fromkeys((row["op"], row["width"]) for row in rows):
        part = [row for row in rows if (row["op"], row["width"]) == (op, width)]
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
        result += [*part, total]
    return result
