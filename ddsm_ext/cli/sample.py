"""Make images with a strategy or a constant width.

A seed is an image: the same run, sampler and seed give the same picture in any batch.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ddsm_ext.cli import options
from ddsm_ext.cli.console import say, told
from ddsm_ext.run.config import LIMITS
from ddsm_ext.settings import Refusal, check_choice


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `ddsm sample`."""
    options.add_run_argument(parser)
    parser.add_argument(
        "--demo", metavar="NAME",
        help="take a small trained network of the package, which becomes a run: photographs, or "
        "photographs-supernet, from which it is tuned",
    )  # fmt: skip
    parser.add_argument("--seeds", default="0-63", help="e.g. 0-63 or 1,5,9 (default: 0-63)")
    parser.add_argument(
        "--strategy",
        metavar="WIDTH|FILE",
        help="a width, or a strategy file (default: the run's chosen strategy, else width 1)",
    )
    options.add_sampler_arguments(parser)
    options.add_set_argument(parser, "another setting of the run, e.g. sampler.eta=0.5")
    options.add_weights_argument(parser)
    parser.add_argument("--batch-size", type=int, default=64, metavar="N")
    parser.add_argument("--out", metavar="FOLDER", help="where to write (default: in the run)")
    parser.add_argument(
        "--npz", metavar="FILE",
        help="also write all in one .npz: arr_0 images, arr_1 labels, as ADM's evaluator reads it",
    )  # fmt: skip
    options.add_device_argument(parser)
    parser.add_argument("-n", "--dry-run", action="store_true", help="say what would be done, stop")


def _find_run(args: argparse.Namespace) -> Path:
    """The run folder that `--run` or `--demo` names; `--dry-run` makes none."""
    if args.demo is None:
        return options.find_run(args)
    if args.run is not None:
        raise Refusal(f"--demo is {args.demo}, --run is {args.run}; need one of them")
    from ddsm_ext.run.demos import demo_folder, demo_names, demo_run

    check_choice("--demo", args.demo, demo_names())
    return demo_folder(args.demo) if args.dry_run else demo_run(args.root, args.demo)


def run(args: argparse.Namespace) -> int:
    """Run `ddsm sample`."""
    seeds = options.parse_seeds(args.seeds)
    options.check_count("--batch-size", args.batch_size, LIMITS["eval"]["batch_size"])
    options.check_output("--out", args.out, folder=True)
    options.check_output("--npz", args.npz, suffix=".npz")
    folder = _find_run(args)
    config = options.run_settings(folder, args)

    from ddsm_ext.run.compose import choose_device, weights_of
    from ddsm_ext.run.costs import check_memory, images_at_once
    from ddsm_ext.run.run import Run
    from ddsm_ext.run.strategies import read_strategy

    _, strategy = read_strategy(args.strategy, folder, config)
    check_choice("--weights", args.weights, weights_of(config))
    if args.dry_run:
        from ddsm_ext.cli.dry_run import sampling_text

        print(sampling_text(config, strategy, len(seeds), args.batch_size))
        return 0
    device = choose_device(args.device, "--device")
    batch = images_at_once(config, min(args.batch_size, len(seeds)))
    check_memory(config.model, batch, device, "--batch-size")
    how = {"weights": args.weights, "batch_size": args.batch_size, "out": args.out}
    with told() as progress:
        run = Run(folder, config, device, progress)
        made = run.sample(seeds, args.strategy, **how)
    if args.npz is not None:
        from ddsm_ext.data.sample_archive import write_sample_archive

        write_sample_archive(args.npz, made.images, made.labels)
    options.note_command(folder)
    macs = made.macs_per_image / 1e6
    say(f"{len(seeds)} images, {made.ms_per_image:.3g} ms and {macs:.4g} million MACs an image")
    print(made.folder / "grid.png")
    return 0
