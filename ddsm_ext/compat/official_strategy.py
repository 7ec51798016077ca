"""Strategies (`search.txt`) and flag files of the reference DDSM code, parsed as data.

The reference appends `str(list_of_widths)` to search.txt and reads it back with `eval`; here only
number literals in a list are accepted.
"""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path
from typing import Any

from ddsm_ext.diffusion.config import DiffusionConfig
from ddsm_ext.sampling.strategy import Strategy
from ddsm_ext.settings import Refusal

# 1000 widths take 6 kB; a file far larger is something else.
_MAX_BYTES = 2**22
_LIST = re.compile(r"\[[^\[\]]*\]")

# Flags that describe the network or the noise schedule, their kind and their name here.
_NETWORK_FLAGS: dict[str, tuple[str, type]] = {
    "T": ("T", int),
    "ch": ("ch", int),
    "ch_mult": ("ch_mult", list),
    "attn": ("attn", list),
    "num_res_blocks": ("num_res_blocks", int),
    "dropout": ("dropout", float),
    "img_size": ("image_size", int),
}


def read_text(path: str | os.PathLike[str]) -> str:
    """Read a small UTF-8 text file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is too large or no UTF-8 text.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"{path} {what}; need a text file of the reference code")
    if path.stat().st_size > _MAX_BYTES:
        raise Refusal(f"{path} has {path.stat().st_size} bytes; need at most {_MAX_BYTES}")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise Refusal(f"{path} is no UTF-8 text; need a text file of the reference") from None


def parse_official_strategy(
    text: str, *, index: int | None = None, source: str = "search.txt"
) -> list[float]:
    """Parse the text of a search.txt into one width for each timestep.

    Args:
        text: one or more lists of numbers; the reference appends one for each search.
        index: which list to take, counted from 0, negative from the end; None needs exactly one.
        source: what the errors call the text.

    Returns:
        [T] widths, t = 0 (the least noisy) first, as the reference's `strategy[t]`.

    Raises:
        ValueError: one sentence with what is wrong and where.
    """
    lists = _LIST.findall(text)
    rest = _LIST.sub("", text).strip()
    if not lists or rest:
        near = repr(rest[:30] if rest else text.strip()[:30])
        raise Refusal(f"{source}: found {near}; need lists of widths like [1, 0.75, 0.5]")
    if index is None and len(lists) > 1:
        raise Refusal(f"{source} holds {len(lists)} strategies; need an index to choose one")
    try:
        chosen = lists[index or 0]
    except IndexError:
        raise Refusal(
            f"{source} holds {len(lists)} strategies, index is {index}; need one of them"
        ) from None
    try:
        values = ast.literal_eval(chosen)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise Refusal(
            f"{source}: {chosen[:30]!r} is no list of numbers; need widths like [1, 0.75, 0.5]"
        ) from None
    if not values:
        raise Refusal(f"{source}: the list is empty; need one width a timestep")
    for t, value in enumerate(values):
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not 0.0 < value <= 1.0:
            raise Refusal(f"{source}: the width at t={t} is {value!r}; need 0 < width <= 1")
    return [float(value) for value in values]


def load_official_strategy(
    path_or_text: str | os.PathLike[str],
    *,
    diffusion: DiffusionConfig | None = None,
    index: int | None = None,
) -> Strategy:
    """Return a reference strategy over log-SNR, for any sampler and step count.

    Args:
        path_or_text: a search.txt, or its text (recognised by its "[").
        diffusion: the schedule it was searched for; None means the reference's, linear from 1e-4 to
            0.02 with as many steps as the list has.
        index: which list to take where there are several.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the text is no strategy, or its length differs from the schedule's.
    """
    # Imported late: parsing alone needs no torch.
    from ddsm_ext.diffusion.schedule import make_schedule

    name, text = "search.txt", os.fspath(path_or_text)
    if not text.lstrip().startswith("["):
        name, text = text, read_text(text)
    widths = parse_official_strategy(text, index=index, source=name)
    if diffusion is None:
        diffusion = DiffusionConfig(timesteps=len(widths))
    if len(widths) != diffusion.timesteps:
        raise Refusal(
            f"{name} has {len(widths)} widths, the schedule {diffusion.timesteps} timesteps; "
            "need one width a timestep"
        )
    log_snrs = make_schedule(diffusion).log_snrs.tolist()
    origin = {"kind": "official DDSM search.txt", "file": Path(name).name,
              "diffusion": diffusion.to_dict()}  # fmt: skip
    return Strategy.from_timestep_widths(widths, log_snrs, origin)


def parse_official_flags(text: str, *, source: str = "flag file") -> dict[str, Any]:
    """Read the network from a flag file of the reference (`--ch=128` lines).

    Args:
        text: one flag a line; flags that do not describe the network are passed over.
        source: what the errors call the text.

    Returns:
        A config for `load_official_ddsm`: the flags given, and `groups` (16 with
        `--slimmable_g16`, else 32).

    Raises:
        ValueError: a line is no flag, or a value is no number.
    """
    config: dict[str, Any] = {"groups": 32}
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        if not line.startswith("--"):
            raise Refusal(f"{source}:{number}: found {line[:40]!r}; need lines like --ch=128")
        flag, _, value = line[2:].partition("=")
        if flag == "slimmable_g16":
            config["groups"] = 16 if value.lower() in ("", "true", "1") else 32
        if flag not in _NETWORK_FLAGS:
            continue
        key, kind = _NETWORK_FLAGS[flag]
        if kind is list:  # repeated flags collect, as absl's multi flags do
            config.setdefault(key, []).append(_number(source, number, flag, value, int))
        else:
            config[key] = _number(source, number, flag, value, kind)
    return config


def _number(source: str, line: int, flag: str, value: str, kind: type) -> Any:
    try:
        return kind(value)
    except ValueError:
        need = "an integer" if kind is int else "a number"
        raise Refusal(f"{source}:{line}: --{flag} is {value!r}; need {need}") from None
