"""Settings given as text or JSON, brought to the types of their fields."""

from __future__ import annotations

import json
import math
import os
import types
import typing
from typing import Any

from ddsm_ext.settings import LARGEST_INT, Refusal, TypeRefusal, is_number, shown


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
