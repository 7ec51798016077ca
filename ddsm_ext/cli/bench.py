"""Time this machine: each op against PyTorch slicing and dense weights, and the whole U-Net.

Every comparison checks the results first, then takes turns in one run. `ours` is this package,
`slicing` what the reference code does, `dense` a weight that was cut out beforehand.

    ddsm bench               the U-Net step at each width, and the realised saving
    ddsm bench --ops         each op over the U-Net's layer shapes
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from ddsm_ext.cli.console import follow, progress_bar, say
from ddsm_ext.settings import did_you_mean

OPS = ("conv2d", "linear", "group_norm", "attention")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `ddsm bench`."""
    parser.add_argument("--ops", nargs="*", metavar="OP", help=f"time ops: {', '.join(OPS)}")
    parser.add_argument("--quick", action="store_true", help="fewer shapes and rounds")
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="images (default: 8)")
    parser.add_argument("--dtype", default="float32", help="float32 (default) or bfloat16")
    parser.add_argument("--threads", type=int, default=None, metavar="N", help="default: all cores")
    parser.add_argument("--widths", default="1,0.75,0.5,0.25", help="default: 1,0.75,0.5,0.25")
    parser.add_argument("--json", action="store_true", help="JSON on stdout instead of the table")


def run(args: argparse.Namespace) -> int:
    """Run `ddsm bench`."""
    widths = _widths(args.widths)
    for op in args.ops or ():
        if op not in OPS:
            raise ValueError(f"--ops: unknown op {op!r}{did_you_mean(op, OPS)}")
    if args.dtype not in ("float32", "bfloat16"):
        raise ValueError(f"--dtype is {args.dtype!r}; needs float32 or bfloat16")

    import os

    threads = len(os.sched_getaffinity(0)) if args.threads is None else args.threads
    shared: dict[str, Any] = {
        "widths": widths, "batch": args.batch, "dtype": args.dtype, "quick": args.quick,
        "threads": threads,
    }  # fmt: skip
    say(_machine())
    result, text = (
        _time_ops(args.ops or OPS, shared) if args.ops is not None else _time_unet(shared)
    )
    print(json.dumps(result, indent=2) if args.json else text)
    return 0


def _widths(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--widths is {text!r}; needs numbers such as 1,0.5") from None


def _machine() -> str:
    from ddsm_ext.io.run_dir import machine_info

    info = machine_info()
    versions = ", ".join(
        f"{k} {v}" for k, v in info["versions"].items() if k in ("ddsm_ext", "torch")
    )
    return f"{info['cpu']}, {info['cores']} cores, Python {info['python']}, {versions}"


def _time_ops(ops: Any, shared: dict[str, Any]) -> tuple[Any, str]:
    from ddsm_ext.bench import format_table, run_ops

    with progress_bar("timing ops", None, "shape") as bar:
        rows = run_ops(ops=list(ops), progress=follow(bar), **shared)
    return rows, format_table(rows)


def _time_unet(shared: dict[str, Any]) -> tuple[Any, str]:
    from ddsm_ext.bench import format_unet_step, run_unet_step

    with progress_bar("timing the U-Net", None, "round") as bar:
        result = run_unet_step(progress=follow(bar), **shared)
    return result, format_unet_step(result)
