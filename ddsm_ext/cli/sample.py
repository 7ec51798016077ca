"""Make images with a strategy, a constant width, or both side by side.

A seed is an image: the same run, sampler and seed give the same picture in any batch.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ddsm_ext.cli import options
from ddsm_ext.cli.console import say
from ddsm_ext.run.config import add_set_argument
from ddsm_ext.settings import Refusal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `ddsm sample`."""
    options.add_run_argument(parser)
    parser.add_argument("--seeds", default="0-63", help="e.g. 0-63 or 1,5,9 (default: 0-63)")
    parser.add_argument(
        "--strategy",
        metavar="WIDTH|FILE",
        help="a width, or a strategy file (default: the run's chosen strategy, else width 1)",
    )
    options.add_sampler_arguments(parser)
    add_set_argument(parser, "another setting of the run, e.g. sampler.eta=0.5")
    parser.add_argument("--weights", default="ema", help="ema (default) or model")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N")
    parser.add_argument("--out", metavar="FOLDER", help="where to write (default: in the run)")
    options.add_device_argument(parser)
    parser.add_argument("-n", "--dry-run", action="store_true", help="say what would be done, stop")


def run(args: argparse.Namespace) -> int:
    """Run `ddsm sample`."""
    seeds = options.parse_seeds(args.seeds)
    folder = options.find_run(args)
    config = options.run_settings(folder, args)
    name, strategy = options.read_strategy(args.strategy, folder, config)
    if args.batch_size < 1:
        raise Refusal(f"--batch-size is {args.batch_size}; need at least 1")
    if args.weights not in ("ema", "model"):
        raise Refusal(f"--weights is {args.weights!r}; need ema or model")
    if args.dry_run:
        from ddsm_ext.run.estimate import describe_sampling

        print(describe_sampling(config, strategy, len(seeds), args.batch_size))
        return 0
    device = options.choose_device(args.device)

    from ddsm_ext.run.compose import Sampler, load_network, sampling_dtype

    network = load_network(folder, config, device, args.weights, sampling_dtype(config))
    sampler = Sampler(network, config, device, args.batch_size)
    images, ms = sampler.timed_images(strategy, seeds, f"sampling {name}")
    steps = config.sampler.steps or config.diffusion.timesteps
    label = f"{name.replace(' ', '-')}-{config.sampler.kind}-{steps}"
    out = Path(args.out) if args.out else folder / "samples" / label
    grid = write_images(images, seeds, out)
    options.note_command(folder)
    macs = sampler.macs_per_image(strategy)
    say(f"{len(seeds)} images, {ms:.3g} ms and {macs / 1e6:.4g} million MACs an image")
    print(grid)
    return 0


def write_images(images: object, seeds: list[int], out: Path) -> Path:
    """Write one PNG a seed and grid.png.

    Args:
        images: uint8 [N, C, H, W].
        seeds: the seed of each.
        out: folder; made if missing.

    Returns:
        path of the grid.
    """
    import numpy as np

    from ddsm_ext.data.images import image_grid, save_png

    array = np.asarray(images).transpose(0, 2, 3, 1)  # [N, H, W, C]
    out.mkdir(parents=True, exist_ok=True)
    for seed, image in zip(seeds, array, strict=True):
        save_png(out / f"seed-{seed:06d}.png", image)
    grid = out / "grid.png"
    save_png(grid, image_grid(array))
    return grid
