"""Versioned JSON documents: what a strategy, a front or a cost table is in a file.

Imports no torch.
"""

from __future__ import annotations

import dataclasses
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from ddsm_ext.io.digest import sealed, unsealed
from ddsm_ext.io.files import naming, one_line, open_regular, parse_json, to_json, write_atomic
from ddsm_ext.settings import Refusal, Settings

# The largest that the package writes, a front of a thousand strategies of 1000 segments, has 50 MB
MAX_BYTES = 64 * 2**20


class Document(Settings):
    """Base of the frozen dataclasses that are files: a version, and exactly the keys they have.

    A file holds `{"version": version, **to_dict()}` and the SHA-256 of that; one that is written by
    hand may lack it. A subclass whose file differs from its fields overrides `file_keys`, `to_dict`
    and `from_dict`; whatever `from_dict` finds wrong (a key that a row lacks, text where a number
    belongs) becomes one sentence that names the file.

    Attributes:
        version: format of the file; another one is refused.
        what: what such a file is called in errors, e.g. "cost table".
        file_keys: keys of the file beside "version"; empty means the names of the fields.
    """

    version: ClassVar[int] = 1
    what: ClassVar[str] = "document"
    file_keys: ClassVar[tuple[str, ...]] = ()

    def to_content(self) -> dict[str, Any]:
        """Return what the file holds, as JSON values."""
        return {"version": self.version, **self.to_dict()}

    @classmethod
    def from_content(cls, content: Any, source: str) -> Self:
        """Build the document from `to_content()` output, strictly.

        Args:
            content: parsed JSON.
            source: what to call it in errors, e.g. its file name.

        Raises:
            ValueError: a key is missing or unknown, the version is another one, or a value is
                refused; one sentence that starts with `source`.
        """
        names = ("version", *(cls.file_keys or cls._fields()))
        need = f"need a {cls.what} with exactly {', '.join(names)}"
        if not isinstance(content, Mapping):
            raise Refusal(f"{source}: holds a JSON {type(content).__name__}; {need}")
        version = content.get("version", cls.version)
        if isinstance(version, bool) or version != cls.version:
            raise Refusal(
                f"{source}: version is {reprlib.repr(version)}; need {cls.version}, the one that "
                "this program reads"
            )
        for name in names:
            if name not in content:
                raise Refusal(f"{source}: lacks {name!r}; {need}")
        for key in content:
            if key not in names:
                raise Refusal(f"{source}: has an unknown key {reprlib.repr(key)}; {need}")
        try:
            return cls.from_dict({name: content[name] for name in names[1:]})
        except Refusal as error:
            raise Refusal(f"{source}: {error}") from None
        except KeyError as error:
            raise Refusal(f"{source}: a part lacks {error}; need a {cls.what}") from None
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise Refusal(f"{source}: {one_line(error)}; need a {cls.what}") from None

    def to_json(self) -> str:
        """Return the file's text."""
        return to_json(sealed(self.to_content()), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, source: str) -> Self:
        """Parse `to_json()` output strictly; `source` is what to call the text in errors.

        Raises:
            ValueError: no JSON, a key missing, unknown or repeated, another version, a number that
                is not finite, a value that is refused, or not the text of its digest; one sentence
                that starts with `source`.
        """
        return cls.from_content(unsealed(parse_json(text, source, cls.what), source), source)

    def save(self, path: str | Path) -> None:
        """Write the file: all of it or nothing."""
        write_atomic(path, self.to_json().encode())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a file that `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is none; one sentence that names the file.
        """
        need = f"need a {cls.what} that can be read"
        with naming(path, need), open_regular(path, cls.what) as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise Refusal(f"{path}: is over {MAX_BYTES} bytes; need a {cls.what}")
        return cls.from_json(data, str(path))

    @classmethod
    def _fields(cls) -> tuple[str, ...]:
        return tuple(field.name for field in dataclasses.fields(cls))  # type: ignore[arg-type]
