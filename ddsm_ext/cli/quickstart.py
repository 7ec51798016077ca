"""Train, search, sample, score and report on the 1797 real 8x8 digits of scikit-learn.

Minutes on two processor cores; `--fast` takes less than two, for a look. Ctrl-C saves and stops;
the same command continues.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from ddsm_ext.cli import options
from ddsm_ext.cli.console import say, stage
from ddsm_ext.run.config import RunConfig, add_set_argument, merge, parse_settings, preset_values
from ddsm_ext.run.presets import QUICKSTART_FAST
from ddsm_ext.settings import Refusal

FULL_WIDTH_SCORES = 3
# The layers of 8x8 images are too small to share: a training step of 32 ran at 213 images/s on one
# thread and 220 on two of an idle 2-core Zen 3 machine, but at 20 on two when it was not idle.
THREADS = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `ddsm quickstart`."""
    parser.add_argument("--fast", action="store_true", help="less of everything: a look, no result")
    parser.add_argument(
        "--root", default="runs", metavar="FOLDER", help="where the run folder goes (default: runs)"
    )
    parser.add_argument("--new", action="store_true", help="start again instead of continuing")
    add_set_argument(parser, "change a setting, e.g. train.steps=4000")
    parser.add_argument(
        "--threads",
        type=int,
        default=THREADS,
        metavar="N",
        help=f"processor threads (default: {THREADS})",
    )
    options.add_device_argument(parser)


def settings(args: argparse.Namespace) -> RunConfig:
    """Return the configuration of the quickstart: the digits preset, smaller with `--fast`."""
    values = preset_values("digits")
    if args.fast:
        values = merge(values, QUICKSTART_FAST)
    return RunConfig.from_dict(merge(values, parse_settings(args.set)), "--set")


def run(args: argparse.Namespace) -> int:
    """Run `ddsm quickstart`."""
    started = time.perf_counter()
    config = settings(args)
    if args.threads < 1:
        raise Refusal(f"--threads is {args.threads}; need 1 or more")
    device = options.choose_device(args.device)

    import torch

    from ddsm_ext.cli.train import open_run, train_run
    from ddsm_ext.run.compose import load_images

    torch.set_num_threads(args.threads)
    dataset = load_images(config)
    folder = open_run(args.root, "quickstart", config, new=args.new)
    options.note_command(folder)
    say(f"ddsm quickstart: {len(dataset)} images of {dataset.name}, run folder {folder}")
    widths = ", ".join(f"{width:g}" for width in config.model.widths)
    with stage(f"1/4 training one network for the widths {widths}"):
        result = train_run(folder, config, dataset, device)
    if result.interrupted:
        say(f"stopped at step {result.step} of {config.train.steps}; the same command continues")
        return 130

    from ddsm_ext.run.scoring import Scorer
    from ddsm_ext.run.searching import search_run

    scorer = Scorer.for_run(folder, config, device, dataset)
    with stage("2/4 searching the width of each denoising step"):
        chosen = search_run(folder, scorer)
    with stage("3/4 sampling and scoring"):
        _score(folder, scorer, chosen.strategy)
    from ddsm_ext.report.page import build_report

    with stage("4/4 report"):
        report = build_report(folder)
    _print_headline(report, time.perf_counter() - started)
    return 0


def _score(folder: Path, scorer: Any, strategy: Any) -> None:
    """Score the full width with three ranges of seeds, the strategy and the other widths."""
    from ddsm_ext.run.comparison import interleaved_ms, write_comparison
    from ddsm_ext.run.scoring import save_scores, save_timing, scored
    from ddsm_ext.sampling.strategy import Strategy

    config = scorer.sampler.config
    count = config.eval.images
    full = Strategy.constant(1.0)
    narrow = {f"width {w:g}": Strategy.constant(w) for w in config.model.widths if w != 1.0}
    jobs = [("full width", full, k) for k in range(FULL_WIDTH_SCORES)]
    jobs += [("strategy", strategy, 0), *[(name, s, 0) for name, s in narrow.items()]]
    for name, what, k in jobs:
        first = config.eval.first_seed + k * count
        seeds = list(range(first, first + count))
        if not scored(folder, scorer, name, what, seeds):
            save_scores(folder, scorer, [scorer.score(name, what, seeds)])
    both = {"full": full, "strategy": strategy}
    save_timing(folder, interleaved_ms(scorer.sampler, both, config.eval.batch_size))
    write_comparison(
        folder, scorer.sampler, scorer.dataset, {"full width": full, "strategy": strategy, **narrow}
    )


def _print_headline(report: Path, seconds: float) -> None:
    from ddsm_ext.io.files import read_json
    from ddsm_ext.report.headline import headline

    result = headline(read_json(report.parent / "metrics.json"))
    assert result is not None
    print(f"\nreport: {report}   ({seconds / 60:.1f} min)")
    for name, figure, remark in result.lines():
        print(f"  {name:<11} {figure:<22} {remark}")
