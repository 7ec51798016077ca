"""What a step of each width costs on this machine: MACs counted, or ms measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

import numpy as np

from ddsm_ext.bench.timing import interleaved
from ddsm_ext.graph.config import NetworkConfig
from ddsm_ext.graph.count import macs
from ddsm_ext.machine import machine_info
from ddsm_ext.search.cost import CostTable
from ddsm_ext.settings import Refusal


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
