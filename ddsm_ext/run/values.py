"""Settings given as text or JSON, brought to the types of their fields."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import types
import typing
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from ddsm_ext.settings import LARGEST_INT, Refusal, TypeRefusal, did_you_mean, is_number, shown


@lru_cache
def hints_of(cls: Any) -> dict[str, Any]:
    """Return the types of the settings of a dataclass."""
    return typing.get_type_hints(cls)


def settings_from(
    cls: Any, values: Mapping[str, Any], where: str, section: str = "", most: Mapping[str, int] = {}
) -> Any:
    """Build a dataclass of settings from JSON values, each brought to its field's type.

    Args:
        cls: the dataclass.
        values: by key.
        where: what to call the source in an error, e.g. a file name.
        section: that the keys belong to, for the error, e.g. "train"; empty: to none.
        most: largest value of a number, or length of a list, by key.

    Raises:
        TypeError: a value has no reading as the type of its field.
        ValueError: a key is unknown, or a value too large or refused by the dataclass.
    """
    hints, prefix = hints_of(cls), f"{section}." if section else ""
    names = [field.name for field in dataclasses.fields(cls) if field.init]
    for name in values:
        if name not in names:
            raise Refusal(f"{where}: unknown key {prefix}{name}{did_you_mean(name, names)}")
    fields = {k: coerce(v, hints[k], f"{where}: {prefix}{k}") for k, v in values.items()}
    for name, limit in most.items():
        value, what = fields.get(name), f"{where}: {prefix}{name}"
        if isinstance(value, tuple) and len(value) > limit:
            raise Refusal(f"{what} has {len(value)} values; need at most {limit}")
        if isinstance(value, int) and value > limit:
            raise Refusal(f"{what} is {value}; need at most {limit}")
    return cls(**fields)


def coerce(value: Any, hint: Any, where: str) -> Any:
    """Bring a JSON value to the type of a dataclass field.

    Args:
        value: a JSON value; a string with commas serves as a list.
        hint: the field's type.
        where: what to call the value in an error.

    Raises:
        TypeError: the value has no reading as that type, as numbers that are not finite, and whole
            ones of more than 64 bits, have none.
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:
        return None if value is None else coerce(value, args[0], where)
    if origin is tuple:
        items = value.split(",") if isinstance(value, str) else value
        items = [items] if isinstance(items, int | float) else items
        if not isinstance(items, list | tuple):
            raise TypeRefusal(f"{where} is {shown(value)}; need a list such as 1,2,2")
        # tuple[int, ...] has one type for all, tuple[int, float] one for each
        each = args[:1] * len(items) if args[-1] is ... else args
        if len(each) != len(items):
            raise TypeRefusal(f"{where} is {shown(value)}; need {len(each)} values")
        one = f"{where} is {shown(value)}, an item of which"
        return tuple(
            coerce(parse_value(i) if isinstance(i, str) and kind is not str else i, kind, one)
            for i, kind in zip(items, each, strict=True)
        )
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    number = is_number(value, -math.inf)
    whole = number and value == int(value) and abs(value) <= LARGEST_INT
    fits, needs = {
        bool: (isinstance(value, bool), "true or false"),
        int: (whole, "a whole number below 2^63"),
        float: (number, "a number"),
        # of other numbers JSON keeps no text: 1.10 is 1.1
        str: (isinstance(value, str) or (whole and isinstance(value, int)), "a text"),
    }[hint]
    if isinstance(value, str) and "\0" in value:  # which no path has
        fits, needs = False, "a text without NUL"
    if not fits:
        raise TypeRefusal(f"{where} is {shown(value)}; need {needs}")
    return hint(value)


def parse_value(text: str) -> Any:
    """Read a value given as text: JSON where it is JSON (`0.5`, `[1,2]`), else the text.

    Raises:
        ValueError: lists in lists without end.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise Refusal(f"{shown(text)} is nested too deeply; need a value or a list") from None
    except ValueError:
        return {"True": True, "False": False, "None": None}.get(text, text)


def parse_setting_as(hint: Any, text: str) -> Any:
    """Read a setting given as text: by `parse_value`, but a name or path as it stands.

    A folder may be called 1.10 or null. Blanks around a text, and JSON's quotes, are taken off
    unless there is a file or folder of just that name, and no text is None where the setting may be
    that.

    Args:
        hint: the type of its field.
        text: after the equals sign.
    """
    if hint in (str, str | None) and os.path.exists(text):
        return text
    text = text.strip()
    if hint not in (str, str | None):
        return parse_value(text)
    if not text and hint is not str:
        return None
    quoted = parse_value(text) if text.startswith('"') else None
    return quoted if isinstance(quoted, str) else text
