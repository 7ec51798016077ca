"""Write latents of images once, with an autoencoder, for a network that is trained on them.

    ddsm encode --data photos.zip --autoencoder vae/ --out latents/ --set data.image_size=256
    ddsm train --preset NAME --data latents/

The autoencoder is a folder as diffusers' save_pretrained writes it, of an AutoencoderKL or a
VQModel. Ctrl-C stops; the same command goes on, and makes again what is damaged.
"""

from __future__ import annotations

import argparse

from ddsm_ext.cli import options
from ddsm_ext.cli.console import say, told
from ddsm_ext.run.config import LIMITS
from ddsm_ext.settings import Refusal, shown

_MOST_SHARD_IMAGES = 2**20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `ddsm encode`."""
    parser.add_argument(
        "--data", required=True, metavar="PATH", help="folder, ZIP or tar of images"
    )
    parser.add_argument(
        "--autoencoder", required=True, metavar="FOLDER", help="AutoencoderKL or VQModel"
    )
    parser.add_argument("--out", required=True, metavar="FOLDER", help="archive to write")
    parser.add_argument(
        "--flips", action="store_true",
        help="also latents of the mirrored images, which training then takes at random",
    )  # fmt: skip
    parser.add_argument(
        "--scale", metavar="X|std",
        help="what a network's latents are multiplied by; std: 1 / their standard deviation "
        "(default: what the archive has, at first the autoencoder's scaling_factor; VQModel: 1)",
    )  # fmt: skip
    parser.add_argument(
        "--shift", type=float, metavar="X",
        help="what is subtracted before (default: what the archive has, at first the autoencoder's "
        "shift_factor; with --scale std the mean)",
    )  # fmt: skip
    parser.add_argument(
        "--dtype", default="float32", metavar="TYPE", help="float32 (default) or float16"
    )
    parser.add_argument(
        "--batch-size", type=int, default=8, metavar="N", help="images encoded together"
    )
    parser.add_argument(
        "--shard-images", type=int, default=256, metavar="N",
        help="images of a file; what is done of one is lost where the work stops (default: 256)",
    )  # fmt: skip
    options.add_set_argument(parser, "a setting of the images, e.g. data.image_size=256")
    options.add_device_argument(parser)
    parser.add_argument("-n", "--dry-run", action="store_true", help="say what would be done, stop")


def _scale(text: str | None) -> float | None:
    """The scale that `--scale` names, 0 for "std"."""
    if text is None or text == "std":
        return None if text is None else 0.0
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1e-6 <= value <= 1e6:
        raise Refusal(f"--scale is {shown(text)}; need std, or a number from 1e-6 to 1e6")
    return value


def run(args: argparse.Namespace) -> int:
    """Run `ddsm encode`."""
    from ddsm_ext.data.config import DataConfig
    from ddsm_ext.settings import check_choice

    options.check_count("--batch-size", args.batch_size, LIMITS["eval"]["batch_size"])
    options.check_count("--shard-images", args.shard_images, _MOST_SHARD_IMAGES)
    options.check_output("--out", args.out, folder=True)
    scale = _scale(args.scale)
    if args.shift is not None and not abs(args.shift) <= 1e6:
        raise Refusal(f"--shift is {args.shift}; need a number from -1e6 to 1e6")
    dtype = check_choice("--dtype", args.dtype, ("float32", "float16"))
    changes = options.parse_settings(args.set)
    if other := next((section for section in changes if section != "data"), None):
        raise Refusal(f"--set {other}: images alone are encoded; need settings of data")
    data = DataConfig.from_dict({"source": args.data, **changes.get("data", {})})

    from ddsm_ext.data.encoding import EncodeOptions
    from ddsm_ext.run.compose import choose_device
    from ddsm_ext.run.encoding import Encoding

    device = choose_device(args.device, "--device")
    how = EncodeOptions(args.flips, dtype, args.shard_images, args.batch_size)
    with told() as progress:
        encoding = Encoding.open(
            data, args.autoencoder, how, device=device, progress=progress
        )
        if args.dry_run:
            from ddsm_ext.cli.dry_run import encoding_text

            print(encoding_text(encoding))
            return 0
        manifest = encoding.write(args.out, scale=scale, shift=args.shift, progress=progress)
    print(args.out)
    done = sum(shard.images for shard in manifest.shards if shard is not None)
    count, shape = manifest.images.count, "x".join(map(str, manifest.shape))
    if done < count:
        say(f"stopped at {done:,} of {count:,} images; the same command continues")
        return 130
    codec = manifest.codec
    say(
        f"{count:,} latents of {shape}; as a network has them, (z - {codec.shift:.4g}) * "
        f"{codec.scale:.4g}, their standard deviation is {manifest.deviation * codec.scale:.3g}"
    )
    return 0
