"""Write one width as a plain dense network: model.safetensors and config.json."""

from __future__ import annotations

import argparse

from ddsm_ext.cli import options
from ddsm_ext.cli.console import say
from ddsm_ext.settings import check_choice


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `ddsm export`."""
    options.add_run_argument(parser)
    parser.add_argument("--width", type=float, required=True, help="the width, e.g. 0.5")
    parser.add_argument("--weights", default="ema", help="ema (default) or model")
    parser.add_argument("--out", metavar="FOLDER", help="where to write (default: in the run)")


def run(args: argparse.Namespace) -> int:
    """Run `ddsm export`."""
    options.check_output("--out", args.out, folder=True)
    folder = options.find_run(args)
    config = options.run_settings(folder, args)

    from ddsm_ext.graph.count import parameter_count
    from ddsm_ext.run.compose import WEIGHTS
    from ddsm_ext.run.run import Run

    check_choice("--weights", args.weights, WEIGHTS)
    out = Run(folder, config, "cpu").export(args.width, weights=args.weights, out=args.out)
    say(f"width {args.width:g}: {parameter_count(config.model, args.width):,} parameters")
    print(out)
    return 0
