"""Train one network that works at every width, on the digits or on your own images.

    ddsm train                                   the 8x8 digits that come with scikit-learn
    ddsm train --preset cifar10 --data PATH      a folder, ZIP or CIFAR-10 archive of images
    ddsm train --preset digits --set train.steps=5000

Ctrl-C saves and stops; the same command continues.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ddsm_ext.cli import options
from ddsm_ext.cli.console import say
from ddsm_ext.run.config import RunConfig, add_set_argument, resolve
from ddsm_ext.run.presets import RUN_PRESETS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `ddsm train`."""
    names = ", ".join(RUN_PRESETS)
    parser.add_argument("--preset", metavar="NAME", help=f"start from {names}")
    parser.add_argument(
        "--config", metavar="FILE", help="JSON file of sections laid over the preset"
    )
    add_set_argument(parser, "one setting, e.g. train.steps=2000 (repeatable)")
    parser.add_argument("--data", metavar="PATH", help="folder, ZIP or CIFAR-10 archive of images")
    parser.add_argument(
        "--root", default="runs", metavar="FOLDER", help="where run folders go (default: runs)"
    )
    parser.add_argument("--name", help="name of the run (default: that of preset or data)")
    parser.add_argument("--new", action="store_true", help="start another run of the same settings")
    options.add_device_argument(parser)
    parser.add_argument("-n", "--dry-run", action="store_true", help="say what would be done, stop")


def settings(args: argparse.Namespace) -> RunConfig:
    """Return the configuration that the options of `ddsm train` describe."""
    preset = args.preset
    if preset is None and args.config is None:
        preset = "digits"
    extra = [] if args.data is None else [f"data.source={args.data}"]
    return resolve(preset, args.config, [*extra, *args.set])


def run(args: argparse.Namespace) -> int:
    """Run `ddsm train`."""
    config = settings(args)
    if args.dry_run:
        from ddsm_ext.run.estimate import describe_training

        print(describe_training(config))
        return 0
    device = options.choose_device(args.device)
    name = args.name or args.preset or Path(config.data.source).stem or "run"

    from ddsm_ext.run.compose import load_images

    dataset = load_images(config)
    folder = open_run(args.root, name, config, new=args.new)
    options.note_command(folder)
    result = train_run(folder, config, dataset, device)
    print(folder)
    if result.interrupted:
        say(f"stopped at step {result.step} of {config.train.steps}; the same command continues")
        return 130
    say(f"trained to step {result.step} in {result.seconds:.0f} s")
    return 0


def open_run(root: str, name: str, config: RunConfig, *, new: bool = False) -> Path:
    """Return the newest run folder of this name and configuration; where none is, a new one."""
    from ddsm_ext.run.folder import create_run, find_resumable

    found = None if new else find_resumable(root, config, name=name)
    if found is not None:
        say(f"continuing {found}")
        return found
    return create_run(root, name, config.to_dict())


def train_run(folder: Path, config: RunConfig, dataset: Any, device: Any) -> Any:
    """Train a run to its last step, or until it is stopped; returns the `TrainResult`."""
    import numpy as np

    from ddsm_ext.data.images import image_grid
    from ddsm_ext.data.pixels import to_uint8
    from ddsm_ext.diffusion.schedule import make_schedule
    from ddsm_ext.run.compose import Sampler
    from ddsm_ext.training.loop import train

    def sample_grid(net: Any, width: float) -> Any:
        images = Sampler(net, config, device, 64).images(width, list(range(64)))
        return image_grid(np.asarray(to_uint8(images).cpu()).transpose(0, 2, 3, 1))

    return train(
        _first_network(folder, config, device),
        dataset,
        make_schedule(config.diffusion),
        config.train,
        folder,
        parameterisation=config.diffusion.parameterisation,
        device=device,
        sample_grid=sample_grid,
    )


def _first_network(folder: Path, config: RunConfig, device: Any) -> Any:
    """Return the network that a run begins with; a checkpoint in its folder will replace it."""
    from ddsm_ext.io.checkpoint import list_checkpoints
    from ddsm_ext.run.compose import build_network, load_network

    source = config.train.start_from
    if source is None or list_checkpoints(folder):
        return build_network(config, device)
    return load_network(Path(source), config, device)
