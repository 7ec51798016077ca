"""Import what the official DDSM code wrote: a checkpoint, or the result of its search.

ddsm convert ckpt.pt                   a checkpoint, into a new run folder
ddsm convert search.txt --out s.json   widths of the 1000 timesteps, into a strategy file
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ddsm_ext.cli import runs
from ddsm_ext.cli.config import RunConfig, add_config_arguments, resolve
from ddsm_ext.cli.console import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `ddsm convert`."""
    parser.add_argument("source", help="official checkpoint (.pt) or search result (.txt)")
    parser.add_argument("--out", metavar="FILE", help="strategy file to write (search results)")
    parser.add_argument("--root", default="runs", metavar="FOLDER", help="where its run goes")
    parser.add_argument("--name", default="official", help="name of the run (default: official)")
    parser.add_argument("--groups", type=int, default=32, help="groups of its GroupNorm: 32 or 16")
    parser.add_argument("--weights", default="ema", help="ema (default) or net")
    add_config_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Run `ddsm convert`."""
    source = Path(args.source)
    if not source.is_file():
        raise FileNotFoundError(f"{source}: no such file; needs an official .pt or search.txt")
    if source.suffix.lower() in (".txt", ".json"):
        return _convert_search(source, Path(args.out or f"{source.stem}-strategy.json"), args)
    return _convert_checkpoint(source, args)


def official_config(args: argparse.Namespace) -> RunConfig:
    """Return the configuration of an official network: reference slicing and groups."""
    reference = {
        "model": {
            "norm": "fixed_groups",
            "concat_slicing": "prefix",
            "groups": args.groups,
        }
    }
    settings = [f"model.{key}={value}" for key, value in reference["model"].items()]
    return resolve(args.preset or "cifar10", args.config, [*settings, *args.set])


def _convert_search(source: Path, out: Path, args: argparse.Namespace) -> int:
    from ddsm_ext.compat.official_ddsm import load_search_result

    strategy = load_search_result(source)
    strategy.save(out)
    say(f"{len(strategy.widths)} segments of constant width")
    print(out)
    return 0


def _convert_checkpoint(source: Path, args: argparse.Namespace) -> int:
    from ddsm_ext.compat.official_ddsm import load_official_ddsm
    from ddsm_ext.io.checkpoint import save_checkpoint
    from ddsm_ext.io.run_dir import create_run

    config = official_config(args)
    network = load_official_ddsm(source, reference_keys(config))
    tensors: dict[str, Any] = {k: v.contiguous() for k, v in network.state_dict().items()}
    folder = create_run(args.root, args.name, config.to_dict())
    runs.note_command(folder)
    save_checkpoint(folder, 0, {"model": tensors, "ema": tensors}, {"source": source.name})
    say(f"{sum(t.numel() for t in tensors.values()):,} parameters")
    print(folder)
    return 0


def reference_keys(config: RunConfig) -> dict[str, Any]:
    """Return the configuration under the names that the official code uses."""
    model = config.model
    return {
        "T": config.diffusion.timesteps,
        "ch": model.ch,
        "ch_mult": list(model.ch_mult),
        "attn": list(model.attn),
        "num_res_blocks": model.num_res_blocks,
        "groups": model.groups,
        "image_size": model.image_size,
    }
