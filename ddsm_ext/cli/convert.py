"""Import what the official DDSM code wrote, or weights in several files, as a run or a strategy.

ddsm convert ckpt.pt --flags flagfile.txt     an official checkpoint, into a new run folder
ddsm convert search.txt --out s.json          widths of the timesteps, into a strategy file; with
                                              --flags of the process that they were searched for
ddsm convert ema.safetensors.index.json       the files that the index names, into a new run folder
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ddsm_ext.cli import options
from ddsm_ext.cli.console import say, told
from ddsm_ext.io.weights import INDEX_ENDING
from ddsm_ext.settings import Refusal

STRATEGY_ENDINGS = (".txt", ".json")
# What is converted, and the options that it takes
OPTIONS = {
    "a search result": ("out", "flags", "index"),
    "a checkpoint": ("flags", "groups", "group", "root", "name", "set"),
    "an index of weights": ("group", "root", "name", "set"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `ddsm convert`."""
    parser.add_argument(
        "source", help="official checkpoint (.pt) or search result (.txt), or an index of weights"
    )
    parser.add_argument("--out", metavar="FILE", help="strategy file to write (search results)")
    parser.add_argument(
        "--index", type=int, metavar="N",
        help="which of several search results in the file: 0 the first, -1 the last",
    )  # fmt: skip
    parser.add_argument(
        "--flags", metavar="FILE", help="flag file that the checkpoint or search came with"
    )
    parser.add_argument("--groups", type=int, help="groups of its GroupNorm: 32 (default) or 16")
    parser.add_argument(
        "--group", metavar="NAME",
        help="which of several networks there: ema_model (default), net_model, or as it is called",
    )  # fmt: skip
    parser.add_argument("--root", metavar="FOLDER", help="where its run goes (default: runs)")
    parser.add_argument("--name", help="name of the run (default: official, or that of the index)")
    options.add_set_argument(parser, "a setting of the run, e.g. data.source=cifar.zip")


def run(args: argparse.Namespace) -> int:
    """Run `ddsm convert`."""
    source = Path(args.source)
    if not source.is_file():
        raise FileNotFoundError(f"{source}: no such file; need an official .pt or search.txt")
    if source.name.endswith(INDEX_ENDING):
        kind = "an index of weights"
    elif source.suffix.lower() in STRATEGY_ENDINGS or _is_list(source):
        kind = "a search result"
    else:
        kind = "a checkpoint"
    for name in dict.fromkeys(name for each in OPTIONS.values() for name in each):
        if name not in OPTIONS[kind] and getattr(args, name) not in (None, []):
            known = ", ".join(f"--{option}" for option in OPTIONS[kind])
            raise Refusal(f"--{name} is of no use for {source}, {kind}; need {known} alone")
    options.check_output("--out", args.out)
    if kind == "a search result":
        return _convert_search(source, args)

    from ddsm_ext.run.importing import import_official, import_shards

    changes, root = options.parse_settings(args.set), args.root or "runs"
    with told():
        if kind == "an index of weights":
            folder = import_shards(
                source, root, group=args.group or "", name=args.name, changes=changes
            )
        else:
            folder = import_official(
                source,
                root,
                flags_file=args.flags,
                groups=args.groups,
                group=args.group or "",
                name=args.name or "official",
                changes=changes,
                where="--set",
            )
    options.note_command(folder)
    print(folder)
    return 0


def _is_list(source: Path) -> bool:
    """Whether a file is text that begins with a list, whatever it is called."""
    with source.open("rb") as file:
        start = file.read(64)
    return start.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[") and b"\0" not in start


def _convert_search(source: Path, args: argparse.Namespace) -> int:
    from ddsm_ext.compat.official_strategy import (
        load_official_strategy,
        parse_official_process,
        read_text,
    )

    process = None
    if args.flags is not None:
        process, _ = parse_official_process(read_text(args.flags), source=args.flags)
    strategy = load_official_strategy(source, diffusion=process, index=args.index)
    out = Path(args.out or f"{source.stem}-strategy.json")
    strategy.save(out)
    say(f"{len(strategy.widths)} segments of constant width")
    print(out)
    return 0
