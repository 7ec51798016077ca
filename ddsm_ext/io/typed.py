"""JSON values as the annotations of a frozen dataclass say: exact types, bounded numbers, no keys
more or less than it has. Imports no torch.

What comes out of `read` needs no further check where it is used: no number is infinite, nor so
large or so small that its square, or its ratio to another one, leaves the range of a float.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

from ddsm_ext.io.document import Document
from ddsm_ext.settings import Refusal, Settings, did_you_mean, shown

LARGEST = 1e100
_LARGEST_INT = 2**53  # beyond it a float, such as a place on an axis, skips whole numbers
_LONGEST = 2**20


@dataclass(frozen=True)
class Within:
    """Limits of an annotated type: of a number, of a text's characters, of a list's length."""

    low: float
    high: float = LARGEST

    def __str__(self) -> str:
        return f"{self.low:g} or more" if self.high == LARGEST else f"{self.low:g} to {self.high:g}"


Amount = Annotated[float, Within(0.0)]
Positive = Annotated[float, Within(1 / LARGEST)]
Width = Annotated[float, Within(1 / LARGEST, 1.0)]
Share = Annotated[float, Within(0.0, 1.0)]
Count = Annotated[int, Within(0)]
Label = Annotated[str, Within(0, 5000)]  # a name, or a path
# Whatever a part of the program says of itself
Facts = dict[str, str | float | bool | tuple[float, ...] | None]

_SCALARS: dict[Any, str] = {
    float: "a number",
    int: "a whole number",
    str: "text",
    bool: "true or false",
    type(None): "null",
}


def read(kind: Any, value: Any, name: str = "") -> Any:
    """Return a parsed JSON value as a type says, with tuples for lists and dataclasses for objects.

    Args:
        kind: float, int, str, bool, None, a union, a Literal, tuple, dict or a dataclass; Annotated
            with a `Within`, which limits it.
        value: parsed JSON.
        name: what to call it in errors, e.g. "rows[2].frechet".

    Raises:
        ValueError: it is of another type, outside its limits, or lacks a key or has one more.
    """
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin is Annotated:
        found = read(args[0], value, name)
        size = found if isinstance(found, int | float) else len(found)
        return found if args[1].low <= size <= args[1].high else _refuse(kind, value, name)
    if origin in (types.UnionType, typing.Union):
        return _read_one_of(kind, args, value, name)
    if origin is Literal:
        return value if isinstance(value, str) and value in args else _refuse(kind, value, name)
    if origin is tuple:
        return _read_tuple(kind, args, value, name)
    if origin is dict:
        return _read_dict(kind, args, value, name)
    if dataclasses.is_dataclass(kind):
        return _read_dataclass(kind, value, name)
    return value if _is_scalar(kind, value) else _refuse(kind, value, name)


def _is_scalar(kind: Any, value: Any) -> bool:
    if isinstance(value, bool) or kind is bool:
        return kind is bool and isinstance(value, bool)
    if kind is float:
        return isinstance(value, int | float) and -LARGEST <= value <= LARGEST
    if kind is int:
        return isinstance(value, int) and -_LARGEST_INT <= value <= _LARGEST_INT
    return isinstance(value, kind) and (kind is not str or len(value) <= _LONGEST)


def _read_one_of(kind: Any, args: tuple[Any, ...], value: Any, name: str) -> Any:
    """A union: of what may be null the other type says what is wrong, else all together."""
    if value is None and type(None) in args:
        return None
    others = [arg for arg in args if arg is not type(None)]
    if len(others) == 1:
        return read(others[0], value, name)
    for other in others:
        try:
            return read(other, value, name)
        except Refusal:
            continue
    return _refuse(kind, value, name)


def _read_tuple(kind: Any, args: tuple[Any, ...], value: Any, name: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        _refuse(kind, value, name)
    each = args[:1] * len(value) if args[-1] is ... else args
    if len(each) != len(value):
        _refuse(kind, value, name)
    pairs = zip(each, value, strict=True)
    return tuple(read(arg, inner, f"{name}[{i}]") for i, (arg, inner) in enumerate(pairs))


def _read_dict(kind: Any, args: tuple[Any, ...], value: Any, name: str) -> dict[Any, Any]:
    """An object of any keys, which are text in JSON, also where they mean numbers."""
    if not isinstance(value, Mapping):
        _refuse(kind, value, name)
    found = {}
    for key, inner in value.items():
        here = f"{name}[{shown(key)}]"
        found[key if args[0] is str else read_key(args[0], key, here)] = read(args[1], inner, here)
    return found


def read_key(kind: Any, key: Any, name: str) -> Any:
    """Return the number that a key of an object means, as `read` does."""
    with contextlib.suppress(ValueError):
        key = float(key)
    return read(kind, key, name)


@functools.cache
def _fields(kind: Any) -> dict[str, tuple[Any, bool]]:
    """Name -> type, and whether a value may be missing, of a dataclass."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return {
        field.name: (
            hints[field.name],
            not field.default is field.default_factory is dataclasses.MISSING,
        )
        for field in dataclasses.fields(kind)
    }


