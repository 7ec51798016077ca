"""Our captured steps at four batches and three widths, interleaved within a batch."""

from __future__ import annotations

import argparse
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ddsm_ext.bench.timing import interleaved
from ddsm_ext.models.unet import SlimmableUNet
from gpu_suite import work

ROUNDS = 5


def times_of(net: SlimmableUNet, batch: int, rounds: int = ROUNDS) -> dict[str, Any]:
    """Return width -> milliseconds of a step (median and least), inputs copied in included."""
    x, t = work.inputs(batch)
    runner = net.step_runner()
    calls = {width: partial(runner, x, t, width) for width in work.WIDTHS}
    with warnings.catch_warnings():
        if work.ON_GPU:  # the module's times would pass for a graph's
            warnings.filterwarnings("error", message=".*steps run uncompiled.*")
        for call in calls.values():
            call()
    found = interleaved(calls, rounds=rounds, **work.setting().timing)
    return {
        f"{width:g}": {"ms": timing.median_ms, "min_ms": timing.min_ms}
        for width, timing in found.items()
    }


def main() -> None:
    """Time every batch; the file is replaced after each."""
    parser = argparse.ArgumentParser(prog="gpu_suite.graph_times")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    net = work.network()
    times: dict[str, Any] = {}
    about = work.setting().conditions(0) | {"sm90a": work.sm90a()}
    with torch.no_grad():
        for batch in work.BATCHES:
            times[str(batch)] = times_of(net, batch)
            short = {b: {w: round(v["ms"], 3) for w, v in row.items()} for b, row in times.items()}
            print(f"batch {batch}: " + ", ".join(
                f"width {w} {value['ms']:.3f} ms" for w, value in times[str(batch)].items()
            ))  # fmt: skip
            content = {"ms_a_step": times, "conditions": about}
            work.report(arguments.json, content, {"ms": short})


if __name__ == "__main__":
    main()
