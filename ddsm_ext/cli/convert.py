"""Import weights or search results of other code as a run or a strategy.

ddsm convert 64x64.pt --from guided-diffusion --flags flags.txt
                                              a checkpoint of guided-diffusion (ADM), or of
                                              improved-diffusion, with its MODEL_FLAGS
ddsm convert edm.safetensors --from edm --flags arguments.json
                                              weights of EDM, with its network's arguments
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
from ddsm_ext.settings import Refusal, check_choice

STRATEGY_ENDINGS = (".txt", ".json")
# What is converted, and the options that it takes
OPTIONS = {
    "a search result": ("out", "flags", "index"),
    "a checkpoint": ("source_code", "flags", "groups", "group", "root", "name", "set"),
    "a checkpoint of guided-diffusion": ("source_code", "flags", "group", "root", "name", "set"),
    "weights of EDM": ("source_code", "flags", "group", "root", "name", "set"),
    "an index of weights": ("group", "root", "name", "set"),
}
CODES = {
    "ddsm": "a checkpoint",
    "guided-diffusion": "a checkpoint of guided-diffusion",
    "improved-diffusion": "a checkpoint of guided-diffusion",
    "edm": "weights of EDM",
}

_SHOWN = {"source_code": "from"}  # options by another name


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `ddsm convert`."""
    parser.add_argument(
        "source", help="checkpoint (.pt) or search result (.txt), or an index of weights"
    )
    parser.add_argument(
        "--from", dest="source_code", metavar="CODE",
        help="code of the checkpoint: ddsm (default), guided-diffusion, improved-diffusion, edm",
    )  # fmt: skip
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
    parser.add_argument("--name", help="name of the run (default: official, or the file's)")
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
        kind = CODES[check_choice("--from", args.source_code or "ddsm", CODES)]
    for name in dict.fromkeys(name for each in OPTIONS.values() for name in each):
        if name not in OPTIONS[kind] and getattr(args, name) not in (None, []):
            known = ", ".join(f"--{_SHOWN.get(option, option)}" for option in OPTIONS[kind])
            shown = _SHOWN.get(name, name)
            raise Refusal(f"--{shown} is of no use for {source}, {kind}; need {known} alone")
    options.check_output("--out", args.out)
    if kind == "a search result":
        return _convert_search(source, args)

    from ddsm_ext.run.importing import (
        import_edm,
        import_guided_diffusion,
        import_official,
        import_shards,
    )

    root, how = args.root or "runs", {"group": args.group or "", "name": args.name}
    how["changes"] = options.parse_settings(args.set)
    with told():
        if kind == "an index of weights":
            folder = import_shards(source, root, **how)
        elif kind == "weights of EDM":
            if args.flags is None:
                raise Refusal("--from edm: need --flags, a JSON file of the network's arguments")
            folder = import_edm(source, root, flags_file=args.flags, where="--set", **how)
        elif kind == "a checkpoint of guided-diffusion":
            flags = {"flags_file": args.flags, "code": args.source_code, "where": "--set"}
            folder = import_guided_diffusion(source, root, **flags, **how)
        else:
            how["name"] = args.name or "official"
            flags = {"flags_file": args.flags, "groups": args.groups, "where": "--set"}
            folder = import_official(source, root, **flags, **how)
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
