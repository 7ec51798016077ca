"""Time the CIFAR-10 U-Net's step, its sandwich training step and its layers.

    python benchmarks/bench_unet_step.py --grid quick --json benchmarks/results
    python benchmarks/bench_unet_step.py --mode training --batch 8 --threads 1

Prints an estimate of the time first, a table a measurement, and writes each to its file as soon as
it is there; `python benchmarks/report.py` makes the README's table and plot of the files.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from ddsm_ext.bench import format_result
from ddsm_ext.bench.grid import (
    GRID_CANDIDATES,
    GRID_WIDTHS,
    MODES,
    Job,
    grid_jobs,
    slicing_macs_per_s,
)
from ddsm_ext.bench.results import save_result
from ddsm_ext.bench.step_candidates import STEP_CANDIDATES
from ddsm_ext.io.run_dir import machine_info


def main() -> None:
    """Measure, print, write."""
    arguments = _arguments()
    machine = machine_info() | ({"note": arguments.note} if arguments.note else {})
    print(f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}")
    jobs = _jobs(arguments)
    rates = {job.dtype: slicing_macs_per_s(job.dtype, job.threads) for job in jobs}
    estimates = [job.estimate_s(rates[job.dtype]) for job in jobs]
    for job, estimate in zip(jobs, estimates, strict=True):
        print(f"  about {estimate / 60:5.1f} min: {job}")
    print(f"  about {sum(estimates) / 60:5.1f} min in all", flush=True)
    start = time.monotonic()
    for job, estimate in zip(jobs, estimates, strict=True):
        if (time.monotonic() - start + estimate) / 60 > arguments.limit_minutes:
            print(f"left out, would pass {arguments.limit_minutes:g} min: {job}", flush=True)
            continue
        result = job.run(_show_progress if sys.stderr.isatty() else None)
        print(format_result(job.mode, result), flush=True)
        if arguments.json is not None:
            print(save_result(arguments.json, job.mode, machine, result), flush=True)
    print(f"{(time.monotonic() - start) / 60:.1f} min")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--grid", choices=("quick", "full"), help="instead of --mode to --rounds")
    parser.add_argument("--mode", nargs="+", default=["inference"], choices=MODES)
    parser.add_argument("--batch", type=int, nargs="+", default=[8, 1], help="images a step")
    parser.add_argument("--widths", type=float, nargs="+", default=GRID_WIDTHS)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--candidates", nargs="+", default=GRID_CANDIDATES, choices=STEP_CANDIDATES)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="three rounds")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--threads", type=int, default=cores, help=f"default: {cores}, all cores")
    parser.add_argument("--limit-minutes", type=float, default=float("inf"), metavar="M")
    parser.add_argument("--json", type=Path, metavar="DIR", help="folder for the results")
    parser.add_argument("--note", help="a sentence on the machine's state, kept with the results")
    return parser.parse_args()


def _jobs(arguments: argparse.Namespace) -> list[Job]:
    if arguments.grid is not None:
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
        )
        for mode in arguments.mode
        for batch in arguments.batch
    ]


def _show_progress(done: int, total: int) -> None:
    end = "\r" if done < total else "\n"
    print(f"{done} of {total}", end=end, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
