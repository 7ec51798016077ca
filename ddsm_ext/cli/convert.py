"""Import what the official DDSM code wrote, or weights in several files, as a run or a strategy.

ddsm convert ckpt.pt --flags flagfile.txt     an official checkpoint, into a new run folder
ddsm convert search.txt --out s.json          widths of the timesteps, into a strategy file
ddsm convert ema.safetensors.index.json       the files that the index names, into a new run folder
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ddsm_ext.cli import options
from ddsm_ext.cli.console import say, told
from ddsm_ext.io.weights import INDEX_ENDING
from ddsm_ext.settings import Refusal, did_you_mean

STRATEGY_ENDINGS = (".txt", ".json")


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
    if not source.name.endswith(INDEX_ENDING) and source.suffix.lower() in STRATEGY_ENDINGS:
        return _convert_search(source, Path(args.out or f"{source.stem}-strategy.json"))

    from ddsm_ext.run.importing import import_official, import_shards

    changes = options.parse_settings(args.set)
    with told():
        if source.name.endswith(INDEX_ENDING):
            folder = import_shards(source, args.root, name=args.name, changes=changes)
        else:
            folder = import_official(
                source,
                args.root,
                flags_file=args.flags,
                groups=args.groups,
                group=args.group,
                name=args.name or "official",
                changes=changes,
                where="--set",
            )
    options.note_command(folder)
    print(folder)
    return 0


def _convert_search(source: Path, out: Path) -> int:
    from ddsm_ext.compat.official_strategy import load_official_strategy

    strategy = load_official_strategy(source)
    strategy.save(out)
    say(f"{len(strategy.widths)} segments of constant width")
    print(out)
    return 0
