"""Options of several commands (a run, settings, a device, seeds), and how they are read."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import warnings
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ddsm_ext.data.latents import is_latent_archive
from ddsm_ext.run.config import SECTIONS, RunConfig, changed, parse_setting
from ddsm_ext.sampling.samplers import SAMPLERS
from ddsm_ext.settings import LARGEST_INT, Refusal, did_you_mean, shown

MAX_SEEDS = 10_000_000
MAX_THREADS = 1024


def add_run_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--run` and `--root`."""
    parser.add_argument(
        "--run", metavar="RUN", help="run folder, its number or name (default: the newest)"
    )
    parser.add_argument(
        "--root", default="runs", metavar="FOLDER", help="where run folders are (default: runs)"
    )


def add_device_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--device`."""
    parser.add_argument(
        "--device",
        default="auto",
        metavar="DEVICE",
        help="cpu, cuda or cuda:N (default: cuda where there is one)",
    )


def add_weights_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--weights`."""
    parser.add_argument(
        "--weights", default="ema", metavar="NAME",
        help="ema (default), model, or ema-LENGTH of one of train.ema_lengths",
    )  # fmt: skip


def add_sampler_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--sampler`, `--steps` and those of classes and guidance, which override the run's."""
    parser.add_argument(
        "--sampler", metavar="KIND", help=f"{', '.join(SAMPLERS)} (default: the run's)"
    )
    parser.add_argument(
        "--class", dest="classes", metavar="NAMES",
        help="classes of the images, by name or label, e.g. cat,dog (default: all in turn)",
    )  # fmt: skip
    parser.add_argument(
        "--guidance", type=float, metavar="SCALE",
        help="scale of guidance away from a weak model; 1: none (default: the run's)",
    )  # fmt: skip
    parser.add_argument(
        "--guidance-interval", metavar=("LOW", "HIGH"), type=float, nargs=2,
        help="log-SNRs between which it is done",
    )  # fmt: skip
    parser.add_argument(
        "--guidance-width", metavar="WIDTH|FILE",
        help="width of the weak model, or its strategy (default: the width of the step)",
    )  # fmt: skip
    parser.add_argument(
        "--guidance-weak", metavar="KIND",
        help="the weak model: null, the network without a class, or width, the network at "
        "--guidance-width (autoguidance; default where it knows no null class)",
    )  # fmt: skip
    parser.add_argument(
        "--steps", type=int, metavar="N", help="denoising steps an image (default: the run's)"
    )


def check_count(option: str, value: int | None, most: int) -> None:
    """Refuse an option's number, if one is given, that is not from 1 to `most`.

    Raises:
        ValueError: naming the option.
    """
    if value is not None and not 1 <= value <= most:
        raise Refusal(f"{option} is {shown(value)}; need a whole number from 1 to {most}")


def check_output(
    option: str, path: str | None, *, folder: bool = False, suffix: str | None = None
) -> None:
    """Refuse, before any work, a path at which no file, or folder, can be written.

    Args:
        option: for the error.
        path: what is to be written; None is not.
        folder: whether that is a folder.
        suffix: what the name has to end in; None for anything.

    Raises:
        ValueError: naming the option, the path and what is in the way.
    """
    if path is None:
        return
    target, kind = Path(path), "folder" if folder else "file"
    if suffix is not None and target.suffix != suffix:
        raise Refusal(f"{option} is {path}; need a name that ends in {suffix}")
    if target.exists() and not (target.is_dir() if folder else target.is_file()):
        raise Refusal(f"{option} is {path}, which is there and no {kind}; need another name")
    start = target if folder else target.parent
    place = next((p for p in (start, *start.parents) if p.exists()), start)
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise Refusal(f"{option} is {path}; need a {kind} in a place that can be written to")


def find_run(args: argparse.Namespace) -> Path:
    """Return the run folder that `--run` names.

    Raises:
        FileNotFoundError: there is none.
    """
    from ddsm_ext.run.folder import resolve_run

    return resolve_run(args.root, args.run)


