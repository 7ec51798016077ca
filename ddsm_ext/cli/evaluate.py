"""Score samples against real images: Fréchet distance, kernel distance (KID), JSON on stdout.

Precision, recall and, of Inception's features, the Inception Score come with torch-fidelity (extra
`metrics`); the Fréchet distance to held-out images where the data set has such.

Scores what `--strategy` names, or the images of a folder or ZIP (`--images`), and keeps the scores
of a run in its metrics.json. Without either it scores the full width, the run's chosen strategy and
what a report compares it with: the narrower widths, its reverse, the best with two segments; all on
the same ranges of seeds. `--dry-run` says how many samples that takes, and how long.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ddsm_ext.cli import options
from ddsm_ext.cli.console import say, table, told
from ddsm_ext.run.config import LIMITS
from ddsm_ext.run.strategies import plan_scores
from ddsm_ext.settings import Refusal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `ddsm eval`."""
    options.add_run_argument(parser)
    parser.add_argument(
        "--strategy",
        action="append",
        default=None,
        metavar="WIDTH|FILE",
        help="what to score (repeatable)",
    )
    parser.add_argument("--seeds", help="seeds of the samples, e.g. 0-1999 (default: eval.images)")
    parser.add_argument(
        "--ranges",
        type=int,
        metavar="N",
        help="ranges of so many seeds (default: eval.ranges; 1 with --seeds)",
    )
    parser.add_argument("--features", metavar="NAME", help="feature extractor (default: the run's)")
    parser.add_argument("--images", metavar="PATH", help="score a folder, ZIP or .npz of images")
    parser.add_argument("--save-statistics", metavar="FILE", help="also write the data's mu, sigma")
    options.add_sampler_arguments(parser)
    options.add_set_argument(parser, "another setting of the run, e.g. eval.images=5000")
    options.add_device_argument(parser)
    parser.add_argument("-n", "--dry-run", action="store_true", help="say what would be done, stop")


def run(args: argparse.Namespace) -> int:
    """Run `ddsm eval`."""
    seeds = None if args.seeds is None else options.parse_seeds(args.seeds)
    options.check_count("--ranges", args.ranges, LIMITS["eval"]["ranges"])
    options.check_output("--save-statistics", args.save_statistics, suffix=".npz")
    folder = options.find_run(args)
    config = options.run_settings(folder, args)
    if seeds is not None and len(seeds) < 2:
        raise Refusal(f"--seeds names {len(seeds)} image; need at least 2")
    if args.dry_run and args.images:
        raise Refusal("--dry-run: --images makes no samples; need one of the two")
    if args.images is not None and not Path(args.images).exists():
        raise FileNotFoundError(f"--images {args.images}: no such folder or file; need images")
    # what is refused is refused before any work
    plan = plan_scores(folder, config, args.strategy, seeds, args.ranges)

    from ddsm_ext.cli.dry_run import scoring_line, scoring_text

    if args.dry_run:
        print(scoring_text(config, plan))
        return 0

    from ddsm_ext.io.lock import RunLock
    from ddsm_ext.run.compose import choose_device
    from ddsm_ext.run.costs import check_memory, images_at_once
    from ddsm_ext.run.metrics import load_metrics
    from ddsm_ext.run.run import Run
    from ddsm_ext.run.scoring import score_folder

    device = choose_device(args.device, "--device")
    batch = images_at_once(config, min(config.eval.batch_size, len(plan.seeds)))
    check_memory(config.model, batch, device, "eval.batch_size")
    with told() as progress, RunLock(folder):
        load_metrics(folder)  # where it is damaged, it is refused before any work
        run = Run(folder, config, device, progress)
        scorer = run.scorer()
        if args.save_statistics:
            from ddsm_ext.eval.statistics import save_statistics

            save_statistics(Path(args.save_statistics), scorer.reference)
        if args.images:
            print(json.dumps(score_folder(scorer, args.images), indent=2))
            return 0
        say(scoring_line(config, plan, timed=device.type == "cpu"))
        result = run.evaluate(args.strategy, seeds, ranges=args.ranges)
        options.note_command(folder)
    say(_scores_table(result["rows"]))
    print(json.dumps(result, indent=2))
    return 0


def _scores_table(rows: list[dict[str, Any]]) -> str:
    from ddsm_ext.report.comparison import lines_of
    from ddsm_ext.report.scores import score_table

    return table(*score_table(lines_of(rows)))
