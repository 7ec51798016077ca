"""Reader of plain data in pickles: dicts, lists, numbers, strings and NumPy arrays, never code.

A small interpreter over `pickletools.genops`, which only splits a pickle into opcodes. The pickle
module's own machine is not used, not even with a `find_class` of ours: it imports and calls what
the file names before a class can object. Here a global is the two words in the file, and the only
"calls" are the four below, each answered by a line of this file.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ddsm_ext.settings import Refusal

_MAX_OPCODES = 5_000_000  # a CIFAR-10 batch has about 60,000
_ARRAY_KINDS = frozenset(("b1", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8"))

# NumPy moved numpy.core to numpy._core in version 2; both spellings are in use.
_NAMES = {
    **{f"numpy.{core}.multiarray _reconstruct": "array" for core in ("core", "_core")},
    **{f"numpy.{core}.numeric _frombuffer": "frombuffer" for core in ("core", "_core")},
    "numpy ndarray": "ndarray",
    "numpy dtype": "dtype",
    "_codecs encode": "encode",
}


class PickleRefused(Refusal):
    """A pickle that holds anything but plain data."""


@dataclass(frozen=True)
class _Name:
    """A global as the file names it, already known to be one of `_NAMES`."""

    meaning: str


@dataclass
class _DType:
    """`numpy.dtype(code)` before and after its BUILD."""

    code: str
    order: str = "<"

    def build(self, state: Any) -> None:
        order = _text(state[1]) if isinstance(state, tuple) and len(state) >= 2 else ""
        if order not in ("<", ">", "|", "="):
            raise PickleRefused("holds a malformed array type")
        self.order = order

    def numpy(self) -> np.dtype[Any]:
        return np.dtype(self.code).newbyteorder(">" if self.order == ">" else "<")


@dataclass
class PickledArray:
    """An array of the pickle; `array` is set once its state was read."""

    array: np.ndarray[Any, Any] | None = None

    def build(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise PickleRefused("holds a malformed array")
        _, shape, dtype, fortran, raw = state
        self.array = _array(raw, dtype, shape, "F" if fortran else "C")


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def _array(raw: Any, dtype: Any, shape: Any, order: str) -> np.ndarray[Any, Any]:
    if not isinstance(raw, bytes) or not isinstance(dtype, _DType):
        raise PickleRefused("holds an array that is not of plain numbers")
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
        raise PickleRefused("holds an array of malformed shape")
    kind = dtype.numpy()
    if len(shape) > 8 or math.prod(shape) * kind.itemsize != len(raw):
        raise PickleRefused(f"holds an array of shape {shape} with {len(raw)} bytes of data")
    return np.frombuffer(raw, kind).reshape(shape, order="F" if order == "F" else "C")


def _call(function: Any, arguments: Any) -> Any:
    """The four calls that the pickles of NumPy arrays and Python 2 strings make."""
    meaning = function.meaning if isinstance(function, _Name) else None
    if not isinstance(arguments, tuple):
        raise PickleRefused("calls something without a tuple of arguments")
    if meaning == "array" and arguments and arguments[0] == _Name("ndarray"):
        return PickledArray()
    if meaning == "dtype" and arguments and _text(arguments[0]) in _ARRAY_KINDS:
        return _DType(_text(arguments[0]))
    if meaning == "frombuffer" and len(arguments) == 4:
        raw, dtype, shape, order = arguments
        return PickledArray(_array(raw, dtype, shape, _text(order)))
    if meaning == "encode" and len(arguments) == 2:
        text, encoding = arguments
        if isinstance(text, str) and encoding in ("latin1", "latin-1"):
            return text.encode("latin-1")
    raise PickleRefused("makes a call that is not part of a plain array")


_MARK = object()
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_NUMBERS = frozenset(
    ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT")
)
_STRINGS = frozenset(
    ("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES")
)
_BUFFERS = frozenset(("BINBYTES8", "BYTEARRAY8"))
_PYTHON2_STRINGS = frozenset(("STRING", "BINSTRING", "SHORT_BINSTRING"))


class _Machine:
    """Stack and memo of one pickle."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise PickleRefused("is malformed")
        return value

    def pop_to_mark(self) -> list[Any]:
        index = len(self.stack) - 1
        while self.stack[index] is not _MARK:
            index -= 1
            if index < 0:
                raise PickleRefused("is malformed")
        items = self.stack[index + 1 :]
        del self.stack[index:]
        return items

    def step(self, opcode: str, argument: Any) -> None:
        if opcode in _NUMBERS or opcode in _STRINGS:
            self.stack.append(argument)
        elif opcode in _PYTHON2_STRINGS:
            self.stack.append(argument.encode("latin-1"))
        elif opcode in _BUFFERS:
            self.stack.append(bytes(argument))
        elif opcode in _CONSTANTS:
            self.stack.append(_CONSTANTS[opcode])
        elif opcode in _HANDLERS:
            _HANDLERS[opcode](self, argument)
        else:
            raise PickleRefused(f"uses the opcode {opcode}, which plain data does not need")

    def put(self, key: int) -> None:
        if self.stack[-1] is _MARK:
            raise PickleRefused("is malformed")
        self.memo[key] = self.stack[-1]

    def fill(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise PickleRefused("appends to something that is no list")
        target.extend(items)

    def fill_dict(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise PickleRefused("sets an item of something that is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Hashing nested tuples takes time exponential in their depth: plain keys only.
            if type(key) not in (str, bytes, int):
                raise PickleRefused("has a dict key that is no string or number")
            target[key] = value

    def push_name(self, name: str) -> None:
        if name not in _NAMES:
            shown = name.replace(" ", ".")[:80]
            raise PickleRefused(f"names {shown!r}, which is no part of a plain array")
        self.stack.append(_Name(_NAMES[name]))

    def stack_global(self) -> None:
        name, module = self.pop(), self.pop()
        self.push_name(f"{module} {name}")

    def reduce(self) -> None:
        arguments, function = self.pop(), self.pop()
        self.stack.append(_call(function, arguments))

    def build(self) -> None:
        state = self.pop()
        if not isinstance(self.stack[-1], _DType | PickledArray):
            raise PickleRefused("sets the state of something that is no array")
        self.stack[-1].build(state)

    def append_tuple(self, size: int) -> None:
        items = [self.pop() for _ in range(size)]
        self.stack.append(tuple(reversed(items)))


def _two(machine: _Machine) -> list[Any]:
    value, key = machine.pop(), machine.pop()
    return [key, value]


def _new_dict(machine: _Machine) -> None:
    items = machine.pop_to_mark()
    machine.stack.append({})
    machine.fill_dict(items)


_HANDLERS: dict[str, Callable[[_Machine, Any], Any]] = {
    "PROTO": lambda m, a: None,
    "FRAME": lambda m, a: None,
    "MARK": lambda m, a: m.stack.append(_MARK),
    "POP": lambda m, a: m.stack.pop(),
    "POP_MARK": lambda m, a: m.pop_to_mark(),
    "EMPTY_DICT": lambda m, a: m.stack.append({}),
    "EMPTY_LIST": lambda m, a: m.stack.append([]),
    "EMPTY_TUPLE": lambda m, a: m.stack.append(()),
    "DICT": lambda m, a: _new_dict(m),
    "LIST": lambda m, a: m.stack.append(m.pop_to_mark()),
    "TUPLE": lambda m, a: m.stack.append(tuple(m.pop_to_mark())),
    "TUPLE1": lambda m, a: m.append_tuple(1),
    "TUPLE2": lambda m, a: m.append_tuple(2),
    "TUPLE3": lambda m, a: m.append_tuple(3),
    "APPEND": lambda m, a: m.fill([m.pop()]),
    "APPENDS": lambda m, a: m.fill(m.pop_to_mark()),
    "SETITEM": lambda m, a: m.fill_dict(_two(m)),
    "SETITEMS": lambda m, a: m.fill_dict(m.pop_to_mark()),
    "PUT": lambda m, a: m.put(a),
    "BINPUT": lambda m, a: m.put(a),
    "LONG_BINPUT": lambda m, a: m.put(a),
    "MEMOIZE": lambda m, a: m.put(len(m.memo)),
    "GET": lambda m, a: m.stack.append(m.memo[a]),
    "BINGET": lambda m, a: m.stack.append(m.memo[a]),
    "LONG_BINGET": lambda m, a: m.stack.append(m.memo[a]),
    "GLOBAL": lambda m, a: m.push_name(a),
    "STACK_GLOBAL": lambda m, a: m.stack_global(),
    "REDUCE": lambda m, a: m.reduce(),
    "BUILD": lambda m, a: m.build(),
}


def read_plain_pickle(data: bytes, name: str) -> Any:
    """Value of a pickle of plain data; arrays come as `PickledArray`, Python 2 strings as bytes.

    Args:
        data: the whole pickle.
        name: where it came from, for errors.

    Raises:
        PickleRefused: it names or calls anything else, or is damaged.
    """
    machine = _Machine()
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if count >= _MAX_OPCODES:
                raise PickleRefused(f"has more than {_MAX_OPCODES} opcodes")
            if opcode.name == "STOP":
                return machine.pop()
            machine.step(opcode.name, argument)
    except PickleRefused as error:
        raise PickleRefused(f"{name}: the pickle {error}; need plain data and arrays") from None
    except MemoryError:
        raise
    except Exception as error:  # genops raises whatever its argument readers meet
        reason = type(error).__name__
        raise PickleRefused(
            f"{name}: the pickle is damaged ({reason}); need a whole file"
        ) from None
    raise PickleRefused(f"{name}: the pickle ends early; need a whole file")
