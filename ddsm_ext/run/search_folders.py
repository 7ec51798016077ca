"""The folders of a run's searches: search/ is the one in use, search-00000/ and so on are others.

A search whose scores are of other things than those of search/ works in a folder of its own and
takes the place of search/ when it has chosen: one that is refused or interrupted leaves the earlier
strategy in use.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddsm_ext.io.files import parse_jsonl, read_bytes
from ddsm_ext.search.archive import ARCHIVE_FILE, VERSION
from ddsm_ext.settings import completed, plain

log = logging.getLogger(__name__)

_NAME = re.compile(r"search-\d{5,}")


def search_folders(run: Path) -> list[Path]:
    """Return the folder of the search in use, there or not, and those of all others."""
    return [run / "search", *_others(run)]


def search_folder(run: Path, identity: Mapping[str, Any]) -> Path:
    """Return the folder in which a search goes on, or begins; makes none.

    Args:
        run: the run folder, whose lock is held.
        identity: what the scores of the search depend on, from `search_identity`.
    """
    current, others = run / "search", _others(run)
    header = _header(current)
    if header is not None and _is_of(header, identity):
        return current
    for folder in others:
        if _is_of(_header(folder) or {}, identity):
            log.info("going on with the search in %s", folder)
            return folder if current.exists() else folder.rename(current)
    if header is None:
        return current
    # one without an archive was killed before it scored anything
    unused = next((folder for folder in others if _header(folder) is None), None)
    number = max((int(folder.name[7:]) for folder in others), default=-1) + 1
    folder = unused or run / f"search-{number:05d}"
    log.info("another search than that of %s: it takes its place when it has chosen", current)
    return folder


def take_place(run: Path, folder: Path) -> None:
    """Make the folder of a search that has chosen the run's own; the other one gets its name.

    Args:
        run: the run folder, whose lock is held.
        folder: of the search.
    """
    current = run / "search"
    if folder == current:
        return
    aside = folder.with_name(f".{folder.name}")
    current.rename(aside)
    folder.rename(current)
    aside.rename(folder)
    log.info("the earlier search, which is another one, is kept as %s", folder)


def _others(run: Path) -> list[Path]:
    """Folders of searches that are not in use.

    One with a dot was in use when a search was killed that took its place: it is put back where the
    other one is not there yet.
    """
    for hidden in sorted(run.glob(".search-*")):
        if _NAME.fullmatch(hidden.name[1:]):
            name = _free_name(run, int(hidden.name[8:]))
            hidden.rename(run / (name if (run / "search").exists() else "search"))
    return [path for path in sorted(run.glob("search-*")) if _NAME.fullmatch(path.name)]


def _free_name(run: Path, number: int) -> str:
    while (run / f"search-{number:05d}").exists():
        number += 1
    return f"search-{number:05d}"


def _header(folder: Path) -> dict[str, Any] | None:
    """First row of a search's archive; None where there is no row."""
    path = folder / ARCHIVE_FILE
    if not path.exists():
        return None
    rows, damaged = parse_jsonl(read_bytes(path, "search archive"))
    if damaged[:1] == [1]:
        return {}  # somebody's scores, but nobody knows whose
    return rows[0] if rows else None


def _is_of(header: Mapping[str, Any], identity: Mapping[str, Any]) -> bool:
    """Whether an archive's header is that of an identity."""
    if header.get("version") != VERSION:
        return False
    found = completed(header.get("identity", {}), identity)
    return all(found.get(key) == value for key, value in plain(identity).items())
