"""Files in ZIP and tar archives, read in memory under caps; nothing is ever extracted."""

from __future__ import annotations

import bz2
import contextlib
import io
import lzma
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Self

from ddsm_ext.data.entries import DamagedImage, Entry, ReadLimits, plain_name
from ddsm_ext.io.files import naming, one_line, open_regular, system_error
from ddsm_ext.settings import Refusal

_CHUNK = 1 << 16
_XZ_MEMORY_BYTES = 1 << 28  # a .xz header may ask for gigabytes; -9 needs 65 MiB
_FREE_SKIPPED_BYTES = 1 << 30  # seconds of unpacking
_GZIP, _BZIP2, _XZ = b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0"
_ZIP = (b"PK\3\4", b"PK\5\6", b"PK\7\x08")
_ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
_OTHER_ZIP_METHODS = {  # APPNOTE 4.4.5
    **{1: "Shrink", 6: "Implode", 9: "Deflate64", 93: "Zstandard", 94: "MP3", 95: "XZ", 96: "JPEG"},
    **{97: "WavPack", 98: "PPMd", 99: "AES encryption"},
}
_NEED = "a whole tar (plain, .gz, .bz2 or .xz), a ZIP, or a folder of images"
# Files that people take for archives of images: first bytes, where they are, what it is.
_OTHERS = (
    (b"7z\xbc\xaf\x27\x1c", 0, "a 7z archive"),
    (b"Rar!\x1a\x07", 0, "a RAR archive"),
    (b"\x28\xb5\x2f\xfd", 0, "compressed by Zstandard"),
    (b"\x04\x22\x4d\x18", 0, "compressed by LZ4"),
    (b"LZIP", 0, "compressed by lzip"),
    (b"\x1f\x9d", 0, "compressed by compress (.Z)"),
    (b"MSCF", 0, "a cabinet archive"),
    (b"\x93NUMPY", 0, "a NumPy array"),
    (b"\x89HDF", 0, "an HDF5 file"),
    (b"PAR1", 0, "a Parquet file"),
    (b"SQLite format 3", 0, "an SQLite database"),
    (b"%PDF", 0, "a PDF document"),
    (b"\x80\2", 0, "a Python pickle, which is never read"),
    (b"\x80\3", 0, "a Python pickle, which is never read"),
    (b"\x80\4", 0, "a Python pickle, which is never read"),
    (b"\x80\5", 0, "a Python pickle, which is never read"),
    (b"ftyp", 4, "one video or picture (MP4, HEIF or AVIF)"),
    (b"\x89PNG", 0, "one image (PNG)"),
    (b"\xff\xd8\xff", 0, "one image (JPEG)"),
    (b"WEBP", 8, "one image (WebP)"),
    (b"GIF8", 0, "one image (GIF)"),
    (b"II*\0", 0, "one image (TIFF)"),
    (b"MM\0*", 0, "one image (TIFF)"),
    (b"BM", 0, "one image (BMP)"),
)

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


