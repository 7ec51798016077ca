"""Images in ZIP and tar archives, read in memory under caps; nothing is ever extracted."""

from __future__ import annotations

import bz2
import contextlib
import io
import itertools
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Container, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from ddsm_ext.data.images import LabelledImage, ReadLimits, decode_image, is_image_name, label_of
from ddsm_ext.io.files import one_line, open_regular
from ddsm_ext.settings import Refusal

_CHUNK = 1 << 16
_XZ_MEMORY_BYTES = 1 << 28  # a .xz header may ask for gigabytes; -9 needs 65 MiB

# What zipfile, tarfile and the decompressors raise on damaged or hostile input.
_DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    lzma.LZMAError,
    zlib.error,
    EOFError,
    OSError,
    ValueError,
    ArithmeticError,
    RuntimeError,
    LookupError,
)


class ArchiveError(Refusal):
    """An archive that is damaged, hostile or beyond the limits."""


def _check_name(archive: Path, name: str) -> None:
    """Refuse names that point outside; nothing is extracted, but no honest archive has them."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if ".." in parts or name.startswith(("/", "\\")) or "\0" in name:
        raise ArchiveError(
            f"{archive}: entry {name!r} points outside the archive; need relative names"
        )


class _Budget:
    """Counts entries and unpacked bytes of one archive against its limits."""

    def __init__(self, archive: Path, limits: ReadLimits) -> None:
        self.archive, self.limits = archive, limits
        self.entries = 0
        self.total_bytes = 0
        self.packed_bytes = max(1, archive.stat().st_size)

    def add_entry(self) -> None:
        self.entries += 1
        if self.entries > self.limits.max_entries:
            raise ArchiveError(
                f"{self.archive}: more than {self.limits.max_entries} entries; need fewer"
            )

    def add_bytes(self, count: int) -> None:
        self.total_bytes += count
        limits = self.limits
        if self.total_bytes > limits.max_total_bytes:
            raise ArchiveError(
                f"{self.archive}: unpacks to more than {limits.max_total_bytes} bytes; need less"
            )
        ratio = self.total_bytes / self.packed_bytes
        if self.total_bytes > limits.free_bytes and ratio > limits.max_ratio:
            raise ArchiveError(
                f"{self.archive}: unpacks to over {limits.max_ratio} times its size; need images"
            )

    def check_entry(self, name: str, unpacked: int) -> None:
        if unpacked > self.limits.max_entry_bytes:
            raise ArchiveError(
                f"{self.archive}: entry {name!r} unpacks to {unpacked} bytes; "
                f"need at most {self.limits.max_entry_bytes}"
            )


@contextlib.contextmanager
def _opened(path: Path, limits: ReadLimits, what: str) -> Iterator[tuple[BinaryIO, _Budget]]:
    """An archive with the budget of what is read from it; damage is said in one sentence."""
    with open_regular(path, what) as file:
        try:
            yield file, _Budget(path, limits)
        except ArchiveError:
            raise
        except _DAMAGE as error:
            reason = one_line(error)
            raise ArchiveError(f"{path}: {reason}; need a whole {what} of images") from None


def zip_entries(path: str | Path, limits: ReadLimits | None = None) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the files in a ZIP, sorted by name.

    Args:
        path: ZIP file; stored, deflated, bzip2 or LZMA entries.
        limits: None takes the defaults.

    Raises:
        FileNotFoundError: no such file.
        ArchiveError: damaged, encrypted, or beyond a limit.
        ValueError: no regular file.
    """
    path, limits = Path(path), limits or ReadLimits()
    with _opened(path, limits, "ZIP archive") as (file, budget), zipfile.ZipFile(file) as archive:
        infos = sorted(archive.infolist(), key=lambda info: info.filename)
        for info in infos:
            budget.add_entry()
            _check_name(path, info.filename)
        for info in infos:
            if not info.is_dir():
                yield info.filename, _zip_entry(archive, info, budget)


def _zip_entry(archive: zipfile.ZipFile, info: zipfile.ZipInfo, budget: _Budget) -> bytes:
    """One entry, read up to the size that its header states."""
    path, name = budget.archive, info.filename
    if info.flag_bits & 0x1:
        raise ArchiveError(f"{path}: entry {name!r} is encrypted; need plain entries")
    budget.check_entry(name, info.file_size)
    small = info.file_size <= budget.limits.free_bytes
    if not small and info.file_size > budget.limits.max_ratio * max(1, info.compress_size):
        raise ArchiveError(
            f"{path}: entry {name!r} unpacks {info.compress_size} bytes to {info.file_size}; "
            f"need at most {budget.limits.max_ratio} times"
        )
    budget.add_bytes(info.file_size)
    with archive.open(info) as entry:
        data = entry.read(info.file_size + 1)
    if len(data) != info.file_size:
        raise ArchiveError(
            f"{path}: entry {name!r} is not of the {info.file_size} bytes it states; "
            "need an undamaged archive"
        )
    return data


