"""Files that are either whole or absent: temp file in the same folder, fsync, rename, fsync."""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import reprlib
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from ddsm_ext.settings import Refusal, TypeRefusal


def one_line(error: BaseException) -> str:
    """What an error says, without line breaks; its type where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


@contextlib.contextmanager
def _descriptor(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable; a rename alone may be lost with the power."""
    with _descriptor(folder) as descriptor:
        os.fsync(descriptor)


@contextlib.contextmanager
def locked(folder: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock of a folder, which ends with the context or the process; no file is made.

    Raises:
        BlockingIOError: another process holds it, and `wait` is False.
    """
    with _descriptor(folder) as descriptor:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def write_synced(path: Path, data: bytes | memoryview) -> None:
    """Write a file that must not exist yet and fsync it; the caller makes its name durable."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        view = memoryview(data)
        while view.nbytes:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: str | Path, data: bytes) -> Path:
    """Replace `path` by `data` at once: readers see the old content or the new, never a part.

    Args:
        path: target; missing parent folders are made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temp = path.parent / f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
    try:
        write_synced(temp, data)
        os.replace(temp, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temp.unlink()
        raise
    sync_folder(path.parent)
    return path


def to_json(value: Any, *, indent: int | None = None) -> str:
    """Text of a JSON value; NaN and infinity, which JSON does not have, are refused.

    Raises:
        ValueError: a number is not finite.
        TypeError: a value has no JSON form.
    """
    try:
        return json.dumps(value, indent=indent, allow_nan=False, ensure_ascii=False)
    except ValueError as error:
        raise Refusal(f"JSON: {error}; need finite numbers and no cycles") from None
    except TypeError as error:
        raise TypeRefusal(
            f"JSON: {error}; need dict, list, str, int, float, bool or None"
        ) from None


def write_json(path: str | Path, value: Any) -> Path:
    """Write `value` as indented UTF-8 JSON, atomically.

    Raises:
        ValueError: a number is not finite.
        TypeError: a value has no JSON form.
    """
    return write_atomic(path, (to_json(value, indent=2) + "\n").encode())


def _refuse_constant(name: str) -> Any:
    raise Refusal(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise Refusal(f"{reprlib.repr(text)} is beyond the range of a float")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise Refusal(f"key {reprlib.repr(repeated)} is given twice")
    return result


def parse_json(text: str | bytes, name: str, what: str = "whole JSON file") -> Any:
    """Value of a JSON text, with each key once and finite numbers only.

    Args:
        text: the text; bytes are UTF-8.
        name: says in errors where it came from.
        what: what is needed there, e.g. "cost table".

    Raises:
        ValueError: no JSON, not UTF-8, a key given twice, a number that is not finite, or nested
            deeper than the parser goes.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        return json.loads(
            text, parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_unique
        )
    except UnicodeDecodeError as error:
        raise Refusal(f"{name}: byte {error.start} is not UTF-8; need a {what} in JSON") from None
    except RecursionError:
        raise Refusal(f"{name}: is nested too deeply; need a {what} in JSON") from None
    except ValueError as error:
        raise Refusal(f"{name}: is not JSON ({error}); need a {what}") from None


def read_json(path: str | Path) -> Any:
    """Value of a JSON file.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is no JSON.
    """
    return parse_json(read_bytes(path, "JSON file"), str(path))


def read_bytes(path: str | Path, what: str) -> bytes:
    """Whole content of a file; errors say that a `what`, such as "JSON file", is needed."""
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file; need a {what}") from None
    except IsADirectoryError:
        raise Refusal(f"{path}: is a folder; need a {what}") from None


def open_regular(path: str | Path, what: str) -> BinaryIO:
    """Open a file, a `what` in errors; pipes and devices, which may never end, are refused."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file; need a {what}")
    if not path.is_file():
        raise Refusal(f"{path}: not a regular file; need a {what}")
    return open(path, "rb")


def append_jsonl(path: str | Path, *rows: Mapping[str, Any]) -> None:
    """Append rows to a JSON-lines file and fsync it; a torn last line is cut off first.

    Args:
        path: target file; made when missing. One writer at a time.
        rows: objects with finite numbers.
    """
    path = Path(path)
    data = "".join(to_json(dict(row)) + "\n" for row in rows).encode()
    is_new = not path.exists()
    if is_new:
        path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab+") as file:
        prefix = _repair_tail(file)
        file.write(prefix + data)
        file.flush()
        os.fsync(file.fileno())
    if is_new:
        sync_folder(path.parent)


def _repair_tail(file: Any) -> bytes:
    """Cut off a last line without newline; return the newline that a whole one still lacks."""
    end = file.seek(0, os.SEEK_END)
    if end == 0:
        return b""
    file.seek(end - 1)
    if file.read(1) == b"\n":
        return b""
    file.seek(0)
    content = file.read()
    start = content.rfind(b"\n") + 1
    if _parse_row(content[start:]) is not None:
        return b"\n"
    file.truncate(start)
    return b""


def _parse_row(line: bytes) -> dict[str, Any] | None:
    try:
        row = parse_json(line, "line")
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def read_jsonl(path: str | Path, *, missing_ok: bool = False) -> list[dict[str, Any]]:
    """Rows of a JSON-lines file; a last line torn by a crash (no newline, no JSON) is left out.

    Args:
        path: file written by `append_jsonl`.
        missing_ok: give no rows instead of an error when the file is missing.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: a line before the last is no JSON object.
    """
    path = Path(path)
    if missing_ok and not path.exists():
        return []
    lines = read_bytes(path, "JSON-lines file").split(b"\n")
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        row = _parse_row(line)
        if row is not None:
            rows.append(row)
        elif number < len(lines):
            raise Refusal(f"{path}: line {number} is no JSON object; need one object a line")
    return rows
