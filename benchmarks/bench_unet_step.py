"""The whole CIFAR-10 U-Net step per width and the realised saving of the published strategy.

    python benchmarks/bench_unet_step.py --batch 1 8 --json unet_step.json

prints one table a batch and writes them with the machine and the versions.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ddsm_ext.bench import format_unet_step, run_unet_step
from ddsm_ext.bench.shapes import WIDTHS
from ddsm_ext.io.files import write_json
from ddsm_ext.io.run_dir import machine_info


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8], help="images a step")
    parser.add_argument("--widths", type=float, nargs="+", default=list(WIDTHS))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="three rounds instead of nine")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    arguments = parser.parse_args()
    machine = machine_info()
    print(f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}")
    results = []
    for batch in arguments.batch:
        results.append(
            run_unet_step(
                arguments.widths,
                batch,
                arguments.dtype,
                arguments.quick,
                threads=arguments.threads,
                progress=_show_progress if sys.stderr.isatty() else None,
            )
        )
        print(format_unet_step(results[-1]), flush=True)
    if arguments.json is not None:
        write_json(arguments.json, {"machine": machine, "results": results})


def _show_progress(done: int, total: int) -> None:
    end = "\r" if done < total else "\n"
    print(f"round {done} of {total}", end=end, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
