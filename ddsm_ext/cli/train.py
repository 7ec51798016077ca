"""Train one network that works at every width, on the digits or on your own images.

    ddsm train                                   the 8x8 digits that come with scikit-learn
    ddsm train --preset cifar10 --data PATH      a folder, ZIP or CIFAR-10 archive of images
    ddsm train --preset NAME --data latents/     latents that ddsm encode made
    ddsm train --preset digits --set train.steps=5000
    ddsm train --preset digits --extend 3000     give the run of that command more steps

Ctrl-C saves and stops; the same command continues.
"""

from __future__ import annotations

import argparse
import warnings

from ddsm_ext.cli import options
from ddsm_ext.cli.console import say, told
from ddsm_ext.run.config import LIMITS, RunConfig, configure, merge
from ddsm_ext.run.presets import RUN_PRESETS
from ddsm_ext.settings import shown


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `ddsm train`."""
    names = ", ".join(RUN_PRESETS)
    parser.add_argument("--preset", metavar="NAME", help=f"start from {names}")
    parser.add_argument(
        "--config", metavar="FILE", help="JSON file of sections laid over the preset"
    )
    options.add_set_argument(parser, "one setting, e.g. train.steps=2000 (repeatable)")
    parser.add_argument(
        "--data", metavar="PATH",
        help="folder, ZIP or CIFAR-10 archive of images, or latents; with --preset",
    )  # fmt: skip
    parser.add_argument(
        "--root", default="runs", metavar="FOLDER", help="where run folders go (default: runs)"
    )
    parser.add_argument("--name", help="name of the run (default: that of preset or data)")
    options.add_extend_argument(parser)
    options.add_device_argument(parser)
    parser.add_argument("-n", "--dry-run", action="store_true", help="say what would be done, stop")


def settings(args: argparse.Namespace) -> RunConfig:
    """Return the configuration that the options of `ddsm train` describe."""
    preset, changes = args.preset, options.parse_settings(args.set)
    if args.data is not None:  # as it stands, but for a --set
        changes = merge({"data": {"source": args.data}}, changes)
    if preset is None and args.config is None:
        preset = options.preset_for("ddsm train", changes)
    config = configure(preset, args.config, where="--set", **changes)
    if args.preset == "digits" and config.data.source != "digits":
        model, colours = config.model, "grey" if config.model.image_channels == 1 else "colour"
        split = f"those of data.split={config.data.split}"
        warnings.warn(
            f"--preset digits with the images {shown(config.data.source)}: they are brought to "
            f"{model.image_size}x{model.image_size} {colours} pixels, {split} are trained on, and "
            f"eval.features is {config.eval.features}",
            stacklevel=2,
        )
    return config


def run(args: argparse.Namespace) -> int:
    """Run `ddsm train`."""
    options.check_count("--extend", args.extend, LIMITS["train"]["steps"])
    options.check_output("--root", args.root, folder=True)
    config = settings(args)
    from ddsm_ext.run.folder import run_name

    name = args.name or args.preset or run_name(config.data.source)
    if args.dry_run:
        from ddsm_ext.cli.dry_run import training_text

        if args.extend is not None:
            from ddsm_ext.run.features import with_features
            from ddsm_ext.run.images import load_images, real_images
            from ddsm_ext.run.training import extended, run_to_extend

            made = with_features(config, real_images(config, load_images(config)))
            config = extended(run_to_extend(args.root, name, made), args.extend)
        print(training_text(config))
        return 0

    from ddsm_ext.io.lock import RunLock
    from ddsm_ext.run.compose import choose_device
    from ddsm_ext.run.costs import check_training_memory
    from ddsm_ext.run.run import Run

    device = choose_device(args.device, "--device")
    check_training_memory(config, device)
    with told() as progress:
        how = {"new": args.new, "extend": args.extend, "device": device, "progress": progress}
        run = Run.create(args.root, name, config, **how)
        if run.resumed:
            say(f"continuing {run.folder}")
        with RunLock(run.folder):
            options.note_command(run.folder)
            result = run.train()
    print(run.folder)
    if result.interrupted:
        steps = run.config.train.steps
        say(f"stopped at step {result.step} of {steps}; the same command continues")
        return 130
    say(f"trained to step {result.step} in {result.seconds:.0f} s")
    return 0
