"""Our captured steps at three widths, interleaved within a batch, of three families."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ddsm_ext.bench.timing import interleaved
from ddsm_ext.models.network import SlimmableNetwork
from ddsm_ext.runtime.runner import StepRunner
from gpu_suite import work

ROUNDS = 5


def times_of(net: SlimmableNetwork, batch: int) -> dict[str, Any]:
    """Return width -> milliseconds of a step (median and least), inputs copied in included."""
    inputs, runner = work.inputs_of(net, batch), StepRunner(net)
    calls = {width: partial(runner, **inputs, width=width) for width in work.WIDTHS}
    with warnings.catch_warnings():
        if work.ON_GPU:  # the module's times would pass for a graph's
            warnings.filterwarnings("error", message=".*steps run uncompiled.*")
        for call in calls.values():
            call()
    found = interleaved(calls, rounds=ROUNDS, **work.setting().timing)
    return {
        f"{width:g}": {"ms": timing.median_ms, "min_ms": timing.min_ms}
        for width, timing in found.items()
    }


def main(words: Sequence[str]) -> None:
    """Time every batch; the file is replaced after each."""
    parser = argparse.ArgumentParser(prog="gpu_suite.graph_times")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args(words)
    found: dict[str, dict[str, Any]] = {name: {} for name in work.TIMED}
    about = work.setting().conditions(0) | {"sm90a": work.sm90a()}
    for name, (config, batches) in work.TIMED.items():
        net = work.network(config)
        for batch in batches:
            with torch.no_grad():
                times = found[name][str(batch)] = times_of(net, batch)
            print(f"{name}, batch {batch}: " + ", ".join(
                f"width {width} {value['ms']:.3f} ms" for width, value in times.items()
            ))  # fmt: skip
            short = {name.replace("_a_step", ""): _short(times) for name, times in found.items()}
            work.report(arguments.json, found | {"conditions": about}, short)


def _short(times: dict[str, Any]) -> dict[str, Any]:
    return {b: {w: round(v["ms"], 3) for w, v in row.items()} for b, row in times.items()}


if __name__ == "__main__":
    main(sys.argv[1:])
