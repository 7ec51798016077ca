"""Every kernel of a step with its calls and microseconds, by torch's profiler."""

from __future__ import annotations

import argparse
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from gpu_suite import work

STEPS = 3


def kernels_of(
    call: Callable[[], object], steps: int = STEPS
) -> tuple[list[dict[str, Any]], list[tuple[str, float]]]:
    """Return the kernels of a call, the costliest first: name, calls, us, raw_us of one step.

    A kernel that begins while another one still runs, and waits for it, has that time in raw_us
    alone. Beside them the kernels of the last step in their order with their us. On the CPU: its
    operators.
    """
    for _ in range(2):
        call()
    work.synchronise()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if work.ON_GPU else [])]
    with profile(activities=activities) as recorded:
        for _ in range(steps):
            call()
        work.synchronise()
    device = DeviceType.CUDA if work.ON_GPU else DeviceType.CPU
    calls: dict[str, int] = defaultdict(int)
    spent_us: dict[str, float] = defaultdict(float)
    raw_us: dict[str, float] = defaultdict(float)
    in_order: list[tuple[str, float]] = []
    until = 0.0
    for event in sorted(recorded.events(), key=lambda event: event.time_range.start):
        if event.device_type == device and not getattr(event, "is_user_annotation", False):
            begin, end = event.time_range.start, event.time_range.end
            calls[event.name] += 1
            raw_us[event.name] += end - begin
            own_us = max(end - max(begin, until), 0.0)
            spent_us[event.name] += own_us
            in_order.append((short_name(event.name), round(own_us, 2)))
            until = max(until, end)
    rows = [
        {
            "kernel": short_name(name),
            "calls": calls[name] / steps,
            "us": spent_us[name] / steps,
            "raw_us": raw_us[name] / steps,
        }
        for name in calls
    ]
    last = in_order[-(len(in_order) // steps) :]
    return sorted(rows, key=lambda row: -row["us"]), last


def short_name(name: str) -> str:
    """Return a kernel's name without what all of ours share and without its parameters."""
    name = re.sub(r"^void ", "", name).replace("ddsm::", "").replace("(anonymous namespace)::", "")
    name = re.sub(r"\([\w:]+\)(?=\d)", "", name)  # the type of an enumeration's value
    depth = 0
    for end, letter in enumerate(name):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:  # of the parameters
            return name[:end].strip()[:160]
    return name[:160]


def format_rows(rows: list[dict[str, Any]]) -> str:
    """Return the 14 costliest kernels as lines."""
    return "\n".join(
        f"{row['us']:9.1f} us  {row['calls']:5.1f} calls  {row['us'] / row['calls']:8.2f} us each"
        f"  {row['kernel'][:90]}"
        for row in rows[:14]
    )


def main(words: Sequence[str]) -> None:
    """Profile two batches at three widths."""
    parser = argparse.ArgumentParser(prog="gpu_suite.kernel_table")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args(words)
    net = work.network()
    tables, figures = [], {}
    with torch.no_grad():
        for batch in (128, 1) if work.ON_GPU else (2,):
            inputs = work.inputs_of(net, batch)
            for width in work.WIDTHS:
                rows, in_order = kernels_of(work.step_of(net, width, inputs))
                total_us = sum(row["us"] for row in rows)
                launches = sum(row["calls"] for row in rows)
                print(f"batch {batch}, width {width:g}: {launches:.0f} kernels, {total_us:.0f} us")
                print(format_rows(rows), flush=True)
                tables.append({"batch": batch, "width": width, "kernels": rows,
                               "us": total_us, "launches": launches,
                               "in_order": in_order})  # fmt: skip
                figures[f"{batch}/{width:g}"] = [round(total_us), round(launches)]
                _write(arguments.json, tables, figures)  # what is there, should time run out


def _write(path: Path | None, tables: list[dict[str, Any]], figures: dict[str, Any]) -> None:
    about = work.setting().conditions(0) | {"sm90a": work.sm90a()}
    work.report(path, {"tables": tables, "conditions": about}, {"us and launches": figures})


if __name__ == "__main__":
    main(sys.argv[1:])
