"""Write the network as other code has it: whole, or one width of it as a plain dense network.

ddsm export --width 0.5                 model.safetensors and config.json of a dense network
ddsm export --to diffusers              a pipeline of diffusers, with the run's strategy in it
ddsm export --to diffusers --width 0.5  the same of one width, as a UNet2DModel
ddsm export --to onnx --width 0.5       an ONNX file, compared with onnxruntime
ddsm export --to guided-diffusion       all weights of an ADM network, as its code loads them
"""

from __future__ import annotations

import argparse

from ddsm_ext.cli import options
from ddsm_ext.cli.console import say, told
from ddsm_ext.settings import Refusal, check_choice


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `ddsm export`."""
    options.add_run_argument(parser)
    parser.add_argument("--width", type=float, help="the width, e.g. 0.5")
    parser.add_argument(
        "--to", metavar="CODE",
        help="state-dict (default), diffusers, onnx, or guided-diffusion (ADM, full width)",
    )  # fmt: skip
    parser.add_argument(
        "--strategy", metavar="FILE|WIDTH",
        help="which width a pipeline has at which noise (default: the run's strategy)",
    )  # fmt: skip
    parser.add_argument(
        "--sampler", metavar="KIND", help="what a pipeline samples with (default: the run's)"
    )
    parser.add_argument(
        "--autoencoder", metavar="FOLDER",
        help="what decodes a pipeline's latents, a folder of diffusers (default: the run's)",
    )  # fmt: skip
    options.add_weights_argument(parser)
    parser.add_argument(
        "--out", metavar="PATH", help="folder or file to write (default: in the run)"
    )


def run(args: argparse.Namespace) -> int:
    """Run `ddsm export`."""
    if args.width is None and args.to is None:
        raise Refusal("ddsm export: need --width, or --to and other code's name")
    code = args.to or "state-dict"
    from ddsm_ext.run.exporting import CODES

    ending, known = CODES[check_choice("--to", code, CODES)]
    how = {"width": args.width, "strategy": args.strategy, "autoencoder": args.autoencoder}
    for name, value in {**how, "sampler": args.sampler}.items():
        if value is not None and name not in known:
            raise Refusal(f"--{name} is of no use with --to {code}; need none")
    options.check_output("--out", args.out, folder=not ending, suffix=ending or None)
    folder = options.find_run(args)
    config = options.run_settings(folder, args)

    from ddsm_ext.graph.count import parameter_count
    from ddsm_ext.run.compose import weights_of
    from ddsm_ext.run.run import Run

    check_choice("--weights", args.weights, weights_of(config))
    with told():
        out = Run(folder, config, "cpu").export_to(code, weights=args.weights, out=args.out, **how)
    width = 1.0 if args.width is None else args.width
    slimmable = code == "diffusers" and args.width is None
    widths = ", ".join(f"{w:g}" for w in (config.model.widths if slimmable else [width]))
    say(f"width {widths}: {parameter_count(config.model, width):,} parameters")
    print(out)
    return 0