class _Unpacked(io.RawIOBase):
    """Unpacked bytes of a .gz, .bz2, .xz or plain file, every one counted in a budget."""

    def __init__(self, file: BinaryIO, budget: _Budget) -> None:
        self._file, self._budget = file, budget
        self._magic = file.read(6)
        file.seek(0)
        self._pending = b""
        self._decoder: Any = self._new_decoder()

    def _new_decoder(self) -> Any:
        if self._magic.startswith(b"\x1f\x8b"):
            return zlib.decompressobj(wbits=31)
        if self._magic.startswith(b"BZh"):
            return bz2.BZ2Decompressor()
        if self._magic.startswith(b"\xfd7zXZ\0"):
            return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY_BYTES)
        return None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer)) if self._decoder is None else self._next(len(buffer))
        self._budget.add_bytes(len(data))
        buffer[: len(data)] = data
        return len(data)

    def _next(self, size: int) -> bytes:
        while True:
            if self._decoder.eof:  # a further stream may follow in the same file
                self._pending = self._decoder.unused_data or self._pending
                self._pending = (self._pending or self._file.read(_CHUNK)).lstrip(b"\0")
                if not self._pending:
                    return b""
                self._decoder = self._new_decoder()
            wants_input = not self._pending and getattr(self._decoder, "needs_input", True)
            if wants_input:
                self._pending = self._file.read(_CHUNK)
            ended = wants_input and not self._pending
            data = self._decoder.decompress(self._pending, size)
            self._pending = getattr(self._decoder, "unconsumed_tail", b"")
            if data:
                return data
            if ended and not self._decoder.eof:
                raise EOFError("ends within its compressed data")


def tar_entries(path: str | Path, limits: ReadLimits | None = None) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the regular files in a tar, in the archive's order.

    Args:
        path: .tar, .tar.gz, .tar.bz2 or .tar.xz, known by its content.
        limits: None takes the defaults.

    Raises:
        FileNotFoundError: no such file.
        ArchiveError: damaged, with links or devices, or beyond a limit.
        ValueError: no regular file.
    """
    path, limits = Path(path), limits or ReadLimits()
    with _opened(path, limits, "tar archive") as (file, budget):
        stream = io.BufferedReader(_Unpacked(file, budget), 1 << 20)
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            yield from _tar_members(archive, budget)


def _tar_members(archive: tarfile.TarFile, budget: _Budget) -> Iterator[tuple[str, bytes]]:
    for member in archive:
        archive.members.clear()  # type: ignore[attr-defined]  # else it grows with every member
        budget.add_entry()
        _check_name(budget.archive, member.name)
        if member.isdir():
            continue
        if not member.isreg() or member.issparse():
            raise ArchiveError(
                f"{budget.archive}: entry {member.name!r} is a link, device or sparse file; "
                "need regular files"
            )
        budget.check_entry(member.name, member.size)
        entry = archive.extractfile(member)  # a reader over the stream: writes no file
        data = entry.read() if entry else b""
        if len(data) != member.size:
            raise EOFError(f"ends within entry {member.name!r}")
        yield member.name, data


def _entries(path: str | Path, limits: ReadLimits | None) -> Iterator[tuple[str, bytes]]:
    """Entries of an archive: a ZIP by its suffix, else a tar."""
    is_zip = Path(path).suffix.lower() == ".zip"
    return zip_entries(path, limits) if is_zip else tar_entries(path, limits)


def archive_images(path: str | Path) -> list[str]:
    """Sorted names of the images in an archive, without decoding them.

    Args:
        path: ZIP by its suffix, else a tar.

    Raises:
        FileNotFoundError: no such file.
        ArchiveError: damaged, beyond a limit, without images, or with one name twice.
        ValueError: no regular file.
    """
    names = sorted(name for name, _ in _entries(path, None) if is_image_name(name))
    if not names:
        raise _no_image(path)
    for first, second in itertools.pairwise(names):
        if first == second:
            raise ArchiveError(f"{path}: entry {first!r} occurs twice; need distinct names")
    return names


def _no_image(path: str | Path) -> ArchiveError:
    return ArchiveError(f"{path}: holds no image; need .png, .jpg, .jpeg or .webp entries")


def images_from_archive(
    path: str | Path,
    *,
    channels: int | None = None,
    names: Container[str] | None = None,
    limits: ReadLimits | None = None,
) -> Iterator[LabelledImage]:
    """Images in an archive: a ZIP's sorted by name, a tar's in its order; classes as in a folder.

    Args:
        path: ZIP by its suffix, else a tar (.gz, .bz2 or .xz as well).
        channels: 1, 3, or None for what each image has.
        names: entries to read; None reads all images.
        limits: None takes the defaults.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, encrypted, with links or devices, beyond a limit, or without images.
    """
    found = False
    for name, data in _entries(path, limits):
        if is_image_name(name) and (names is None or name in names):
            found = True
            pixels = decode_image(data, f"{path}: {name}", channels=channels, limits=limits)
            yield LabelledImage(pixels, label_of(name), name)
    if not found:
        raise _no_image(path)
