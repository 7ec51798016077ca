"""Strategies (`search.txt`) and flag files of the reference DDSM code, parsed as data.

The reference appends `str(list_of_widths)` to search.txt and reads it back with `eval`; here only
number literals in a list are accepted, as they are or as NumPy 2 shows its numbers.
"""

from __future__ import annotations

import ast
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddsm_ext.diffusion.config import DiffusionConfig
from ddsm_ext.io.files import read_bytes
from ddsm_ext.sampling.config import SamplerConfig
from ddsm_ext.sampling.strategy import Strategy
from ddsm_ext.settings import Refusal

# 1000 widths take 6 kB; a file far larger is something else.
_MAX_BYTES = 2**22
_LIST = re.compile(r"\[[^\[\]]*\]")
_BETWEEN = re.compile(r"[\s,]*|\[[\s,]*\][\s,]*")  # lists, or those of one list
_NUMPY_NUMBER = re.compile(r"\b(?:np|numpy)\.(?:float|int)\d+\(([^()]*)\)")
_FLAG = re.compile(r"--?(?P<name>\w[\w.-]*)(=(?P<value>.*))?")

# Flags of numbers by what they describe: their kind, one of several if in a list, and their name
# here. main.py has their defaults, which are those of `official_config` and `DiffusionConfig`.
_NETWORK_FLAGS: dict[str, tuple[Any, str]] = {
    "T": (int, "T"),
    "ch": (int, "ch"),
    "ch_mult": ([int], "ch_mult"),
    "attn": ([int], "attn"),
    "num_res_blocks": (int, "num_res_blocks"),
    "dropout": (float, "dropout"),
    "img_size": (int, "image_size"),
    "candidate_width": ([float], "candidate_width"),
    "min_width": (float, "min_width"),
}
_PROCESS_FLAGS: dict[str, tuple[Any, str]] = {
    "T": (int, "timesteps"),
    "beta_1": (float, "beta_start"),
    "beta_T": (float, "beta_end"),
}
# Values of the other flags of the process, and ours
_MEAN_TYPES = {"epsilon": "epsilon", "xstart": "x0"}
_VAR_TYPES = {"fixedlarge": "fixed_large", "fixedsmall": "fixed_small"}
_TRUE, _FALSE = ("", "true", "t", "1"), ("false", "f", "0")
_WITH_VALUE = (*_NETWORK_FLAGS, *_PROCESS_FLAGS, "mean_type", "var_type", "flagfile")


def _letters(flag: str) -> str:
    return flag.lower().replace("-", "").replace("_", "")


_BY_LETTERS = {_letters(f): f for f in (*_WITH_VALUE, "slimmable_g16", "noslimmable_g16")}


def read_text(path: str | os.PathLike[str]) -> str:
    """Read a small UTF-8 text file, with or without a byte order mark.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is too large or no UTF-8 text.
    """
    path = Path(path)
    if not path.is_file():
        what = "is no regular file" if path.exists() else "does not exist"
        raise FileNotFoundError(f"{path} {what}; need a text file of the reference code")
    if path.stat().st_size > _MAX_BYTES:
        raise Refusal(f"{path} has {path.stat().st_size} bytes; need at most {_MAX_BYTES}")
    try:
        return read_bytes(path, "text file of the reference code").decode("utf-8-sig")
    except UnicodeDecodeError:
        raise Refusal(f"{path} is no UTF-8 text; need a text file of the reference") from None


def parse_official_strategy(
    text: str, *, index: int | None = None, source: str = "search.txt"
) -> list[float]:
    """Parse the text of a search.txt into one width for each timestep.

    Args:
        text: one or more lists of numbers, perhaps with commas between them or in one list; the
            reference appends one for each search.
        index: which list to take, counted from 0, negative from the end; None needs exactly one.
        source: what the errors call the text.

    Returns:
        [T] widths, t = 0 (the least noisy) first, as the reference's `strategy[t]`.

    Raises:
        ValueError: one sentence with what is wrong and where.
    """
    text = text.removeprefix("\ufeff")  # a byte order mark
    lists = _LIST.findall(text)
    rest = _LIST.sub("", text).strip()
    if not lists or not _BETWEEN.fullmatch(rest):
        near = repr(rest[:30] if rest else text.strip()[:30])
        raise Refusal(f"{source}: found {near}; need lists of widths like [1, 0.75, 0.5]")
    if index is None and len(lists) > 1:
        raise Refusal(
            f"{source} holds {len(lists)} strategies; need an index to choose one, such as 0 for "
            "the first or -1 for the last"
        )
    try:
        chosen = lists[index or 0]
    except IndexError:
        raise Refusal(
            f"{source} holds {len(lists)} strategies, index is {index}; need one of them"
        ) from None
    try:
        values = ast.literal_eval(_NUMPY_NUMBER.sub(r"\1", chosen))
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
        path_or_text: a search.txt, or its text: a string that begins with "[" and names no file.
        diffusion: the schedule it was searched for; None means the reference's, linear from 1e-4 to
            0.02 with as many steps as the list has, which is said where they are not its 1000.
        index: which list to take where there are several.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the text is no strategy, or its length differs from the schedule's.
    """
    # Imported late: parsing alone needs no torch.
    from ddsm_ext.diffusion.schedule import make_schedule

    name, text = "search.txt", os.fspath(path_or_text)
    is_path = isinstance(path_or_text, os.PathLike) or os.path.isfile(text)
    if is_path or not text.lstrip("\ufeff \t\r\n").startswith("["):
        name, text = text, read_text(text)
    widths = parse_official_strategy(text, index=index, source=name)
    if diffusion is None:
        if len(widths) != DiffusionConfig.timesteps:
            warnings.warn(
                f"{name} has {len(widths)} widths and not the reference's "
                f"{DiffusionConfig.timesteps}: taken for a process of so many timesteps with its "
                "betas; need the flag file of another one",
                stacklevel=2,
            )
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
        text: one flag a line, or its value on the next; flags that do not describe the network are
            passed over.
        source: what the errors call the text.

    Returns:
        A config for `load_official_ddsm`: the flags given, and `groups` (16 with
        `--slimmable_g16`, else 32).

    Raises:
        ValueError: a line is no flag, or almost one of these, or a value is no number.
    """
    flags = _read_flags(text, source)
    config = _numbers(flags, _NETWORK_FLAGS, source)
    line, value = flags.get("slimmable_g16", [(0, "false")])[-1]
    if value.lower() not in (*_TRUE, *_FALSE):
        raise Refusal(f"{source}:{line}: --slimmable_g16 is {value!r}; need true or false")
    config["groups"] = 16 if value.lower() in _TRUE else 32
    return config


