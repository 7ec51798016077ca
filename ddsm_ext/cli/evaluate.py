"""Score samples against real images: Fréchet distance, kernel distance (KID), JSON on stdout.

Precision, recall and, of Inception's features, the Inception Score come with torch-fidelity (extra
`metrics`); the Fréchet distance to held-out images where the data set has such.

Scores what `--strategy` names (default: the full width and the run's chosen strategy), or the
images of a folder or ZIP (`--images`), and keeps the scores of a run in its metrics.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ddsm_ext.cli import options
from ddsm_ext.cli.console import say, table, told
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
    parser.add_argument("--features", metavar="NAME", help="feature extractor (default: the run's)")
    parser.add_argument("--images", metavar="PATH", help="score the images of a folder or ZIP")
    parser.add_argument("--save-statistics", metavar="FILE", help="also write the data's mu, sigma")
    options.add_sampler_arguments(parser)
    options.add_set_argument(parser, "another setting of the run, e.g. eval.images=5000")
    options.add_device_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Run `ddsm eval`."""
    seeds = options.parse_seeds(args.seeds) if args.seeds else None
    folder = options.find_run(args)
    if args.features:
        args.set = [*args.set, f"eval.features={args.features}"]
    config = options.run_settings(folder, args)
    if seeds is not None and len(seeds) < 2:
        raise Refusal(f"--seeds names {len(seeds)} image; need at least 2")

    from ddsm_ext.run.compose import choose_device
    from ddsm_ext.run.run import Run, named_strategies
    from ddsm_ext.run.scoring import score_folder

    device = choose_device(args.device, "--device")
    strategies = args.strategy or (1.0, None)
    named_strategies(strategies, folder, config)  # what is refused is refused before any work
    with told() as progress:
        run = Run(folder, config, device, progress)
        scorer = run.scorer()
        if args.save_statistics:
            from ddsm_ext.eval.statistics import save_statistics

            save_statistics(Path(args.save_statistics), scorer.reference)
        if args.images:
            print(json.dumps(score_folder(scorer, args.images), indent=2))
            return 0
        result = run.evaluate(strategies, seeds)
    options.note_command(folder)
    say(_scores_table(result["rows"]))
    print(json.dumps(result, indent=2))
    return 0


def _scores_table(rows: list[dict[str, Any]]) -> str:
    # title -> key; earlier scores lack some of these, and where all do there is no column
    others = {
        "held-out Fréchet": "frechet_held_out",
        "precision": "precision",
        "recall": "recall",
        "Inception Score": "inception_score",
    }
    shown = {title: k for title, k in others.items() if any(row.get(k) is not None for row in rows)}
    head = ("sampler", "seeds", "images", "Fréchet", "KID", *shown, "MMACs/image", "ms/image")

    def number(value: float | None, digits: int) -> str:
        return "-" if value is None else f"{value:.{digits}g}"

    cells = []
    for row in rows:
        cells.append(
            (
                row["label"],
                row["seeds"],
                str(row["images"]),
                number(row["frechet"], 4),
                number(row["kid"], 3),
                *(number(row.get(key), 4) for key in shown.values()),
                f"{row['macs_per_image'] / 1e6:.4g}",
                f"{row['ms_per_image']:.3g}",
            )
        )
    return table(head, cells)