def _read_dataclass(kind: Any, value: Any, name: str) -> Any:
    if not isinstance(value, Mapping):
        _refuse(kind, value, name)
    if isinstance(kind, type) and issubclass(kind, Settings) and not issubclass(kind, _Typed):
        return _told(kind.from_dict, value, name)  # it checks itself
    dot = f"{name}." if name else ""
    fields, partial = _fields(kind), getattr(kind, "partial", False)
    for key in () if partial else value:
        if key not in fields:
            known = did_you_mean(key, fields)
            raise Refusal(f"{name} has an unknown key {shown(key)}{known}".lstrip())
    for key, (_, optional) in fields.items():
        if key not in value and not optional:
            raise Refusal(f"{name} lacks {key!r}; need {', '.join(fields)}".lstrip())
    values = {k: read(fields[k][0], v, f"{dot}{k}") for k, v in value.items() if k in fields}
    return _told(lambda found: kind(**found), values, name)


def _told(make: Any, values: Any, name: str) -> Any:
    """Make an object; what its class refuses says where in the file it is."""
    try:
        return make(values)
    except Refusal as error:
        raise Refusal(f"{name}: {error}" if name else str(error)) from None


def _refuse(kind: Any, value: Any, name: str) -> Any:
    need = _need(kind)
    if kind in (float, int) and isinstance(value, kind) and not isinstance(value, bool):
        limit = _LARGEST_INT if kind is int else LARGEST
        need += f" from {-limit:g} to {limit:g}"
    raise Refusal(f"{name} is {shown(value)}; need {need}".lstrip())


def _need(kind: Any) -> str:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        unit = {str: " characters", tuple: " values"}
        return f"{_need(args[0])} of {args[1]}{unit.get(typing.get_origin(args[0]) or args[0], '')}"
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_need(arg) for arg in args)
    if origin is Literal:
        return f"one of {', '.join(map(repr, args))}"
    if origin is tuple:
        return "a list" if args[-1] is ... else f"a list of {len(args)}"
    return _SCALARS.get(kind, "an object")


def plain(value: Any) -> Any:
    """Return what `read` gave as JSON values; what may be missing, and is None, is left out."""
    if dataclasses.is_dataclass(value):
        pairs = [(field, getattr(value, field.name)) for field in dataclasses.fields(value)]
        return {f.name: plain(v) for f, v in pairs if v is not None or f.default is not None}
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, list | tuple) else value


class _Typed(Settings):
    """What reads and writes itself by its annotations."""

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, without what may be missing and is None."""
        values: dict[str, Any] = plain(self)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build the object from parsed JSON.

        Raises:
            ValueError: a value is of another type or outside its limits, or a key is missing or
                unknown.
        """
        found: Self = _read_dataclass(cls, values, "")
        return found


class Row(_Typed):
    """Base of the frozen dataclasses that are objects within a file, or lines of one.

    Attributes:
        partial: whether the file may have more keys, which are not read here.
    """

    partial: ClassVar[bool] = False


class TypedDocument(_Typed, Document):
    """Base of the frozen dataclasses that are whole files.

    Keys that have defaults may be missing, as in a file of an earlier version; so may its version.
    """

    @classmethod
    def from_content(cls, content: Any, source: str) -> Self:
        """Read a file's content; see `Document`."""
        if isinstance(content, dict):
            kind: Any = cls
            optional = {
                f.name: f.default_factory() if callable(f.default_factory) else f.default
                for f in dataclasses.fields(kind)
                if _fields(kind)[f.name][1]
            }
            content = {"version": cls.version, **optional, **content}
        return super().from_content(content, source)
