"""Cost of one image and step at each width: MACs by arithmetic, or ms measured on this machine."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ddsm_ext.bench.timing import interleaved
from ddsm_ext.graph.config import NetworkConfig
from ddsm_ext.graph.count import macs
from ddsm_ext.io.files import reading, write_json
from ddsm_ext.machine import machine_info
from ddsm_ext.settings import Refusal

VERSION = 1


@dataclass(frozen=True)
class CostTable:
    """Width -> cost of one image and step.

    Args:
        unit: "macs" or "ms".
        costs: width -> cost; positive and finite.
        conditions: where and how it was measured (machine, cpu, gpu, device, torch, threads,
            batch, dtype, network, date); empty for MACs.
        spread: width -> min, median and interquartile range in ms, and the rounds; empty for MACs.
    """

    unit: str
    costs: dict[float, float]
    conditions: dict[str, Any] = field(default_factory=dict)
    spread: dict[float, dict[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.unit not in ("macs", "ms"):
            raise Refusal(f"cost table: unit is {self.unit!r}; need macs or ms")
        for width, cost in self.costs.items():
            if not (0 < width <= 1 and math.isfinite(cost) and cost > 0):
                raise Refusal(
                    f"cost table: width {width} costs {cost}; need a width in (0, 1], a cost > 0"
                )
        if not self.costs:
            raise Refusal("cost table: has no widths; need at least one")

    def save(self, path: str | Path) -> None:
        """Write the table as JSON, all of it or nothing."""
        rows = [
            {"width": width, "cost": cost, **self.spread.get(width, {})}
            for width, cost in sorted(self.costs.items(), reverse=True)
        ]
        content = {"version": VERSION, "unit": self.unit, "conditions": self.conditions}
        write_json(path, {**content, "rows": rows})

    @classmethod
    def load(cls, path: str | Path, *, expect: Mapping[str, Any] | None = None) -> CostTable:
        """Read a table that `save` wrote.

        Args:
            path: the file.
            expect: conditions that a table in ms must have been measured under, e.g.
                `conditions(...)` of this run; None checks nothing.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no cost table, or one from another machine or configuration.
        """
        names = ("min_ms", "median_ms", "iqr_ms", "rounds")
        with reading(path, VERSION, "a cost table") as content:
            rows = content["rows"]
            table = cls(
                unit=content["unit"],
                costs={float(row["width"]): float(row["cost"]) for row in rows},
                conditions=dict(content["conditions"]),
                spread={
                    float(row["width"]): {name: row[name] for name in names}
                    for row in rows
                    if names[0] in row
                },
            )
        for name, value in (expect or {}).items():
            found = table.conditions.get(name)
            if table.unit == "ms" and found != value:
                raise Refusal(
                    f"{path}: was measured with {name} {json.dumps(found)}, this run has "
                    f"{json.dumps(value)}; need a new measurement"
                )
        return table


def macs_table(config: NetworkConfig, widths: Sequence[float]) -> CostTable:
    """Return the MACs of one image and step at each width, attention's products included."""
    return CostTable("macs", {float(w): float(macs(config, w)) for w in widths})


def conditions(*, batch: int, dtype: str, device: str, network: str) -> dict[str, Any]:
    """Return what a time measured now depends on: this machine, its torch and the arguments.

    Args:
        batch: images a step runs at once.
        dtype: name of the computation's type, e.g. "float32".
        device: "cpu" or "cuda".
        network: digest or text that names the network's configuration.
    """
    import torch

    host = machine_info()
    gpu = torch.cuda.get_device_name() if device.startswith("cuda") else None
    return {
        "machine": host["machine"],
        "cpu": host["cpu"],
        "gpu": gpu,
        "device": device,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "batch": batch,
        "dtype": dtype,
        "network": network,
        "steps": "compiled",  # as the sampler runs them; earlier tables timed the modules
    }


def measure_ms(
    run_step: Callable[[float], object],
    widths: Sequence[float],
    *,
    batch: int,
    conditions: Mapping[str, Any] | None = None,
    rounds: int = 15,
    warmup_rounds: int = 3,
    clock: Callable[[], float] = time.perf_counter,
    progress: Callable[[int, int], None] | None = None,
) -> CostTable:
    """Measure the ms of one image and step at each width: median over interleaved rounds.

    Every round runs each width once, begun from another width each time, so that drift of clock
    speed or temperature touches all widths alike.

    Args:
        run_step: runs one step of `batch` images at a width and returns when it is finished (on a
            GPU it synchronises).
        widths: widths to measure.
        batch: images a call of `run_step` handles.
        conditions: where it is measured, from `conditions(...)`; None stores none.
        rounds: measured rounds, >= 1.
        warmup_rounds: rounds before them that are not measured.
        clock: time in seconds.
        progress: called with (rounds done, rounds in all); None for silence.

    Raises:
        ValueError: no widths, no rounds or no images.
    """
    if not widths or rounds < 1 or warmup_rounds < 0 or batch < 1:
        raise Refusal(
            f"measure_ms: {len(widths)} widths, {rounds} rounds, {warmup_rounds} to warm up, batch "
            f"{batch}; need at least 1 width, 1 round, 0 to warm up, batch 1"
        )
    times = interleaved(
        {float(width): partial(run_step, width) for width in widths},
        rounds=rounds,
        warmup_rounds=warmup_rounds,
        min_sample_ms=0.0,
        clock=clock,
        progress=progress,
    )
    stamp = {"date": datetime.now(UTC).isoformat(timespec="seconds")}
    spread = {w: _spread([ms / batch for ms in t.rounds_ms]) for w, t in times.items()}
    costs = {width: values["median_ms"] for width, values in spread.items()}
    return CostTable("ms", costs, {**(conditions or {}), **stamp}, spread)


def _spread(values: list[float]) -> dict[str, float]:
    low, median, high = np.percentile(values, (25, 50, 75)).tolist()
    return {
        "min_ms": min(values),
        "median_ms": median,
        "iqr_ms": high - low,
        "rounds": len(values),
    }
