"""What the GPU is, and how fast it copies and multiplies random numbers."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from gpu_suite import work


def main(words: Sequence[str]) -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(prog="gpu_suite.roofs")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args(words)
    setting = work.setting()
    with setting.active():
        roof = setting.measure_roof()
    about = setting.conditions(1) | {"nvidia_smi": _nvidia_smi()}
    figures = {"tflop_per_s": round(2e-12 * roof["macs_per_s"], 1)}
    if "bytes_per_s" in roof:
        figures["gb_per_s"] = round(1e-9 * roof["bytes_per_s"], 1)
    work.report(arguments.json, {"roof": roof, "conditions": about}, figures)


def _nvidia_smi() -> str:
    fields = "name,driver_version,clocks.sm,clocks.mem,power.draw,power.limit,temperature.gpu"
    command = ("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader")
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    return done.stdout.strip()


if __name__ == "__main__":
    main(sys.argv[1:])
