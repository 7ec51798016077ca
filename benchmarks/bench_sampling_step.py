"""Time a step of `sample` and its kernels alone, interleaved: what Python and torch add to a step.

    python benchmarks/bench_sampling_step.py
    python benchmarks/bench_sampling_step.py --network cifar10 --steps 10 --batch 8

One thread, in its CPU time. A step's share of what `sample` does once a call is in it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence

import torch
from tabulate import tabulate

from ddsm_ext import _library
from ddsm_ext.bench.conditions import WIDTHS
from ddsm_ext.bench.timing import clock_of, interleaved
from ddsm_ext.diffusion import DiffusionConfig, make_schedule
from ddsm_ext.machine import machine_info
from ddsm_ext.models import SlimmableNetwork, preset
from ddsm_ext.runtime.backend import StepKey
from ddsm_ext.runtime.cpu import PlanSteps
from ddsm_ext.sampling import SamplerConfig, sample


def main(words: Sequence[str]) -> int:
    """Measure and print."""
    arguments = parsed(words)
    torch.set_num_threads(1)
    machine = machine_info()
    isa, version = _library.native.active_isa(), machine["versions"]["torch"]
    print(f"{machine['cpu']}, {isa} kernels, torch {version}, batch {arguments.batch}")
    net = SlimmableNetwork(preset(arguments.network)).eval()
    rows = [step_times(net, width, arguments) for width in arguments.widths]
    print(tabulate(rows, headers="keys", floatfmt=("g", ".1f", ".1f", ".1f")))
    return 0


def step_times(
    net: SlimmableNetwork, width: float, arguments: argparse.Namespace
) -> dict[str, float]:
    """Return microseconds of a step, of its kernels, and medians of their difference by rounds."""
    channels, size = net.config.image_channels, net.config.image_size
    schedule = make_schedule(DiffusionConfig(schedule="cosine"))
    sampler = SamplerConfig(kind="ddpm", steps=arguments.steps)
    steps = PlanSteps(net)
    steps.renew(net)
    plan = steps.plan(net, StepKey(width, arguments.batch, size, size, torch.float32))

    def whole() -> None:
        sample(net, schedule, width, range(arguments.batch), (channels, size, size), sampler)

    def kernels() -> None:
        for _ in range(arguments.steps):
            plan.run()

    calls = {"step": whole, "kernels": kernels}
    times = interleaved(calls, rounds=arguments.rounds, clock=clock_of(1)[0])
    us = {name: [1000 * ms / arguments.steps for ms in t.rounds_ms] for name, t in times.items()}
    outside = [step - alone for step, alone in zip(us["step"], us["kernels"], strict=True)]
    medians = {f"{name} us": statistics.median(values) for name, values in us.items()}
    return {"width": width, **medians, "outside us": statistics.median(outside)}


def parsed(words: Sequence[str]) -> argparse.Namespace:
    """Return the options of a command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--network", default="digits", choices=["digits", "cifar10"])
    parser.add_argument("--widths", type=float, nargs="+", default=list(WIDTHS), metavar="W")
    parser.add_argument("--batch", type=int, default=1, metavar="N")
    parser.add_argument("--steps", type=int, default=250, metavar="N")
    parser.add_argument("--rounds", type=int, default=15, metavar="N")
    return parser.parse_args(words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
