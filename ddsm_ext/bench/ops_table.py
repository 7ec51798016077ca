"""Every op over the CIFAR-10 U-Net's layer shapes: PyTorch slicing, dense weights, ours."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ddsm_ext.bench.candidates import (
    CANDIDATES,
    OPS,
    candidates,
    check_agreement,
    dtype_of,
)
from ddsm_ext.bench.conditions import check_batch, conditions, using_threads
from ddsm_ext.bench.shapes import REFERENCE_CIFAR10, WIDTHS, Shape, op_shapes
from ddsm_ext.bench.timing import clock_of, interleaved, ratio
from ddsm_ext.models.config import UNetConfig
from ddsm_ext.ops._dispatch import runs_native


def run_ops(
    quick: bool = False,
    threads: int = 1,
    *,
    batch: int = 8,
    dtype: str = "float32",
    ops: Sequence[str] = OPS,
    widths: Sequence[float] = WIDTHS,
    config: UNetConfig = REFERENCE_CIFAR10,
    progress: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """Time every op at every distinct layer shape; each is checked against slicing first.

    Args:
        quick: two widths, the two costliest shapes of each op, and few rounds.
        threads: torch threads; 1 is timed in the thread's CPU time, more in wall time.
        batch: images.
        dtype: "float32" or "bfloat16".
        ops: which of OPS.
        widths: widths of the network.
        config: the network whose shapes are taken.
        progress: called with (shapes done, shapes in all); None for silence.

    Returns:
        One row a shape: op, width, shape, calls (how often a step runs it), macs (an image), the
        `<candidate>_ms` of a batch (None where it does not apply), ratio_slicing and ratio_dense
        (time of slicing and of the faster dense form over ours), error, native; and the
        conditions. With all shapes, a row with shape "step total" sums each op and width.

    Raises:
        ValueError: an argument that cannot be used, or a candidate that computes something else.
    """
    dtype_of(dtype)
    check_batch(batch)
    widths = [w for w in widths if w in (1.0, 0.5)] or list(widths)[:1] if quick else list(widths)
    jobs = [
        (op, width, shape, calls)
        for op in ops
        for width in widths
        for shape, calls in _chosen(op_shapes(config, width, op), quick)
    ]
    rows: list[dict[str, Any]] = []
    with using_threads(threads), torch.no_grad():
        for number, (op, width, shape, calls) in enumerate(jobs):
            row = {"op": op, "width": width, "shape": str(shape), "calls": calls}
            row |= _measure(op, shape, batch, dtype, threads, rounds=3 if quick else 9)
            rows.append(row)
            if progress is not None:
                progress(number + 1, len(jobs))
    return rows if quick else _with_totals(rows)


def _chosen(shapes: dict[Shape, int], quick: bool) -> list[tuple[Shape, int]]:
    ordered = sorted(shapes.items(), key=lambda item: -item[0].macs * item[1])
    return ordered[:2] if quick else ordered


def _measure(
    op: str, shape: Shape, batch: int, dtype: str, threads: int, rounds: int
) -> dict[str, Any]:
    kind = dtype_of(dtype)
    calls = candidates(shape, batch, kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the column `native` tells what the warning would
        outputs = {name: call() for name, call in calls.items()}
        native = runs_native(f"sliced_{op}", torch.empty(0, dtype=kind), needs_grad=False)
    error = check_agreement(f"{op} {shape}", outputs, kind)
    clock, clock_name = clock_of(threads)
    times = interleaved(calls, rounds=rounds, clock=clock)
    dense = min(
        (times[name] for name in ("dense", "dense_cl") if name in times), key=lambda t: t.median_ms
    )
    return {
        "macs": shape.macs,
        **{f"{n}_ms": times[n].median_ms if n in times else None for n in CANDIDATES},
        "ratio_slicing": ratio(times["slicing"], times["ours"]),
        "ratio_dense": ratio(dense, times["ours"]),
        "error": error,
        "native": native,
        **conditions(batch=batch, dtype=dtype, threads=threads, clock=clock_name),
    }


def _with_totals(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Append, after each op and width, the sum over a whole step (calls x time)."""
    result: list[dict[str, Any]] = []
    keys = list(dict.fromkeys((row["op"], row["width"]) for row in rows))
    for op, width in keys:
        part = [row for row in rows if (row["op"], row["width"]) == (op, width)]
        total = dict(part[0]) | {"shape": "step total"}
        total["calls"] = sum(row["calls"] for row in part)
        for key in ("macs", *(f"{name}_ms" for name in CANDIDATES)):
            values = [row[key] for row in part]
            known = None not in values
            total[key] = sum(r["calls"] * r[key] for r in part) if known else None
        dense = min(v for v in (total["dense_ms"], total["dense_cl_ms"]) if v is not None)
        total["ratio_slicing"] = total["slicing_ms"] / total["ours_ms"]
        total["ratio_dense"] = dense / total["ours_ms"]
        total["error"] = max(row["error"] for row in part)
        result += [*part, total]
    return result
