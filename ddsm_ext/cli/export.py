"""Write one width as a plain dense network: model.safetensors and config.json."""

from __future__ import annotations

import argparse

from ddsm_ext.cli import options
from ddsm_ext.cli.console import say
from ddsm_ext.settings import Refusal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `ddsm export`."""
    options.add_run_argument(parser)
    parser.add_argument("--width", type=float, required=True, help="the width, e.g. 0.5")
    parser.add_argument("--weights", default="ema", help="ema (default) or model")
    parser.add_argument("--out", metavar="FOLDER", help="where to write (default: in the run)")


def run(args: argparse.Namespace) -> int:
    """Run `ddsm export`."""
    folder = options.find_run(args)
    config = options.run_settings(folder, args)
    width = config.model.check_width(args.width)
    if args.weights not in ("ema", "model"):
        raise Refusal(f"--weights is {args.weights!r}; need ema or model")

    from ddsm_ext.graph.count import parameter_count
    from ddsm_ext.run.run import Run

    out = Run(folder, config, "cpu").export(width, weights=args.weights, out=args.out)
    say(f"width {width:g}: {parameter_count(config.model, width):,} parameters")
    print(out)
    return 0
