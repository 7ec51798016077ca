"""What Nsight Compute counts in three kernels of a step, where it may read counters."""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from gpu_suite import work

SECTIONS = ("SpeedOfLight", "MemoryWorkloadAnalysis", "WarpStateStats", "LaunchStats")
# What a kernel is called here, the width of the step, the kernel's name, launches of it to pass.
KERNELS = (
    ("convolution, width 1", 1.0, "conv_sm90_kernel|conv_kernel", 8),
    ("convolution, width .25", 0.25, "conv_sm90_kernel|conv_kernel", 8),
    ("group norm, width 1", 1.0, "norm_apply_kernel", 4),
)


def run_step(width: float) -> None:
    """Run a step once."""
    net = work.network()
    inputs = work.inputs_of(net, 128 if work.ON_GPU else 2)
    with torch.no_grad():
        work.step_of(net, width, inputs)()
    work.synchronise()


def watched(width: float, pattern: str, skip: int) -> list[str]:
    """Return ncu's words for one launch of a kernel whose name matches."""
    words = ["ncu", "--clock-control", "none", "--kernel-name-base", "demangled"]
    words += ["--kernel-name", f"regex:{pattern}"]
    words += ["--launch-skip", str(skip), "--launch-count", "1"]
    for section in SECTIONS:
        words += ["--section", section]
    return [*words, sys.executable, "-m", "gpu_suite.counters", "--run", str(width)]


def figures_of(text: str) -> dict[str, str]:
    """Return a few counted values of ncu's text."""
    found = {}
    for name in ("Duration", "Compute (SM) Throughput", "Memory Throughput", "L2 Cache Throughput",
                 "DRAM Throughput", "Achieved Occupancy", "Registers Per Thread"):  # fmt: skip
        match = re.search(rf"^\s*{re.escape(name)}\s+(\S+)\s+([\d.,]+)\s*$", text, re.M)
        if match:
            found[name] = f"{match.group(2)} {match.group(1)}"
    return found


def main(words: Sequence[str]) -> int:
    """Watch each kernel; 1 if none could be watched."""
    parser = argparse.ArgumentParser(prog="gpu_suite.counters")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--run", type=float, metavar="WIDTH", help="only run a step")
    arguments = parser.parse_args(words)
    if arguments.run is not None:
        run_step(arguments.run)
        return 0
    if shutil.which("ncu") is None:
        print("ncu is not on PATH")
        return 1
    found = {}
    for name, width, pattern, skip in KERNELS:
        try:
            done = subprocess.run(watched(width, pattern, skip), capture_output=True, text=True,
                                  timeout=arguments.seconds / len(KERNELS))  # fmt: skip
            text = done.stdout + done.stderr
        except subprocess.TimeoutExpired as error:
            text = f"stopped after {error.timeout:.0f} s"
        found[name] = {"figures": figures_of(text), "text": text[-20_000:]}
        print(f"{name}: {found[name]['figures'] or text.strip()[-200:]}", flush=True)
        short = {key: value["figures"] for key, value in found.items()}
        work.report(arguments.json, found, short)
    return 0 if any(value["figures"] for value in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
