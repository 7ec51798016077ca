"""Train the small classifier whose features score samples, on labelled images.

    ddsm classifier --out digits.safetensors                  the digits: what the package carries
    ddsm classifier --data photos/ --out photos.safetensors   a folder a class

Deterministic: the same images give the same file on the same machine. Score with it by
`--features classifier:FILE`.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from ddsm_ext.cli import options
from ddsm_ext.cli.console import say, told


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `ddsm classifier`."""
    parser.add_argument(
        "--data", default="digits", metavar="PATH", help="labelled images (default: the digits)"
    )
    parser.add_argument("--out", required=True, metavar="FILE", help=".safetensors file to write")
    parser.add_argument(
        "--epochs",
        type=int,
        default=20,
        metavar="N",
        help="passes over the images; fewer take less time and recognise less (default: 20)",
    )


def run(args: argparse.Namespace) -> int:
    """Run `ddsm classifier`."""
    out = Path(args.out)
    options.check_output("--out", args.out, suffix=".safetensors")

    from ddsm_ext.data.config import DataConfig
    from ddsm_ext.data.dataset import load_dataset
    from ddsm_ext.run.scoring import make_classifier

    with told() as bars:
        read = partial(bars, "reading images", unit="image")
        dataset = load_dataset(DataConfig(source=args.data, split="all"), read)
        trained = make_classifier(dataset, out, epochs=args.epochs, progress=bars)
    say(
        f"{trained.held_out_accuracy:.2%} of {trained.held_out_images} held-out images recognised "
        f"({trained.train_images} trained on)"
    )
    print(out)
    return 0
