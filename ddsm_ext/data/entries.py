"""Files of a folder or archive one by one; what is not asked for is neither read nor judged."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from ddsm_ext.io.files import naming, open_regular
from ddsm_ext.settings import Refusal

_PLAIN = (".bmp", ".tif", ".tiff", ".pbm", ".pgm", ".pnm", ".ppm")


@dataclass(frozen=True)
class ReadLimits:
    """How much a foreign file may claim before it is refused."""

    max_pixels: int = 1 << 26  # of one image
    max_entry_bytes: int = 1 << 28  # of one file, unpacked
    max_total_bytes: int = 1 << 34  # of all files of an archive, unpacked
    max_ratio: int = 200  # unpacked to packed, once past `free_bytes`; not of `is_plain` images
    free_bytes: int = 1 << 22  # unpacked size below which the ratio does not matter
    max_entries: int = 2_000_000
    max_links: int = 100  # ways to one folder; links among folders are ways without number

    def is_plain(self, name: str, size: int) -> bool:
        """Whether a file is an image of a format without compression, which may be of one colour.

        Such a file packs by any ratio; it is judged by 8 bytes a pixel of the largest image.
        """
        return name.lower().endswith(_PLAIN) and size <= 8 * self.max_pixels


class DamagedImage(Refusal):
    """An image that is damaged, or larger than the limits."""


class Entry(NamedTuple):
    """A file of a source."""

    name: str  # path inside the source, as of `plain_name`
    where: str  # what errors call it
    read: Callable[[], bytes]  # an archive's can be read until the next one is asked for


def plain_name(name: str) -> str:
    r"""A path inside a source with `/` between its folders.

    Archives of Windows write `\`; tar writes `./` in front.
    """
    name = name.replace("\\", "/")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    return ("/" if name.startswith("/") else "") + "/".join(parts)


def is_hidden(name: str) -> bool:
    """Whether a path inside a source is one that systems keep for themselves."""
    parts = name.split("/")
    return any((p.startswith(".") and p != "..") or p == "__MACOSX" for p in parts)


def read_file(path: Path, limits: ReadLimits, what: str = "file of an image") -> bytes:
    """Content of a regular file of at most `limits.max_entry_bytes`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no regular file, or too large.
    """
    with naming(path, f"need a {what} that can be read"), open_regular(path, what) as file:
        if (size := os.fstat(file.fileno()).st_size) > limits.max_entry_bytes:
            raise DamagedImage(f"{path}: {size} bytes; need at most {limits.max_entry_bytes}")
        return file.read()


def folder_entries(folder: Path, limits: ReadLimits) -> Iterator[Entry]:
    """Files in and below a folder that are not hidden, sorted by name; linked folders are entered.

    A link that leads back to a folder above itself is not: what lies there is listed already.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: more files than `limits.max_entries`, or more links to one folder than
            `limits.max_links`.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; need a folder of images")
    names: list[str] = []
    ways: Counter[tuple[int, int]] = Counter()
    pending: list[tuple[str, tuple[tuple[int, int], ...]]] = [("", ())]
    while pending:
        parent, above = pending.pop()
        status = os.stat(folder / parent)
        if (identity := (status.st_dev, status.st_ino)) in above:
            continue
        ways[identity] += 1
        if ways[identity] > limits.max_links:
            raise Refusal(
                f"{folder / parent}: links lead to it in more than {limits.max_links} ways; need "
                "fewer"
            )
        with os.scandir(folder / parent) as items:
            for item in items:
                # a link to nowhere is a file that cannot be read
                is_folder = os.path.isdir(item.path) if item.is_symlink() else item.is_dir()
                if not is_folder:
                    names.append(f"{parent}{item.name}")
                elif not is_hidden(item.name):
                    pending.append((f"{parent}{item.name}/", (*above, identity)))
        if len(names) > limits.max_entries:
            raise Refusal(f"{folder}: more than {limits.max_entries} files; need fewer")
    for name in sorted(names, key=plain_name):
        path = folder / name
        yield Entry(plain_name(name), str(path), partial(read_file, path, limits))
