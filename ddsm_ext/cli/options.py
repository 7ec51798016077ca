"""Options of several commands (a run, settings, a device, seeds), and how they are read."""

from __future__ import annotations

import argparse
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ddsm_ext.run.config import SECTIONS, RunConfig, changed, parse_value
from ddsm_ext.settings import Refusal, did_you_mean

MAX_SEEDS = 10_000_000


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


def add_sampler_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--sampler` and `--steps`, which override the run's sampler."""
    parser.add_argument("--sampler", metavar="KIND", help="ddpm or ddim (default: the run's)")
    parser.add_argument(
        "--steps", type=int, metavar="N", help="denoising steps an image (default: the run's)"
    )


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
        values.setdefault(section, {})[key] = parse_value(text.strip())
    return values


def run_settings(run: Path, args: argparse.Namespace) -> RunConfig:
    """Return a run's configuration with `--set`, `--sampler` and `--steps` laid over it.

    Raises:
        ValueError: the options change the network or the diffusion process, which belong to the
            weights, or are refused by a section.
    """
    from ddsm_ext.run.folder import run_config

    changes = parse_settings(getattr(args, "set", []))
    sampler = changes.setdefault("sampler", {})
    if getattr(args, "sampler", None) is not None:
        sampler["kind"] = args.sampler
    if getattr(args, "steps", None) is not None:
        sampler["steps"] = args.steps
    before = RunConfig.from_dict(run_config(run), str(run / "config.json"))
    return changed(before, changes, "--set")


def parse_seeds(text: str) -> list[int]:
    """Read seeds such as `7`, `0-63` or `0-7,100,200-203`.

    Raises:
        ValueError: the text is something else, or names more than ten million seeds.
    """
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise Refusal(f"--seeds is {text!r}; need numbers and ranges such as 0-63 or 1,5,9")
        low, high = int(first), int(last) if dash else int(first)
        if high < low:
            raise Refusal(f"--seeds is {text!r}; need ranges from low to high")
        if high >= 2**63 or len(seeds) + high - low >= MAX_SEEDS:
            raise Refusal(f"--seeds is {text!r}; need at most {MAX_SEEDS} seeds below 2^63")
        seeds.extend(range(low, high + 1))
    return seeds


def note_command(run: Path) -> None:
    """Append the command line of this process to the run's commands.jsonl."""
    from ddsm_ext.io.files import append_jsonl

    command = shlex.join(["ddsm", *sys.argv[1:]])
    time = datetime.now(UTC).isoformat(timespec="seconds")
    append_jsonl(run / "commands.jsonl", {"command": command, "time": time})
