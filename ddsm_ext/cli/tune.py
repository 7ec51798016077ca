"""Tune a trained run for a strategy: each step trains one width, on the noise levels it serves.

    ddsm tune                          the newest run, for the strategy that its search chose
    ddsm tune --extend 1500            give the run of that command more steps
    ddsm tune --strategy 0.5           for a constant width
    ddsm tune --set tune.sandwich_share=0.2 --set train.lr=5e-4

Makes a run of its own, NAME-tune, which holds the strategy: `ddsm sample`, `eval`, `search` and
`report` take it at once. Ctrl-C saves and stops; the same command continues: where the newest run
is a tuned one, what that was tuned from is meant, until a search of its own has found it another
strategy.
"""

from __future__ import annotations

import argparse

from ddsm_ext.cli import options
from ddsm_ext.cli.console import say, told
from ddsm_ext.run.config import LIMITS
from ddsm_ext.settings import Refusal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `ddsm tune`."""
    parser.add_argument("which", nargs="?", metavar="RUN", help="as --run")
    options.add_run_argument(parser)
    parser.add_argument(
        "--strategy", metavar="FILE|WIDTH", help="what to tune for (default: the run's strategy)"
    )
    parser.add_argument(
        "--steps", type=int, metavar="N", help="steps (default: half of the run's training)"
    )
    options.add_set_argument(parser, "one setting, e.g. tune.sandwich_share=0.2 (repeatable)")
    options.add_extend_argument(parser)
    options.add_device_argument(parser)
    parser.add_argument("-n", "--dry-run", action="store_true", help="say what would be done, stop")


def run(args: argparse.Namespace) -> int:
    """Run `ddsm tune`."""
    if args.which is not None and args.run is not None:
        raise Refusal(f"ddsm tune: got the runs {args.which!r} and {args.run!r}; need one")
    options.check_count("--extend", args.extend, LIMITS["train"]["steps"])
    options.check_count("--steps", args.steps, LIMITS["train"]["steps"])
    args.run = args.run if args.which is None else args.which
    folder = options.find_run(args)
    changes = options.parse_settings(args.set)
    if args.steps is not None:
        changes.setdefault("train", {})["steps"] = args.steps

    from ddsm_ext.io.lock import RunLock
    from ddsm_ext.run.compose import choose_device
    from ddsm_ext.run.costs import check_training_memory
    from ddsm_ext.run.folder import root_of
    from ddsm_ext.run.run import Run
    from ddsm_ext.run.training import extended, run_to_extend, run_to_tune, tuned_name

    device = choose_device(args.device, "--device")
    if args.run is None:
        folder = run_to_tune(folder)
    with told() as progress:
        origin = Run.open(args.root, folder, device=device, progress=progress)
        config = origin.tuned(args.strategy, **changes)
        if args.dry_run:
            from ddsm_ext.cli.dry_run import training_text

            if args.extend is not None:
                longer = run_to_extend(root_of(folder), tuned_name(folder), config)
                config = extended(longer, args.extend)
            print(training_text(config))
            return 0
        check_training_memory(config, device)
        tuned = origin.tuning(args.strategy, new=args.new, extend=args.extend, **changes)
        say(f"{'continuing' if tuned.resumed else 'tuning'} {tuned.folder}")
        with RunLock(tuned.folder):
            options.note_command(tuned.folder)
            result = tuned.train()
    print(tuned.folder)
    if result.interrupted:
        steps = tuned.config.train.steps
        say(f"stopped at step {result.step} of {steps}; the same command continues")
        return 130
    say(f"tuned to step {result.step} in {result.seconds:.0f} s")
    return 0
