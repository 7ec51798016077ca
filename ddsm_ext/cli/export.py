"""Write one width as a plain dense network, or the weights as other code names them.

ddsm export --width 0.5                       model.safetensors and config.json of a dense network
ddsm export --to guided-diffusion --out FILE  all weights of an ADM network, as its code loads them
"""

from __future__ import annotations

import argparse

from ddsm_ext.cli import options
from ddsm_ext.cli.console import say
from ddsm_ext.run.exporting import CODES
from ddsm_ext.settings import Refusal, check_choice


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `ddsm export`."""
    options.add_run_argument(parser)
    parser.add_argument("--width", type=float, help="the width, e.g. 0.5")
    parser.add_argument(
        "--to", metavar="CODE", help="guided-diffusion: its state dict (ADM networks, full width)"
    )
    options.add_weights_argument(parser)
    parser.add_argument(
        "--out", metavar="PATH", help="folder, or with --to file, to write (default: in the run)"
    )


def run(args: argparse.Namespace) -> int:
    """Run `ddsm export`."""
    if (args.width is None) == (args.to is None):
        raise Refusal("ddsm export: need either --width or --to")
    if args.to is not None:
        check_choice("--to", args.to, CODES)
        options.check_output("--out", args.out, suffix=".safetensors")
    else:
        options.check_output("--out", args.out, folder=True)
    folder = options.find_run(args)
    config = options.run_settings(folder, args)

    from ddsm_ext.graph.count import parameter_count
    from ddsm_ext.run.compose import weights_of
    from ddsm_ext.run.run import Run

    check_choice("--weights", args.weights, weights_of(config))
    run, how = Run(folder, config, "cpu"), {"weights": args.weights, "out": args.out}
    width = 1.0 if args.width is None else args.width
    out = run.export(width, **how) if args.to is None else run.export_to(args.to, **how)
    say(f"width {width:g}: {parameter_count(config.model, width):,} parameters")
    print(out)
    return 0
