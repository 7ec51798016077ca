"""Trains, searches, tunes and scores one network, and says what its strategies are worth.

    python benchmarks/photographs.py OUT --data cifar10.tar.xz             # 16x16 photographs
    python benchmarks/photographs.py OUT --data cifar10.tar.xz --preset cifar10 --device cuda
    python benchmarks/photographs.py OUT --preset digits --seeds 0 1 2     # several trainings
    python benchmarks/photographs.py OUT --table claims                    # of what is there

IMAGES is anything that `ddsm train --data` takes, with classes: a folder, a ZIP or tar of one, or
the binary CIFAR-10. For each training seed: one network for all widths is trained; strategies are
searched at budgets of time, some of them those of constant widths; strategies and constant widths
are scored on the same ranges of seeds in each of the features; each strategy, the best constant
width of no less time beside it and the full width are tuned for the same number of steps, and
scored likewise; all are timed in turns. OUT/PRESET.json has every figure, OUT/runs the run folders.

Stop it at any moment, by Ctrl-C, a kill or `--minutes`: the same command goes on. 16x16 photographs
take hours of two cores: `--table times` says how many.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout  # of torch's own requirements
from step_aware.demo import pack
from step_aware.figures import draw
from step_aware.presets import PRESETS
from step_aware.study import Study
from step_aware.tables import TABLES

from ddsm_ext.io.files import read_json, to_json, write_json
from ddsm_ext.machine import machine_info
from ddsm_ext.run import Run, configure
from ddsm_ext.run.config import merge
from ddsm_ext.settings import plain


def stop_after(minutes: float) -> None:
    """Interrupt this process, as Ctrl-C does, when so many minutes are over."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's `&` may ignore
    timer = threading.Timer(60 * minutes, os.kill, (os.getpid(), signal.SIGINT))
    timer.daemon = True
    timer.start()


def parsed(words: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder of PRESET.json and the runs")
    parser.add_argument("--data", metavar="IMAGES", help="but for the digits, which are there")
    parser.add_argument("--preset", choices=PRESETS, default="photographs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the training")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: cuda where there is one)")
    parser.add_argument("--minutes", type=float, help="stop by then; the same command goes on")
    parser.add_argument("--table", choices=TABLES, help="print one of what is there, and no more")
    parser.add_argument(
        "--docs", type=Path, metavar="FOLDER", help="draw pictures and figure there, and no more"
    )
    parser.add_argument(
        "--demo", type=Path, metavar="FOLDER", help="write the demos there, and no more"
    )
    return parser.parse_args(words)


def study(arguments: argparse.Namespace, seed: int, content: dict[str, Any]) -> Study:
    """The study of a training seed, with what `content` has of it."""
    preset = PRESETS[arguments.preset]
    data = {"data": {"source": arguments.data}} if arguments.data else {}
    sections = merge(merge(preset.sections, data), {"train": {"seed": seed}})
    config, name = configure(preset.base, **sections), arguments.preset
    if not data and config.data.source != "digits":
        raise SystemExit(f"--preset {name}: is of photographs; need --data")
    path = arguments.out / f"{name}.json"
    run = Run.create(arguments.out / "runs", name, config, device=arguments.device)
    about = {
        "images": {
            "name": run.dataset.name, "count": len(run.dataset), "digest": run.dataset.digest,
        },
        # without what differs from seed to seed and from machine to machine
        "config": merge(plain(config), {"data": {"source": ""}, "train": {"seed": 0}}),
        "tune_steps": preset.tune_steps,
    }  # fmt: skip
    about = json.loads(to_json(about))
    if any(name in content and content[name] != value for name, value in about.items()):
        raise SystemExit(f"{path}: has figures of other images or settings; need another OUT")
    content.update(about, machine=machine_info(command=False))
    results = content.setdefault("seeds", {}).setdefault(str(seed), {})
    return Study(preset, run, results, partial(write_json, path, content))


def measure(arguments: argparse.Namespace, content: dict[str, Any]) -> None:
    """Do for each training seed what is not there, or draw or pack what is."""
    for seed in arguments.seeds:
        each = study(arguments, seed, content)
        if arguments.docs is not None:
            draw(each, arguments.docs)
        elif arguments.demo is not None:
            pack(each, arguments.demo)
        else:
            each.go()


def main(words: Sequence[str]) -> int:
    """Measure what is not there, or show what is; returns the exit code."""
    arguments = parsed(words)
    preset = PRESETS[arguments.preset]
    path = arguments.out / f"{arguments.preset}.json"
    if arguments.table is not None:
        print(TABLES[arguments.table](read_json(path) if path.exists() else {}, preset))
        return 0
    torch.set_num_threads(preset.threads or torch.get_num_threads())
    if arguments.minutes is not None:
        stop_after(arguments.minutes)
    try:
        with FileLock(path.with_suffix(".lock"), timeout=0):
            measure(arguments, read_json(path) if path.exists() else {})
    except Timeout:
        print(f"{path}: another process writes it; need another OUT", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
