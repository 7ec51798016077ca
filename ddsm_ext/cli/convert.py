"""Import weights or search results of other code as a run or a strategy.

ddsm convert 64x64.pt --from guided-diffusion --flags flags.txt
                                              a checkpoint of guided-diffusion (ADM), or of
                                              improved-diffusion, with its MODEL_FLAGS
ddsm convert edm.safetensors --from edm --flags arguments.json
                                              weights of EDM, with its network's arguments
ddsm convert folder --from diffusers          a U-Net of diffusers, or a pipeline with one, with the
                                              process and sampler of its scheduler
ddsm convert model.ckpt --from latent-diffusion --flags config.yaml
                                              a checkpoint of latent-diffusion, with its
                                              configuration, or its U-Net's arguments as JSON
ddsm convert ckpt.pt --flags flagfile.txt     an official checkpoint, into a new run folder
ddsm convert search.txt --out s.json          widths of the timesteps, into a strategy file; with
                                              --flags of the process that they were searched for
ddsm convert ema.safetensors.index.json       the files that the index names, into a new run folder
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

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
    "a folder of diffusers": ("source_code", "root", "name", "set"),
    "a checkpoint of latent-diffusion": ("source_code", "flags", "group", "root", "name", "set"),
    "weights of EDM": ("source_code", "flags", "group", "root", "name", "set"),
    "an index of weights": ("group", "root", "name", "set"),
}
CODES = {
    "ddsm": "a checkpoint",
    "guided-diffusion": "a checkpoint of guided-diffusion",
    "improved-diffusion": "a checkpoint of guided-diffusion",
    "edm": "weights of EDM",
    "diffusers": "a folder of diffusers",
    "latent-diffusion": "a checkpoint of latent-diffusion",
}

# Codes whose weights do not say what network they are of, and what says it
_FLAGS = {
    "edm": "a JSON file of the network's arguments",
    "latent-diffusion": "the model's configuration, or JSON of its U-Net's arguments",
}
_SHOWN = {"source_code": "from"}  # options by another name


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `ddsm convert`."""
    parser.add_argument(
        "source", help="checkpoint (.pt), search result (.txt), index of weights, or a folder"
    )
    parser.add_argument(
        "--from", dest="source_code", metavar="CODE",
        help=f"code of the checkpoint: ddsm (default), {', '.join([*CODES][1:])}",
    )  # fmt: skip
    parser.add_argument("--out", metavar="FILE", help="strategy file to write (search results)")
    parser.add_argument(
        "--index", type=int, metavar="N",
        help="which of several search results in the file: 0 the first, -1 the last",
    )  # fmt: skip
    parser.add_argument(
        "--flags", metavar="FILE",
        help="flag file or configuration that the checkpoint or search came with",
    )  # fmt: skip
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
    kind = _kind(source, args.source_code)
    for name in dict.fromkeys(name for each in OPTIONS.values() for name in each):
        if name not in OPTIONS[kind] and getattr(args, name) not in (None, []):
            known = ", ".join(f"--{_SHOWN.get(option, option)}" for option in OPTIONS[kind])
            shown = _SHOWN.get(name, name)
            raise Refusal(f"--{shown} is of no use for {source}, {kind}; need {known} alone")
    options.check_output("--out", args.out)
    if kind == "a search result":
        return _convert_search(source, args)
    with told():
        folder = _import(kind, source, args)
    options.note_command(folder)
    print(folder)
    return 0


def _kind(source: Path, code: str | None) -> str:
    """What is converted, a key of OPTIONS."""
    check_choice("--from", code or "ddsm", CODES)
    if code == "diffusers":
        if not source.is_dir():
            raise FileNotFoundError(f"{source}: no such folder; need one of diffusers")
        return CODES[code]
    if source.is_dir():
        raise Refusal(f"{source}: is a folder; need a file, or --from diffusers for a folder of it")
    if not source.is_file():
        raise FileNotFoundError(f"{source}: no such file; need an official .pt or search.txt")
    if source.name.endswith(INDEX_ENDING):
        return "an index of weights"
    if source.suffix.lower() in STRATEGY_ENDINGS or _is_list(source):
        return "a search result"
    return CODES[code or "ddsm"]


def _import(kind: str, source: Path, args: argparse.Namespace) -> Path:
    """Make a run of weights; returns its folder."""
    from ddsm_ext.run import importing

    root, changes = args.root or "runs", options.parse_settings(args.set)
    how: dict[str, Any] = {"name": args.name, "changes": changes}
    if kind == "a folder of diffusers":
        from ddsm_ext.run.importing_diffusers import import_unet

        return import_unet(source, root, where="--set", **how)
    how["group"] = args.group or ""
    if kind == "an index of weights":
        return importing.import_shards(source, root, **how)
    how |= {"flags_file": args.flags, "where": "--set"}
    if kind == "a checkpoint":
        how["name"] = args.name or "official"
        return importing.import_official(source, root, groups=args.groups, **how)
    if kind == "a checkpoint of guided-diffusion":
        return importing.import_guided_diffusion(source, root, code=args.source_code, **how)
    if args.flags is None:
        need = f"need --flags, {_FLAGS[args.source_code]}"
        raise Refusal(f"--from {args.source_code}: {need}")
    if kind == "weights of EDM":
        return importing.import_edm(source, root, **how)
    from ddsm_ext.run.importing_latent_diffusion import import_latent_diffusion

    return import_latent_diffusion(source, root, **how)


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
