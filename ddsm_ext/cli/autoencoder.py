"""Train a small autoencoder on your own images, for latent diffusion on its latents.

    ddsm autoencoder --data photos.zip --out ae/
    ddsm autoencoder --data photos.zip --out ae/ --image-size 128 --preset small-f8
    ddsm autoencoder --data photos.zip --out ae/ --set steps=10000 --set data.limit=5000

It is trained in ae.training/; ae/, which diffusers' AutoencoderKL.from_pretrained reads, is there
once that is done. Ctrl-C saves and stops; the same command continues.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from ddsm_ext.cli import options
from ddsm_ext.cli.console import say, told
from ddsm_ext.run.presets import AUTOENCODER_PRESETS
from ddsm_ext.run.values import hints_of, parse_setting_as, settings_from
from ddsm_ext.settings import Refusal, is_int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `ddsm autoencoder`."""
    names = ", ".join(AUTOENCODER_PRESETS)
    parser.add_argument(
        "--data", required=True, metavar="PATH", help="folder, ZIP or archive of images, or digits"
    )
    parser.add_argument("--out", required=True, metavar="FOLDER", help="folder to make")
    parser.add_argument(
        "--preset", metavar="NAME",
        help=f"{names}: a latent has a 2nd, 4th or 8th of an image's side (default: small-f2 for "
        "images of up to 32 pixels, else small-f4)",
    )  # fmt: skip
    parser.add_argument(
        "--image-size", type=int, metavar="N",
        help="pixels a side that images are brought to (default: those that they have)",
    )  # fmt: skip
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE",
        help="one setting, e.g. steps=5000, latent_channels=8 or data.limit=1000 (repeatable)",
    )  # fmt: skip
    options.add_device_argument(parser)
    parser.add_argument("-n", "--dry-run", action="store_true", help="say what would be done, stop")


def parse_settings(settings: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read `key=value` options: settings of the autoencoder, and those of its images (`data.key`).

    Raises:
        ValueError: one has no `=`.
    """
    from ddsm_ext.data.config import DataConfig
    from ddsm_ext.training.autoencoder_config import AutoencoderConfig

    of_autoencoder: dict[str, Any] = {}
    of_data: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        name = name.strip()
        if not equals or not name:
            raise Refusal(f"--set {setting}: need key=value, e.g. steps=5000 or data.limit=1000")
        key, data = name.removeprefix("data."), name.startswith("data.")
        hints = hints_of(DataConfig if data else AutoencoderConfig)
        (of_data if data else of_autoencoder)[key] = parse_setting_as(hints.get(key), text)
    return of_autoencoder, of_data


def run(args: argparse.Namespace) -> int:
    """Run `ddsm autoencoder`."""
    options.check_output("--out", args.out, folder=True)
    if args.image_size is not None and not is_int(args.image_size, 4):
        raise Refusal(f"--image-size is {args.image_size}; need a whole number of 4 or more")
    changes, of_data = parse_settings(args.set)
    from ddsm_ext._optional import import_diffusers
    from ddsm_ext.data.config import DataConfig
    from ddsm_ext.run.autoencoder import check_out, configure_autoencoder, make_autoencoder
    from ddsm_ext.run.autoencoder import load_autoencoder_images as load_images
    from ddsm_ext.run.autoencoder_costs import check_autoencoder_memory
    from ddsm_ext.run.compose import choose_device

    given = {"source": args.data, "image_size": args.image_size, **of_data}
    data = settings_from(DataConfig, given, "--set", "data")
    check_out(args.out)
    import_diffusers("ddsm autoencoder")
    device = choose_device(args.device, "--device")
    with told() as progress:
        images = load_images(data, progress)
        channels, size, _ = images.train.shape
        config = configure_autoencoder(size, args.preset, changes, "--set")
        if args.dry_run:
            print(_plan(data, config, images))
            return 0
        check_autoencoder_memory(config, channels, size, device)
        result = make_autoencoder(args.out, images, config, device=device, progress=progress)
    if result.record is None:
        assert result.training is not None
        say(f"stopped at step {result.training.step} of {config.steps}; the same command continues")
        return 130
    if result.training is None:
        say(f"{result.folder} is there, of these settings and images")
    say(_scores(result.record.scores, config.factor))
    print(result.folder)
    return 0


def _plan(data: Any, config: Any, images: Any) -> str:
    """What would be done."""
    from ddsm_ext.cli.dry_run import memory_line, time_line
    from ddsm_ext.run.autoencoder_costs import estimate_autoencoder, training_seconds

    channels, size, _ = images.train.shape
    takes = estimate_autoencoder(config, channels, size)
    side = size // config.factor
    return "\n".join(
        [
            json.dumps({"data": data.to_dict(), "autoencoder": config.to_dict()}, indent=2),
            f"images: {len(images.train):,} of {channels}x{size}x{size} to train on, "
            f"{len(images.held_out):,} to score by",
            f"latents: {config.latent_channels}x{side}x{side}",
            f"parameters: {takes.parameters:,}",
            f"million MACs an image, there and back: {takes.macs / 1e6:.4g}",
            memory_line(takes.n_bytes),
            f"{time_line(training_seconds(config, channels, size))}, for {config.steps} steps of "
            f"{config.batch_size} images",
        ]
    )


def _scores(scores: Any, factor: int) -> str:
    """What held-out images lost, in a line."""
    text = (
        f"PSNR of {scores['images']:,} held-out images: {scores['psnr']:.2f} dB (bicubic by "
        f"{factor} and back: {scores['bicubic_psnr']:.2f} dB)"
    )
    if scores["frechet"] is not None:
        text += f"; Fréchet distance of {scores['features']}: {scores['frechet']:.3g}"
    return text