class _WholeTarInfo(tarfile.TarInfo):
    """An entry of a tar that is read to its end blocks: tarfile ends in silence at a header that is
    damaged, or where the file is cut off."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(archive)
        except tarfile.HeaderError as error:
            ended = isinstance(error, tarfile.EOFHeaderError)  # type: ignore[attr-defined]
            if ended or archive.offset == 0:
                raise
            raise tarfile.ReadError(f"{error} at byte {archive.offset}, no end blocks") from None


class ArchiveError(Refusal):
    """An archive that is damaged, hostile or beyond the limits."""


class DamagedEntry(ArchiveError, DamagedImage):
    """One file of an archive that is damaged; the others can be read."""


def archive_entries(path: Path, limits: ReadLimits) -> Iterator[Entry]:
    """Files in an archive, which is known by its content: a ZIP's sorted by name, a tar's in order.

    Args:
        path: a ZIP, or a tar: plain, or compressed by gzip, bzip2 or xz.
        limits: of what is read.

    Raises:
        FileNotFoundError: no such file.
        ArchiveError: damaged, or beyond a limit; on reading an entry also where that one points
            outside, is encrypted, or no regular file.
        ValueError: neither a ZIP nor a tar.
    """
    need = "need a ZIP or tar archive that can be read"
    with naming(path, need), open_regular(path, "ZIP or tar archive") as file:
        is_zip = _is_zip(path, file)
    return zip_entries(path, limits) if is_zip else tar_entries(path, limits)


def _is_zip(path: Path, file: BinaryIO) -> bool:
    """Whether a file is a ZIP, by its content; otherwise it is a tar, or refused."""
    head = file.read(tarfile.BLOCKSIZE)
    if head.startswith(_ZIP):
        return True
    if head.startswith((_GZIP, _BZIP2, _XZ)) or _is_tar(head):
        return False
    for magic, start, what in _OTHERS:
        if head.startswith(magic, start):
            raise ArchiveError(f"{path}: is {what}; need {_NEED}")
    # one that unpacks itself begins with a program
    if path.suffix.lower() == ".zip" or zipfile.is_zipfile(file):
        return True
    raise ArchiveError(f"{path}: is of no known kind; need {_NEED}")


def _is_tar(head: bytes) -> bool:
    with contextlib.suppress(tarfile.HeaderError):
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
        return True
    return head[257:262] == b"ustar"


def _check_name(archive: Path, name: str) -> None:
    """Refuse names that point outside; nothing is extracted, but no honest archive has them."""
    parts = name.split("/")
    if ".." in parts or parts[0] == "" or parts[0][1:] == ":" or "\0" in name:
        raise ArchiveError(
            f"{archive}: entry {name!r} points outside the archive; need relative names"
        )


class _Budget:
    """Counts entries and unpacked bytes of one archive against its limits."""

    def __init__(self, archive: Path, limits: ReadLimits) -> None:
        self.archive, self.limits = archive, limits
        self.entries = 0
        self.total_bytes = 0
        self.skipped_bytes = 0  # of those, what a tar had to unpack to pass over it
        self.plain_bytes = 0  # of images without compression
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
        used = self.total_bytes - self.plain_bytes
        used -= min(self.skipped_bytes, _FREE_SKIPPED_BYTES)
        if used > limits.free_bytes and used / self.packed_bytes > limits.max_ratio:
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
def _in_one_sentence(path: Path, what: str, kind: type[ArchiveError]) -> Iterator[None]:
    """Damage becomes an error of `kind`; a file that the system cannot read is no damage."""
    try:
        yield
    except Refusal:
        raise
    except _DAMAGE as error:
        if cause := system_error(error):
            with naming(path, f"need a {what} that can be read"):
                raise cause from None
        raise kind(f"{path}: {one_line(error)}; need a whole {what} of images") from None


def zip_entries(path: Path, limits: ReadLimits) -> Iterator[Entry]:
    """Files in a ZIP, sorted by name; as `archive_entries`."""
    what = "ZIP archive"
    with open_regular(path, what) as file, _in_one_sentence(path, what, ArchiveError):
        budget = _Budget(path, limits)
        with zipfile.ZipFile(file) as archive:
            _check_count(path, file, len(archive.infolist()))
            named = [(plain_name(_zip_name(info)), info) for info in archive.infolist()]
            for name, info in sorted(named, key=lambda pair: pair[0]):
                budget.add_entry()
                if not info.filename.endswith(("/", "\\")):
                    read = partial(_zip_entry, archive, info, name, budget)
                    yield Entry(name, f"{path}: {name}", read)


def _check_count(path: Path, file: BinaryIO, found: int) -> None:
    """Refuse a ZIP that says at its end that it has more entries than were found, or less."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - (22 + 0xFFFF)))  # before the longest comment
    tail = file.read()
    stated = int.from_bytes(tail[(at := tail.rfind(b"PK\5\6") + 10) : at + 2], "little")
    if stated not in (found & 0xFFFF, 0xFFFF):  # of more, the record of ZIP64 has the number
        raise ArchiveError(
            f"{path}: has {found} entries and says {stated}; need a whole ZIP archive of images"
        )


def _zip_name(info: zipfile.ZipInfo) -> str:
    """An entry's name; one without the flag of UTF-8 may be UTF-8 all the same."""
    if not info.flag_bits & 0x800:
        with contextlib.suppress(UnicodeError):
            return info.filename.encode("cp437").decode("utf-8")
    return info.filename


