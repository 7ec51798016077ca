"""Write one width as a plain dense network: model.safetensors and config.json."""

from __future__ import annotations

import argparse
from pathlib import Path

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

    import torch
    from safetensors.torch import save

    from ddsm_ext.io.files import write_atomic, write_json
    from ddsm_ext.run.compose import load_network

    network = load_network(folder, config, torch.device("cpu"), args.weights)
    dense = network.export_subnet(width)
    tensors = {name: t.detach().contiguous() for name, t in dense.state_dict().items()}
    out = Path(args.out) if args.out else folder / "export" / f"width-{width:g}"
    values = {"width": width, **config.to_dict()}
    write_json(out / "config.json", {k: values[k] for k in ("width", "model", "diffusion")})
    write_atomic(out / "model.safetensors", save(tensors, metadata={"width": f"{width:g}"}))
    say(f"width {width:g}: {sum(t.numel() for t in tensors.values()):,} parameters")
    print(out)
    return 0
