"""Search the width of each denoising step: a Pareto front of quality against cost.

Writes search/front.json (the whole front), search/strategy.json (the chosen strategy) and the cost
of each width on this machine. An interrupted search continues with the same command.
"""

from __future__ import annotations

import argparse

from ddsm_ext.cli import options
from ddsm_ext.cli.console import say, told
from ddsm_ext.run.config import with_budget


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `ddsm search`."""
    options.add_run_argument(parser)
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument(
        "--budget-macs",
        type=float,
        metavar="SHARE",
        help="most MACs of the chosen strategy, as a share of the full width's, e.g. 0.5",
    )
    budget.add_argument(
        "--budget-ms",
        type=float,
        metavar="MS",
        help="most milliseconds an image of the chosen strategy, measured on this machine",
    )
    budget.add_argument(
        "--max-quality-loss",
        type=float,
        metavar="X",
        help="choose the cheapest strategy that scores at most X worse than the full width",
    )
    options.add_sampler_arguments(parser)
    options.add_set_argument(parser, "another setting, e.g. search.generations=20")
    options.add_device_argument(parser)
    parser.add_argument("-n", "--dry-run", action="store_true", help="say what would be done, stop")


def run(args: argparse.Namespace) -> int:
    """Run `ddsm search`."""
    folder = options.find_run(args)
    names = ("budget_macs", "budget_ms", "max_quality_loss")
    budget = {n: getattr(args, n) for n in names if getattr(args, n) is not None}

    config = with_budget(options.run_settings(folder, args), budget)
    if args.dry_run:
        from ddsm_ext.cli.dry_run import search_text

        print(search_text(config))
        return 0

    from ddsm_ext.run.compose import choose_device
    from ddsm_ext.run.run import Run

    device = choose_device(args.device, "--device")
    with told() as progress:
        run = Run(folder, config, device, progress)
        run.scorer()  # what is refused leaves no command behind
        options.note_command(folder)
        chosen = run.search()
    unit = "MACs" if config.search.cost == "macs" else "time"
    say(
        f"chosen: {100 * chosen.cost_relative:.1f} % of the full width's {unit}, "
        f"score {chosen.quality:.4g}"
    )
    print(folder / "search" / "strategy.json")
    return 0