def _zip_entry(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str, budget: _Budget
) -> bytes:
    """One entry, read up to the size that its header states."""
    path = budget.archive
    _check_name(path, name)
    if stat.S_ISLNK(info.external_attr >> 16):
        raise ArchiveError(f"{path}: entry {name!r} is a link; need regular files")
    if info.flag_bits & 0x1:
        raise ArchiveError(f"{path}: entry {name!r} is encrypted; need plain entries")
    if info.compress_type not in _ZIP_METHODS:
        kind = _OTHER_ZIP_METHODS.get(info.compress_type, f"method {info.compress_type}")
        raise ArchiveError(
            f"{path}: entry {name!r} is packed by {kind}; need Deflate, bzip2, LZMA or no packing"
        )
    budget.check_entry(name, info.file_size)
    small = info.file_size <= budget.limits.free_bytes
    if budget.limits.is_plain(name, info.file_size):
        budget.plain_bytes += info.file_size
    elif not small and info.file_size > budget.limits.max_ratio * max(1, info.compress_size):
        raise ArchiveError(
            f"{path}: entry {name!r} unpacks {info.compress_size} bytes to {info.file_size}; "
            f"need at most {budget.limits.max_ratio} times"
        )
    budget.add_bytes(info.file_size)
    with _in_one_sentence(path, "ZIP archive", DamagedEntry), archive.open(info) as entry:
        data = entry.read(info.file_size + 1)
    if len(data) != info.file_size:
        raise DamagedEntry(
            f"{path}: entry {name!r} is not of the {info.file_size} bytes it states; "
            "need an undamaged archive"
        )
    return data


class _Unpacked(io.RawIOBase):
    """Unpacked bytes of a .gz, .bz2, .xz or plain file; a compressed one's count in a budget."""

    def __init__(self, file: BinaryIO, budget: _Budget) -> None:
        self._file, self._budget = file, budget
        self._magic = file.read(6)
        file.seek(0)
        self._pending = b""
        self._decoder: Any = self._new_decoder()
        self.packed = self._decoder is not None

    def _new_decoder(self) -> Any:
        if self._magic.startswith(_GZIP):
            return zlib.decompressobj(wbits=31)
        if self._magic.startswith(_BZIP2):
            return bz2.BZ2Decompressor()
        if self._magic.startswith(_XZ):
            return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY_BYTES)
        return None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._next(len(buffer)) if self.packed else self._file.read(len(buffer))
        if self.packed:
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


def tar_entries(path: Path, limits: ReadLimits) -> Iterator[Entry]:
    """Files in a tar, in the archive's order, links and devices among them; as `archive_entries`.

    What is not read is unpacked in passing where the tar is compressed, and may be of any size and
    ratio up to a GiB in all.
    """
    what = "tar archive"
    with open_regular(path, what) as file, _in_one_sentence(path, what, ArchiveError):
        budget = _Budget(path, limits)
        unpacked = _Unpacked(file, budget)
        stream: Any = io.BufferedReader(unpacked, 1 << 20)
        with _tar_stream(path, stream) as archive:
            for member in archive:
                archive.members.clear()  # type: ignore[attr-defined]  # else it grows
                budget.add_entry()
                if member.isdir():
                    continue
                if unpacked.packed and member.isreg() and not member.issparse():
                    budget.skipped_bytes += member.size
                name = plain_name(member.name)
                read = partial(_tar_member, archive, member, name, budget, unpacked.packed)
                yield Entry(name, f"{path}: {name}", read)


def _tar_stream(path: Path, stream: BinaryIO) -> tarfile.TarFile:
    try:
        return tarfile.open(fileobj=stream, mode="r|", tarinfo=_WholeTarInfo)
    except tarfile.ReadError as error:
        raise ArchiveError(
            f"{path}: holds no tar ({one_line(error)}); need a whole tar archive of images"
        ) from None


def _tar_member(
    archive: tarfile.TarFile, member: tarfile.TarInfo, name: str, budget: _Budget, packed: bool
) -> bytes:
    """One member, which the archive must stand at."""
    _check_name(budget.archive, name)
    if not member.isreg() or member.issparse():
        to = f" (to {member.linkname!r})" if member.linkname else ""
        raise ArchiveError(
            f"{budget.archive}: entry {name!r} is a link{to}, device or sparse file; need regular "
            "files"
        )
    budget.check_entry(name, member.size)
    if packed:  # the stream counts what it unpacks
        budget.skipped_bytes -= member.size
        if budget.limits.is_plain(name, member.size):
            budget.plain_bytes += member.size
    else:
        budget.add_bytes(member.size)
    with _in_one_sentence(budget.archive, "tar archive", ArchiveError):
        entry = archive.extractfile(member)  # a reader over the stream: writes no file
        data = entry.read() if entry else b""
        if len(data) != member.size:
            raise EOFError(f"ends within entry {name!r}")
    return data
