"""Time this machine: each op against PyTorch slicing and dense weights, and the whole U-Net.

Every comparison checks the results first, then takes turns in one run. `ours` is this package,
`slicing` what the reference code does, `dense_cl` weights cut out beforehand in channels_last,
`compiled` the same under torch.compile (a minute a width to compile): with frozen weights on the
CPU, max-autotune and CUDA graphs on a GPU.

    ddsm bench               the U-Net step at each width, and the realised saving
    ddsm bench --ops         each op over the U-Net's layer shapes
    ddsm bench --training    the sandwich training step
    ddsm bench --device cuda --dtype bfloat16 --batch 128
    ddsm bench --explain     which algorithm each convolution takes, and why; nothing is timed
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from typing import Any

from ddsm_ext.cli import options
from ddsm_ext.cli.console import say, told
from ddsm_ext.run.config import LIMITS
from ddsm_ext.settings import Refusal, did_you_mean

OPS = ("conv2d", "linear", "group_norm", "layer_norm", "attention")
CANDIDATES = "slicing,dense_cl,ours"
DTYPES = ("float32", "bfloat16", "tf32")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `ddsm bench`."""
    parser.add_argument("--ops", nargs="*", metavar="OP", help=f"time ops: {', '.join(OPS)}")
    parser.add_argument("--training", action="store_true", help="time the sandwich training step")
    parser.add_argument("--explain", action="store_true", help="print the choice of algorithms")
    parser.add_argument(
        "--candidates", default=CANDIDATES, help=f"of the U-Net step, also compiled ({CANDIDATES})"
    )
    parser.add_argument("--quick", action="store_true", help="fewer shapes and rounds")
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="images (default: 8)")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument(
        "--dtype", default="float32", help=f"{' or '.join(DTYPES)}; tf32: cuda only"
    )
    parser.add_argument("--threads", type=int, default=None, metavar="N", help="default: all cores")
    parser.add_argument("--widths", default="1,0.75,0.5,0.25", help="default: 1,0.75,0.5,0.25")
    parser.add_argument("--json", action="store_true", help="JSON on stdout instead of the table")


def run(args: argparse.Namespace) -> int:
    """Run `ddsm bench`."""
    widths = _widths(args.widths)
    for op in args.ops or ():
        if op not in OPS:
            raise Refusal(f"--ops: unknown op {op!r}{did_you_mean(op, OPS)}")
    if args.dtype not in DTYPES:
        raise Refusal(f"--dtype is {args.dtype!r}; need {' or '.join(DTYPES)}")
    options.check_count("--batch", args.batch, LIMITS["train"]["batch_size"])
    options.check_count("--threads", args.threads, options.MAX_THREADS)

    if args.explain:
        from ddsm_ext.bench.ops import explain_choices

        print(explain_choices(widths, args.batch, args.dtype))
        return 0

    import os

    import torch

    from ddsm_ext import bench
    from ddsm_ext.bench.conditions import REFERENCE_CIFAR10
    from ddsm_ext.run.costs import TRAINING_COPIES, check_memory

    threads = len(os.sched_getaffinity(0)) if args.threads is None else args.threads
    setting = bench.Setting(args.dtype, threads, args.device)
    place = torch.device(setting.place)
    copies = TRAINING_COPIES if args.training else 0
    check_memory(REFERENCE_CIFAR10, args.batch, place, "--batch", copies=copies)
    shared: dict[str, Any] = {
        "batch": args.batch, "rounds": 3 if args.quick else 9, "setting": setting,
    }  # fmt: skip
    say(_machine())
    if args.ops is not None:
        mode, title, unit = "layers", "timing ops", "shape"
        costliest = 2 if args.quick else None
        measure = partial(bench.run_ops, widths, ops=args.ops or OPS, costliest=costliest)
    elif args.training:
        mode, title, unit = "training", "timing the training step", "round"
        measure = bench.run_training_step
    else:
        mode, title, unit = "inference", "timing the U-Net", "round"
        candidates = args.candidates.split(",")
        measure = partial(bench.run_unet_step, widths, candidates=candidates)
    with told() as bars:
        result = measure(progress=lambda done, of: bars(title, done, of, unit), **shared)
    print(json.dumps(result, indent=2) if args.json else bench.format_result(mode, result))
    return 1 if result.get("failed") else 0


def _widths(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise Refusal(f"--widths is {text!r}; need numbers such as 1,0.5") from None


def _machine() -> str:
    from ddsm_ext.machine import machine_info

    info = machine_info()
    shown = (name for name in ("ddsm_ext", "torch") if name in info["versions"])
    versions = ", ".join(f"{name} {info['versions'][name]}" for name in shown)
    return f"{info['cpu']}, {info['cores']} cores, Python {info['python']}, {versions}"
