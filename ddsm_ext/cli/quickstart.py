"""Train, search, sample, score and report on the 1797 real 8x8 digits of scikit-learn.

Minutes on two processor cores; `--fast` takes less than two, for a look. Ctrl-C saves and stops;
the same command continues.
"""

from __future__ import annotations

import argparse
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ddsm_ext.cli import options
from ddsm_ext.cli.console import say, stage, told
from ddsm_ext.cli.search import search_lines
from ddsm_ext.run.config import RunConfig, configure, merge
from ddsm_ext.run.presets import QUICKSTART_FAST
from ddsm_ext.settings import Refusal

# Layers of 32 8x8 images are too small to share: a training step ran at 213 images/s on one
# thread and 220 on two of an idle 2-core Zen 3 machine, but at 20 on two when it was not idle.
TRAINING_THREADS = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `ddsm quickstart`."""
    parser.add_argument("--fast", action="store_true", help="less of everything: a look, no result")
    parser.add_argument(
        "--root", default="runs", metavar="FOLDER", help="where the run folder goes (default: runs)"
    )
    parser.add_argument("--new", action="store_true", help="start again instead of continuing")
    options.add_set_argument(parser, "change a setting, e.g. train.steps=4000")
    parser.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help=f"processor threads (default: {TRAINING_THREADS} to train, then all cores)",
    )
    options.add_device_argument(parser)


def settings(args: argparse.Namespace) -> RunConfig:
    """Return the configuration of the quickstart: the digits preset, smaller with `--fast`.

    Raises:
        ValueError: a setting is refused, or other images have no size.
    """
    values: dict[str, Any] = QUICKSTART_FAST if args.fast else {}
    changes = options.parse_settings(args.set)
    preset = options.preset_for("ddsm quickstart", changes)
    config = configure(preset, where="--set", **merge(values, changes))
    if config.eval.features == "none":
        raise Refusal("--set: eval.features is none; need features, the quickstart ends in scores")
    return config


def run(args: argparse.Namespace) -> int:
    """Run `ddsm quickstart`."""
    started = time.perf_counter()
    config = settings(args)
    options.check_count("--threads", args.threads, options.MAX_THREADS)
    options.check_output("--root", args.root, folder=True)

    import torch

    from ddsm_ext.io.lock import RunLock
    from ddsm_ext.run.compose import choose_device
    from ddsm_ext.run.costs import check_memory, check_training_memory
    from ddsm_ext.run.run import Run

    device = choose_device(args.device, "--device")
    check_training_memory(config, device)
    check_memory(config.model, config.eval.batch_size, device, "eval.batch_size")
    cores = torch.get_num_threads()
    torch.set_num_threads(args.threads or TRAINING_THREADS)
    with told() as progress, ExitStack() as held:
        run = Run.create(
            args.root, "quickstart", config, new=args.new, device=device, progress=progress
        )
        if run.resumed:
            say(f"continuing {run.folder}")
        held.enter_context(RunLock(run.folder))
        options.note_command(run.folder)
        dataset = run.dataset
        say(f"ddsm quickstart: {len(dataset)} images of {dataset.name}, run folder {run.folder}")
        shown = ", ".join(f"{width:g}" for width in config.model.widths)
        with stage(f"1/4 training one network for the widths {shown}"):
            result = run.train()
        if result.interrupted:
            steps = config.train.steps
            say(f"stopped at step {result.step} of {steps}; the same command continues")
            return 130
        # Batches of 256 are shared well: 1.8 to 2.0 times as fast on two threads of that machine.
        torch.set_num_threads(args.threads or cores)
        with stage("2/4 searching the width of each denoising step"):
            run.search()
        for line in search_lines(run.folder):
            say(line)
        with stage("3/4 sampling and scoring"):
            run.evaluate(again=False)
        with stage("4/4 report"):
            report = run.report()
    _print_headline(run.folder, report, time.perf_counter() - started)
    return 0


def _print_headline(folder: Path, report: Path, seconds: float) -> None:
    from ddsm_ext.report.headline import headline
    from ddsm_ext.run.metrics import load_metrics
    from ddsm_ext.search.front import Front

    unit = Front.load(folder / "search" / "front.json").cost_unit
    result = headline(load_metrics(folder).to_dict(), unit)
    assert result is not None
    print(f"\nreport: {report}   ({seconds / 60:.1f} min)")
    for name, figure, remark in result.lines():
        print(f"  {name:<15} {figure:<38} {remark}")
    print("photographs, trained beforehand: ddsm sample --demo photographs")
