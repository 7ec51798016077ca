"""Import what the official DDSM code wrote, or weights in several files, as a run or a strategy.

ddsm convert ckpt.pt --flags flagfile.txt     an official checkpoint, into a new run folder
ddsm convert search.txt --out s.json          widths of the timesteps, into a strategy file
ddsm convert ema.safetensors.index.json       the files that the index names, into a new run folder
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ddsm_ext.cli import options
from ddsm_ext.cli.console import say
from ddsm_ext.io.weights import INDEX_ENDING
from ddsm_ext.run.config import RunConfig, merge, parse_settings, preset_values
from ddsm_ext.settings import Refusal, did_you_mean

STRATEGY_ENDINGS = (".txt", ".json")
# sections that the checkpoint and its flags decide
FIXED_SECTIONS = ("model", "diffusion")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `ddsm convert`."""
    parser.add_argument(
        "source", help="official checkpoint (.pt) or search result (.txt), or an index of weights"
    )
    parser.add_argument("--out", metavar="FILE", help="strategy file to write (search results)")
    parser.add_argument("--flags", metavar="FILE", help="flag file that the checkpoint came with")
    parser.add_argument("--groups", type=int, help="groups of its GroupNorm: 32 (default) or 16")
    parser.add_argument("--group", default="ema_model", help="ema_model (default) or net_model")
    parser.add_argument("--root", default="runs", metavar="FOLDER", help="where its run goes")
    parser.add_argument("--name", help="name of the run (default: official, or that of the index)")
    options.add_set_argument(parser, "a setting of the run, e.g. data.source=cifar.zip")


def run(args: argparse.Namespace) -> int:
    """Run `ddsm convert`."""
    source = Path(args.source)
    if not source.is_file():
        raise FileNotFoundError(f"{source}: no such file; need an official .pt or search.txt")
    known = ("ema_model", "net_model")
    if args.group not in known:
        raise Refusal(f"--group is {args.group!r}{did_you_mean(args.group, known)}")
    if source.name.endswith(INDEX_ENDING):
        return _convert_shards(source, args)
    if source.suffix.lower() in STRATEGY_ENDINGS:
        return _convert_search(source, Path(args.out or f"{source.stem}-strategy.json"))
    return _convert_checkpoint(source, args)


def _convert_search(source: Path, out: Path) -> int:
    from ddsm_ext.compat.official_strategy import load_official_strategy

    strategy = load_official_strategy(source)
    strategy.save(out)
    say(f"{len(strategy.widths)} segments of constant width")
    print(out)
    return 0


def _convert_checkpoint(source: Path, args: argparse.Namespace) -> int:
    from ddsm_ext.compat.official_ddsm import load_official_ddsm
    from ddsm_ext.compat.official_strategy import parse_official_flags, read_text

    flags = parse_official_flags(read_text(args.flags), source=args.flags) if args.flags else {}
    if args.groups is not None:
        flags["groups"] = args.groups
    network = load_official_ddsm(source, flags, group=args.group)
    config = _official_run(network.config, int(flags.get("T", 1000)), args.set)
    tensors: dict[str, Any] = {k: v.contiguous() for k, v in network.state_dict().items()}
    return _new_run(args.name or "official", config, tensors, 0, source, args)


def _convert_shards(source: Path, args: argparse.Namespace) -> int:
    """Join the files of an index that carries its run's configuration."""
    from ddsm_ext.io.weights import load_shards

    tensors, about = load_shards(source)
    if "config" not in about:
        raise Refusal(f"{source}: its metadata hold no config; need one of a run of ddsm")
    config = RunConfig.from_dict(merge(about["config"], parse_settings(args.set)), str(source))
    name = args.name or source.name.removesuffix(INDEX_ENDING)
    floats = {key: tensor.float() for key, tensor in tensors.items()}
    return _new_run(name, config, floats, int(about.get("step", 0)), source, args)


def _new_run(
    name: str,
    config: RunConfig,
    tensors: dict[str, Any],
    step: int,
    source: Path,
    args: argparse.Namespace,
) -> int:
    from ddsm_ext.io.checkpoint import save_checkpoint
    from ddsm_ext.run.folder import create_run

    folder = create_run(args.root, name, config.to_dict())
    options.note_command(folder)
    save_checkpoint(folder, step, {"model": tensors, "ema": tensors}, {"source": source.name})
    say(f"{sum(t.numel() for t in tensors.values()):,} parameters, widths {config.model.widths}")
    print(folder)
    return 0


def _official_run(model: Any, timesteps: int, settings: list[str]) -> RunConfig:
    """Return a run's configuration around an official network; `settings` are those of `--set`."""
    changes = parse_settings(settings)
    for section in FIXED_SECTIONS:
        if section in changes:
            raise Refusal(f"--set changes {section}, which the checkpoint decides; use --flags")
    values = preset_values("cifar10")
    values["model"] = model.to_dict()
    values["diffusion"] = {"schedule": "linear", "timesteps": timesteps}
    # published scores were made without clipping: the reference's clip has no effect
    values["sampler"] = {"kind": "ddpm", "clip_denoised": False}
    return RunConfig.from_dict(merge(values, changes), "--set")