def add_extend_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--new` and `--extend`, of which a command takes one."""
    more = parser.add_mutually_exclusive_group()
    more.add_argument("--new", action="store_true", help="start another run of the same settings")
    more.add_argument(
        "--extend",
        type=int,
        metavar="N",
        help="continue the run of these settings to N steps; the learning rate restarts where it "
        "is, or at half of train.lr if that is more, and falls again",
    )


def add_set_argument(parser: argparse.ArgumentParser, text: str) -> None:
    """Add `--set`, with its line of help."""
    form = "SECTION.KEY=VALUE"
    parser.add_argument("--set", action="append", default=[], metavar=form, help=text)


def parse_settings(settings: list[str]) -> dict[str, Any]:
    """Read `section.key=value` options into nested dicts.

    Raises:
        ValueError: one has no `=`, or its section is unknown.
    """
    values: dict[str, dict[str, Any]] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        section, dot, key = name.strip().partition(".")
        if not equals or not dot or not key:
            raise Refusal(f"--set {setting}: need section.key=value, e.g. train.steps=2000")
        if section not in SECTIONS:
            raise Refusal(
                f"--set {setting}: unknown section {section!r}{did_you_mean(section, SECTIONS)}"
            )
        values.setdefault(section, {})[key] = parse_setting(section, key, text)
    return values


def preset_for(command: str, changes: dict[str, Any]) -> str | None:
    """Return the preset to start from where none is named: the digits', for the digits alone.

    Args:
        command: for the error.
        changes: what `--set` and `--data` lay over it.

    Returns:
        "digits"; None, the defaults of the sections, for other images.

    Raises:
        ValueError: nothing says to what size and colours the other images are brought.
    """
    from ddsm_ext.models.families import PRESETS

    source = changes.get("data", {}).get("source", "digits")
    if source == "digits":
        return "digits"
    if is_latent_archive(source):  # which says it
        return None
    if not {"image_size", "image_channels"} <= set(changes.get("model", {})):
        sizes = ", ".join(f"{n} {c.image_size}x{c.image_size}" for n, c in PRESETS.items())
        raise Refusal(
            f"{command}: got the images {shown(source)}, and nothing says to what size and colours "
            f"they are brought; need ddsm train with a --preset ({sizes}; digits are grey) or "
            "--config, or --set model.image_size=32 --set model.image_channels=3 (1: grey)"
        )
    return None


def _classes(run: Path, text: str) -> list[int]:
    """The labels that `--class` names."""
    from ddsm_ext.run.classes import class_names, labels_named
    from ddsm_ext.run.folder import config_of

    count = config_of(run).model.label_count
    if count == 0:
        raise Refusal(f"--class is {text}, the run's network takes no labels; need one that does")
    return list(labels_named(text, class_names(run, count), "--class"))


def _guidance(run: Path, args: argparse.Namespace) -> dict[str, Any]:
    """The settings of the sampler that the options of guidance name."""
    from ddsm_ext.run.folder import config_of

    settings: dict[str, Any] = {}
    if getattr(args, "guidance", None) is not None:
        settings["guidance"] = args.guidance
    if getattr(args, "guidance_interval", None) is not None:
        settings["guidance_interval"] = args.guidance_interval
    if getattr(args, "guidance_width", None) is not None:
        from ddsm_ext.run.strategies import read_strategy

        config = config_of(run)
        _, weak = read_strategy(args.guidance_width, run, config)
        settings["guidance_widths"], settings["guidance_cuts"] = weak.widths, weak.cuts
        if config.model.null_label is None:
            settings["guidance_weak"] = "width"
    if getattr(args, "guidance_weak", None) is not None:
        settings["guidance_weak"] = args.guidance_weak
    return settings


def run_settings(run: Path, args: argparse.Namespace) -> RunConfig:
    """Return a run's configuration with `--set` and the options of single settings laid over it.

    Raises:
        ValueError: the options change the network or the diffusion process, which belong to the
            weights, or are refused by a section.
    """
    from ddsm_ext.run.folder import config_of

    changes = parse_settings(getattr(args, "set", []))
    sampler = changes.setdefault("sampler", {})
    if getattr(args, "sampler", None) is not None:
        sampler["kind"] = args.sampler
    if getattr(args, "steps", None) is not None:
        sampler["steps"] = args.steps
    if getattr(args, "classes", None) is not None:
        sampler["classes"] = _classes(run, args.classes)
    sampler.update(_guidance(run, args))
    if getattr(args, "features", None):
        changes.setdefault("eval", {})["features"] = args.features
    return changed(config_of(run), changes, "--set")


def parse_seeds(text: str) -> list[int]:
    """Read seeds such as `7`, `0-63` or `0-7,100,200-203`.

    Raises:
        ValueError: the text is something else, or names more than ten million seeds.
    """
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise Refusal(
                f"--seeds is {shown(text)}; need numbers and ranges such as 0-63 or 1,5,9"
            )
        # int() reads no number of thousands of digits
        digits = max(len(first), len(last)) <= len(str(LARGEST_INT))
        low, high = (int(first), int(last or first)) if digits else (0, LARGEST_INT)
        if high < low:
            raise Refusal(f"--seeds is {shown(text)}; need ranges from low to high")
        if high > LARGEST_INT or len(seeds) + high - low >= MAX_SEEDS:
            raise Refusal(f"--seeds is {shown(text)}; need at most {MAX_SEEDS} seeds below 2^63")
        seeds.extend(range(low, high + 1))
    return seeds


def note_command(run: Path) -> None:
    """Append the command line of this process to the run's commands.jsonl.

    A run that cannot be written to, or that another process writes into, is as good as any other to
    read from: that is a warning.
    """
    from ddsm_ext.io.files import append_jsonl, one_line
    from ddsm_ext.io.lock import RunLock

    command = shlex.join(["ddsm", *sys.argv[1:]])
    time = datetime.now(UTC).isoformat(timespec="seconds")
    try:
        with RunLock(run):
            append_jsonl(run / "commands.jsonl", {"command": command, "time": time})
    except (OSError, Refusal) as error:
        why = getattr(error, "strerror", None) or one_line(error)
        warnings.warn(f"{run}: keeps no note of this command: {why}", stacklevel=2)