def parse_official_process(
    text: str, *, source: str = "flag file"
) -> tuple[DiffusionConfig, SamplerConfig]:
    """Read the diffusion process and the sampler from a flag file of the reference.

    Args:
        text: one flag a line; an empty one means the reference's defaults. T, beta_1 and beta_T
            make the schedule, mean_type is what the network predicts, var_type the variance of a
            step; flags of training and logging are passed over.
        source: what the errors call the text.

    Returns:
        The process, and ancestral sampling over all its steps. It clips nothing: the reference
        computes a clipped image and does not use it, so that published scores were made without.

    Raises:
        ValueError: a line is no flag, or almost one of these, or a value is no number or cannot
            work here.
    """
    flags = _read_flags(text, source)
    values = _numbers(flags, _PROCESS_FLAGS, source)
    values["parameterisation"] = _choice(flags, "mean_type", _MEAN_TYPES, source)
    variance = _choice(flags, "var_type", _VAR_TYPES, source)
    try:
        diffusion = DiffusionConfig(**values)
    except Refusal as error:
        raise Refusal(f"{source}: {error}") from None
    return diffusion, SamplerConfig(kind="ddpm", variance=variance, clip_denoised=False)


# name of a flag -> number of the line and value, for each time that it is given
_Flags = dict[str, list[tuple[int, str]]]


def _read_flags(text: str, source: str) -> _Flags:
    """The flags as absl reads them: with one dash or two, the value behind `=` or a line on."""
    lines = ((number, raw.strip()) for number, raw in enumerate(text.splitlines(), start=1))
    left = [each for each in lines if each[1] and not each[1].startswith(("#", "//"))]
    flags: _Flags = {}
    while left:
        number, line = left.pop(0)
        found = _FLAG.fullmatch(line)
        if found is None:
            raise Refusal(f"{source}:{number}: found {line[:40]!r}; need lines like --ch=128")
        name, value = found["name"], found["value"]
        known = _BY_LETTERS.get(_letters(name), name)
        if name != known:
            raise Refusal(f"{source}:{number}: --{name} is no flag there is; need --{known}")
        if name == "flagfile":
            raise Refusal(
                f"{source}:{number}: --flagfile names another file; need its lines in this one"
            )
        # Of flags that are passed over it is not known whether they take a value.
        if value is None and left and (
            name in _WITH_VALUE
            or not (left[0][1].startswith("-") or name.endswith("slimmable_g16"))
        ):
            value = left.pop(0)[1]
        if name == "noslimmable_g16":  # absl's way to turn a flag off
            name, value = "slimmable_g16", "false"
        flags.setdefault(name, []).append((number, value or ""))
    return flags


def _numbers(
    flags: _Flags, known: Mapping[str, tuple[Any, str]], source: str
) -> dict[str, Any]:
    """The known flags that are given, by our names; the last one of a flag counts, as in absl."""
    values: dict[str, Any] = {}
    for flag, (kind, key) in known.items():
        if flag not in flags:
            continue
        each = kind[0] if isinstance(kind, list) else kind
        numbers = [_number(source, line, flag, value, each) for line, value in flags[flag]]
        values[key] = numbers if isinstance(kind, list) else numbers[-1]
    return values


def _number(source: str, line: int, flag: str, value: str, kind: type) -> Any:
    try:
        return kind(value)
    except ValueError:
        need = "an integer" if kind is int else "a number"
        raise Refusal(f"{source}:{line}: --{flag} is {value!r}; need {need}") from None


def _choice(flags: _Flags, flag: str, choices: Mapping[str, str], source: str) -> str:
    """What the value of a flag is called here; the first choice is the reference's default."""
    line, value = flags.get(flag, [(0, next(iter(choices)))])[-1]
    if value not in choices:
        raise Refusal(f"{source}:{line}: --{flag} is {value!r}; need {' or '.join(choices)}")
    return choices[value]
