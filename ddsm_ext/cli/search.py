"""Search the width of each denoising step: a Pareto front of quality against cost.

Writes search/front.json (the whole front), search/strategy.json (the chosen strategy) and the cost
of each width on this machine. An interrupted search continues with the same command.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ddsm_ext.cli import options
from ddsm_ext.cli.console import say, told
from ddsm_ext.run.config import BUDGETS, with_budget


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
        "--budget-time",
        type=float,
        metavar="SHARE",
        help="most time of the chosen strategy, as a share of the full width's",
    )
    budget.add_argument(
        "--max-quality-loss",
        type=float,
        metavar="X",
        help="choose the cheapest strategy that scores at most X worse than the full width",
    )
    parser.add_argument(
        "--method",
        help="evolution (default), proxy (scores no sample), paper (the DDSM paper's own)",
    )
    options.add_sampler_arguments(parser)
    options.add_set_argument(parser, "another setting, e.g. search.generations=20")
    options.add_device_argument(parser)
    parser.add_argument("-n", "--dry-run", action="store_true", help="say what would be done, stop")


def run(args: argparse.Namespace) -> int:
    """Run `ddsm search`."""
    folder = options.find_run(args)
    budget = {n: getattr(args, n) for n in BUDGETS if getattr(args, n) is not None}

    settings = budget if args.method is None else {**budget, "method": args.method}
    config = with_budget(options.run_settings(folder, args), settings)
    if args.dry_run:
        from ddsm_ext.cli.dry_run import search_text

        print(search_text(config))
        return 0

    from ddsm_ext.io.lock import RunLock
    from ddsm_ext.run.compose import choose_device
    from ddsm_ext.run.costs import check_memory, images_at_once
    from ddsm_ext.run.run import Run
    from ddsm_ext.run.strategies import own_strategy

    device = choose_device(args.device, "--device")
    batch = images_at_once(config, config.eval.batch_size)
    check_memory(config.model, batch, device, "eval.batch_size")
    with told() as progress, RunLock(folder):
        run = Run(folder, config, device, progress)
        run.check_search()  # what is refused here leaves no command behind
        options.note_command(folder)
        run.search()
    for line in search_lines(folder):
        say(line)
    print(own_strategy(folder))
    return 0


def search_lines(folder: Path) -> list[str]:
    """Return what a run's search says at its end: what it chose, how sure that is, what it took."""
    from ddsm_ext.intervals import Interval
    from ddsm_ext.search.cost import share_of_paper
    from ddsm_ext.search.front import Front

    front = Front.load(folder / "search" / "front.json")
    chosen = front.chosen
    assert chosen is not None
    unit = "MACs" if front.cost_unit == "macs" else "time"
    share, score = 100 * chosen.cost_relative, f"{front.quality_name} {chosen.quality:.4g}"
    lines = [f"chosen: {share:.1f} % of the full width's {unit}, {score}"]
    if not chosen.samples:
        return [*lines, "no sample was scored: this is the front of the proxy alone"]
    loss = Interval(chosen.loss, chosen.loss_half_width)
    confidence = " (95 %)" if loss.half_width else ""
    count, seeds = front.network_evaluations, f"{chosen.samples} new seeds"
    if not chosen.rescored and chosen.cost_relative < 1:
        seeds = f"the {chosen.samples} seeds that chose it, which flatter it"
    return [
        *lines,
        f"beside the full width on {seeds}: {loss.text()}{confidence}",
        f"network evaluations for scores: {count:,}, {share_of_paper(count)} of those of the DDSM "
        "paper's search",
    ]
