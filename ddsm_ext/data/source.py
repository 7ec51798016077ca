"""What a folder or archive of images holds, and its images one by one."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter, defaultdict
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from ddsm_ext.data.archives import ArchiveError, archive_entries
from ddsm_ext.data.entries import DamagedImage, Entry, ReadLimits, folder_entries, is_hidden
from ddsm_ext.data.images import SUFFIXES, Pixels, decode_image, is_image_name
from ddsm_ext.data.layout import TABLE, Layout
from ddsm_ext.io.files import open_regular, parse_json
from ddsm_ext.settings import Refusal

_SAID = 5  # kinds of files, or damaged images, that a sentence names
# Files of `ddsm` that are no images of a set, such as pictures of several: names, and what lies
# beside them.
_OWN = tuple(
    (re.compile(own), re.compile(beside))
    for own, beside in (
        (r"grid\.png|samples\.json", r"seed-\d{6,}\.png"),  # of ddsm sample
        (r"step-\d{6,}-w[\d.]+\.png", r".*"),  # of ddsm train
        (r"row-\d+\.png", r"index\.json"),  # of ddsm eval
        (r"index\.json", r"row-\d+\.png"),
    )
)


@dataclass(frozen=True)
class LabelledImage:
    """One image of a source."""

    pixels: Pixels  # uint8 [H, W, C]
    label: str | None  # class, as of `Layout`; None where it has none
    name: str  # path inside the source


@dataclass(frozen=True)
class Listing:
    """What a source holds, undecoded."""

    images: list[str]  # sorted paths
    tables: dict[str, Any]  # folder -> value of the dataset.json in it
    others: Counter[str]  # files that are no images, by suffix; hidden ones do not count
    unread: tuple[str, ...] = ()  # what is wrong with each dataset.json that is no JSON

    def kinds(self) -> str:
        """What is no image, such as "3 .avif, 1 .txt"; "" where all are."""
        kinds = [f"{count} {kind or 'without suffix'}" for kind, count in self.others.most_common()]
        return ", ".join([*kinds[:_SAID], *(["..."] if len(kinds) > _SAID else [])])

    def notes(self) -> Iterator[str]:
        """What to say of the files that are left out."""
        for reason in self.unread:
            yield f"{reason}; it is passed over"
        if count := self.others.total():
            total = count + len(self.images)
            yield f"{count} of {total} files are of other kinds and left out: {self.kinds()}"


@dataclass
class PassedOver:
    """The damaged images of a source that are passed over, of which so many may be."""

    most: int = 0
    sentences: list[str] = field(default_factory=list)

    def add(self, error: DamagedImage) -> None:
        """Take one more.

        Raises:
            ValueError: it is one too many.
        """
        if len(self.sentences) >= self.most:
            raise DamagedImage(f"{error}, or data.skip_damaged above {self.most}") from None
        self.sentences.append(str(error))

    def notes(self) -> Iterator[str]:
        """What to say of them."""
        if self.sentences:
            said = sorted(self.sentences)[:_SAID]
            text = "; ".join([*said, *(["..."] if len(self.sentences) > _SAID else [])])
            yield f"{len(self.sentences)} damaged images are passed over: {text}"


def source_entries(path: Path, limits: ReadLimits) -> Iterator[Entry]:
    """Files of a folder, as `folder_entries`, or of an archive, as `archive_entries`."""
    return folder_entries(path, limits) if path.is_dir() else archive_entries(path, limits)


def list_source(path: str | Path, limits: ReadLimits | None = None) -> Listing:
    """Names of the images in a folder or archive, and its tables of labels.

    Grids that `ddsm` makes of its own samples are no images.

    Raises:
        FileNotFoundError: no such file, or a folder without images.
        ValueError: a damaged archive or table, an archive without images, or one name twice.
    """
    path = Path(path)
    names, tables, unread = [], {}, []
    for entry in source_entries(path, limits or ReadLimits()):
        names.append(entry.name)
        parent, _, file = entry.name.rpartition("/")
        if file == TABLE and not is_hidden(entry.name):
            content = entry.read()
            try:
                tables[parent] = parse_json(content, entry.name, "table of labels")
            except Refusal as error:
                if _is_damaged_table(content):
                    raise Refusal(f"{path}: {error}") from None
                unread.append(str(error))
    own = _own_files(names)
    names = [name for name in names if name not in own and not is_hidden(name)]
    images = sorted(name for name in names if is_image_name(name))
    for first, second in itertools.pairwise(images):
        if first == second:
            raise ArchiveError(f"{path}: entry {first!r} occurs twice; need distinct names")
    others = Counter(
        PurePosixPath(name).suffix.lower()
        for name in names
        if not is_image_name(name) and name.rpartition("/")[2] != TABLE
    )
    listing = Listing(images, tables, others, tuple(unread))
    if not images:
        text = f"{path}: holds no image"
        if others:
            text += f" ({listing.kinds()})"
        kinds = [*SUFFIXES]
        text += f"; need {', '.join(kinds[:-1])} or {kinds[-1]} files"
        raise FileNotFoundError(text) if path.is_dir() else ArchiveError(text)
    return listing


def _is_damaged_table(content: bytes) -> bool:
    """Whether a dataset.json has labels, but is no JSON at all."""
    try:
        json.loads(content)
    except (ValueError, RecursionError):
        return b'"labels"' in content
    return False


def _own_files(names: Sequence[str]) -> set[str]:
    """Those of the names that `ddsm` wrote, and that are no images of a data set."""
    folders: dict[str, list[str]] = defaultdict(list)
    for name in names:
        folder, slash, file = name.rpartition("/")
        folders[folder + slash].append(file)
    found: set[str] = set()
    for folder, files in folders.items():
        for own, beside in _OWN:
            written = [folder + file for file in files if own.fullmatch(file)]
            if written and any(map(beside.fullmatch, files)):
                found.update(written)
    return found


def read_images(
    path: str | Path,
    names: Container[str],
    *,
    channels: int | None = None,
    background: int = 255,
    limits: ReadLimits | None = None,
    passed_over: PassedOver | None = None,
) -> Iterator[tuple[str, Pixels]]:
    """Images of a folder or archive, decoded; a tar's in its own order.

    Args:
        path: folder or archive.
        names: paths inside it.
        channels: 1, 3, or None for what each image has.
        background: grey level, 0 to 255, that transparent pixels are laid on.
        limits: None takes the defaults.
        passed_over: takes the damaged images; None refuses the first.

    Yields:
        The path inside the source and uint8 pixels [H, W, C].

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, encrypted, a link or device, or beyond a limit.
    """
    limits = limits or ReadLimits()
    for entry in source_entries(Path(path), limits):
        if entry.name not in names:
            continue
        try:
            pixels = decode_image(
                entry.read(), entry.where, channels=channels, background=background, limits=limits
            )
        except DamagedImage as error:
            if passed_over is None:
                raise
            passed_over.add(error)
            continue
        yield entry.name, pixels


def images_from_archive(
    path: str | Path,
    *,
    channels: int | None = None,
    names: Container[str] | None = None,
    limits: ReadLimits | None = None,
) -> Iterator[LabelledImage]:
    """Images in an archive: a ZIP's sorted by name, a tar's in its order.

    Args:
        path: ZIP or tar (plain, .gz, .bz2 or .xz), known by its content.
        channels: 1, 3, or None for what each image has.
        names: entries to read; None reads all images.
        limits: None takes the defaults.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, encrypted, a link or device, beyond a limit, or without images.
    """
    open_regular(path, "ZIP or tar archive").close()
    yield from _labelled(Path(path), channels, names, limits)


def images_from_folder(
    folder: str | Path,
    *,
    channels: int | None = None,
    names: Container[str] | None = None,
    limits: ReadLimits | None = None,
) -> Iterator[LabelledImage]:
    """Images in and below a folder, sorted by path; linked folders are entered.

    Args:
        folder: root; hidden files and other suffixes are passed over.
        channels: 1, 3, or None for what each file has.
        names: paths inside the folder to read; None reads all images.
        limits: None takes the defaults.

    Raises:
        FileNotFoundError: no such folder, or no image in it.
        ValueError: an image is damaged or too large.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; need a folder of images")
    yield from _labelled(Path(folder), channels, names, limits)


def _labelled(
    path: Path, channels: int | None, names: Container[str] | None, limits: ReadLimits | None
) -> Iterator[LabelledImage]:
    listing = list_source(path, limits)
    layout = Layout(str(path), listing.images, listing.tables)
    wanted = frozenset(name for name in listing.images if names is None or name in names)
    for name, pixels in read_images(path, wanted, channels=channels, limits=limits):
        yield LabelledImage(pixels, layout.label(name), name)
