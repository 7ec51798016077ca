"""Time a U-Net's step, its sandwich training step and its layers.

    python benchmarks/bench_unet_step.py --grid quick --json benchmarks/results
    python benchmarks/bench_unet_step.py --mode training --batch 8 --threads 1
    python benchmarks/bench_unet_step.py --network adm64 ddpmpp --mode inference training
    python benchmarks/bench_unet_step.py --device cuda --dtype bfloat16 --batch 128 1

Prints an estimate of the time first, a table a measurement, and writes each to its file as soon as
it is there; `python benchmarks/report.py` makes the README's table and plot of the files.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from published.grid import (
    GRID_CANDIDATES,
    GRID_WIDTHS,
    MODES,
    NETWORKS,
    Job,
    grid_jobs,
    slicing_macs_per_s,
)
from published.results import save_result

from ddsm_ext.bench import format_result
from ddsm_ext.bench.conditions import DTYPES
from ddsm_ext.bench.steps import STEP_CANDIDATES
from ddsm_ext.machine import machine_info


def main(words: Sequence[str]) -> int:
    """Measure, print, write; returns 1 where something failed."""
    arguments, start = parsed(words), time.monotonic()
    machine = machine_info() | ({"note": arguments.note} if arguments.note else {})
    print(f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}")
    jobs = jobs_of(arguments)
    settings = {job.dtype: job.setting for job in jobs}  # on one device, with as many threads
    rates = {dtype: slicing_macs_per_s(setting) for dtype, setting in settings.items()}
    estimates = [job.estimate_s(rates[job.dtype]) for job in jobs]
    for job, estimate in zip(jobs, estimates, strict=True):
        print(f"  about {estimate / 60:5.1f} min: {job}")
    print(f"  about {sum(estimates) / 60:5.1f} min in all", flush=True)
    passed = True
    for number, (job, estimate) in enumerate(zip(jobs, estimates, strict=True)):
        left_s = arguments.limit_minutes * 60 - (time.monotonic() - start)
        # On a GPU what takes long, layers and compiling, stops by itself.
        needed_s = estimate if arguments.device == "cpu" else 0.0
        if needed_s > left_s and (number or needed_s):
            print(f"left out, would pass {arguments.limit_minutes:g} min: {job}", flush=True)
            continue
        passed &= _measure(job, left_s, machine, arguments.json)
    print(f"{(time.monotonic() - start) / 60:.1f} min")
    return 0 if passed else 1


def _measure(job: Job, limit_s: float, machine: dict[str, Any], folder: Path | None) -> bool:
    """Run, print and save a job; on a GPU a failure is printed and the other jobs go on."""
    try:
        result = job.run(_show_progress if sys.stderr.isatty() else None, limit_s=limit_s)
    except (RuntimeError, ValueError) as error:
        if job.device == "cpu":
            raise
        print(f"failed: {job}: {error}", flush=True)
        return False
    print(format_result(job.mode, result), flush=True)
    if folder is not None:
        print(save_result(folder, job.mode, machine, result), flush=True)
    return not result.get("failed")


def parsed(words: Sequence[str]) -> argparse.Namespace:
    """Return the options of a command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--grid", choices=("quick", "full"), help="instead of --mode to --rounds")
    parser.add_argument("--mode", nargs="+", default=["inference"], choices=MODES)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--network", nargs="+", default=["cifar10"], choices=tuple(NETWORKS))
    parser.add_argument("--batch", type=int, nargs="+", default=[8, 1], help="images a step")
    parser.add_argument("--widths", type=float, nargs="+", default=GRID_WIDTHS)
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
    parser.add_argument("--candidates", nargs="+", default=GRID_CANDIDATES, choices=STEP_CANDIDATES)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="three rounds")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--threads", type=int, default=cores, help=f"default: {cores}, all cores")
    parser.add_argument("--limit-minutes", type=float, default=float("inf"), metavar="M")
    parser.add_argument("--json", type=Path, metavar="DIR", help="folder for the results")
    parser.add_argument("--note", help="a sentence on the machine's state, kept with the results")
    return parser.parse_args(words)


def jobs_of(arguments: argparse.Namespace) -> list[Job]:
    """Return what is measured, in this order."""
    if arguments.grid is not None:
        if arguments.device != "cpu":
            raise SystemExit(f"--grid is for the CPU, --device is {arguments.device}; need --mode")
        return grid_jobs(arguments.grid, arguments.threads)
    return [
        Job(
            mode,
            batch,
            arguments.dtype,
            arguments.threads,
            3 if arguments.quick else arguments.rounds,
            tuple(arguments.widths),
            tuple(arguments.candidates),
            config=NETWORKS[network],
            device=arguments.device,
            network="" if network == "cifar10" else network,
        )
        for network in arguments.network
        for mode in arguments.mode
        for batch in arguments.batch
    ]


def _show_progress(done: int, total: int) -> None:
    end = "\r" if done < total else "\n"
    print(f"{done} of {total}", end=end, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
