"""What all frozen settings share: dict round trip, checks in one sentence, "did you mean".

Imports no torch, so that `ddsm --help` and `--dry-run` stay quick.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import reprlib
import sys
from collections.abc import Iterable, Mapping
from typing import Any, Self

LARGEST_INT = 2**63 - 1  # what torch and NumPy count with
LARGEST_IMAGE = 2**14  # pixels a side


class _Shown(reprlib.Repr):
    """`repr` of any value, in about a hundred characters."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 100
        self.maxtuple = self.maxlist = 16
        self.maxlevel = 3

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if x.bit_length() <= 128 else f"an int of {x.bit_length()} bits"


shown = _Shown().repr  # for errors: what a user gave may be long, deep, or a number without end


class Refusal(ValueError):
    """What this package raises where it is asked for what it cannot do, in one sentence.

    The sentence says what was asked, what it got and what it needs. The command line prints it and
    no traceback; every other error is a fault of the program.
    """


class TypeRefusal(Refusal, TypeError):
    """A refusal of a value for its type."""


class MissingLibrary(Refusal, ImportError):
    """A refusal because a library is not installed, too old, or does not load."""


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Return `; did you mean X?`, or `; known: A, B` where nothing is close, to end an error.

    Args:
        name: what was given.
        known: the names that would have been right.
    """
    choices = list(known)
    close = difflib.get_close_matches(str(name).lower(), choices, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; known: {', '.join(choices)}" if choices else ""


def check_keys(owner: str, values: Mapping[str, Any], known: Iterable[str]) -> None:
    """Refuse a key outside `known`.

    Raises:
        ValueError: naming the owner, the key and the closest known one.
    """
    names = list(known)
    for key in values:
        if key not in names:
            raise Refusal(f"{owner}: unknown key {shown(key)}{did_you_mean(key, names)}")


def check_choice(name: str, value: object, choices: Iterable[str]) -> str:
    """Return `value` if it is one of `choices`.

    Raises:
        ValueError: naming the argument, the value, the choices and the closest one.
    """
    names = list(choices)
    if isinstance(value, str) and value in names:
        return value
    text = value if isinstance(value, str) else ""
    close = difflib.get_close_matches(text, names, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise Refusal(f"{name} is {shown(value)}; need one of {', '.join(map(repr, names))}{hint}")


def is_int(value: object, least: float = -math.inf) -> bool:
    """True for an int (no bool) of at least `least`."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_number(value: object, low: float, high: float = math.inf) -> bool:
    """True for a finite number (no bool) with low <= value <= high."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) <= sys.float_info.max and low <= value <= high


class Settings:
    """Base of the frozen settings: plain dicts in and out, and checks that name the field."""

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as a JSON-ready dict; tuples become lists."""
        values = dataclasses.asdict(self)  # type: ignore[call-overload]
        return {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build the settings from `to_dict()` output; missing keys take their defaults.

        Raises:
            TypeError: `values` is no mapping, or lacks a key that has no default.
            ValueError: a key is unknown (with the closest known one), or a value is refused.
        """
        if not isinstance(values, Mapping):
            raise TypeRefusal(
                f"{cls.__name__}: got {type(values).__name__}; need a mapping of keys"
            )
        fields = dataclasses.fields(cls)  # type: ignore[arg-type]
        check_keys(cls.__name__, values, [field.name for field in fields])
        for field in fields:
            required = field.default is field.default_factory is dataclasses.MISSING
            if required and field.name not in values:
                raise TypeRefusal(f"{cls.__name__}: {field.name} is missing; it has no default")
        return cls(**{key: tuple(v) if isinstance(v, list) else v for key, v in values.items()})

    def _check(self, name: str, ok: bool, need: str, error: type[Refusal] = Refusal) -> None:
        if not ok:
            value = shown(getattr(self, name))
            raise error(f"{type(self).__name__}: {name} is {value}; need {need}")

    def _check_type(self, name: str, ok: bool, need: str) -> None:
        self._check(name, ok, need, TypeRefusal)

    def _check_int(
        self, name: str, least: int, most: int = LARGEST_INT, *, optional: bool = False
    ) -> None:
        """Refuse anything but an int (no bool) from `least` to `most`, or None if `optional`."""
        value = getattr(self, name)
        if not (optional and value is None):
            kind = f"{'None or ' if optional else ''}an int"
            self._check_type(name, is_int(value), f"{kind} >= {least}")
            self._check(name, value >= least, f"{kind} >= {least}")
            self._check(name, value <= most, f"{kind} <= {most}")

    def _check_choice(self, name: str, choices: Iterable[str]) -> None:
        check_choice(f"{type(self).__name__}: {name}", getattr(self, name), choices)


def plain(values: Settings | Mapping[str, Any]) -> dict[str, Any]:
    """Return settings, or a mapping with settings among its values, as a JSON-ready dict."""
    if isinstance(values, Settings):
        return values.to_dict()
    return {key: plain(v) if isinstance(v, Settings) else v for key, v in values.items()}


def completed(saved: Any, now: Any) -> Any:
    """Return what a file says in the form that compares with `plain(now)`.

    A file of an earlier version lacks the settings that came later: they count as their defaults.
    Every comparison of saved settings with those of now goes through here.

    Args:
        saved: `plain(...)` of an earlier process, as JSON gives it back.
        now: settings, or a mapping with settings among its values.

    Returns:
        `saved` with each missing setting at its default; settings that are refused today, such as
        unknown keys, stay as they are, and so differ.
    """
    if isinstance(now, Settings):
        try:
            return type(now).from_dict(saved).to_dict()
        except (TypeError, ValueError):
            return saved
    if isinstance(now, Mapping) and isinstance(saved, Mapping):
        return {key: completed(value, now.get(key)) for key, value in saved.items()}
    return saved
