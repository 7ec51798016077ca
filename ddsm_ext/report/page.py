"""Builds report.html: one self-contained page from the files of a run folder."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ddsm_ext.io.files import one_line, write_atomic
from ddsm_ext.report import figures
from ddsm_ext.report.files import RunFiles, load_run
from ddsm_ext.report.scores import number
from ddsm_ext.report.sections import SECTIONS, Section

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """A part of the page as HTML, and the sentences that stand above it."""

    key: str
    title: str | None
    body: Any
    faults: list[str]


def build_report(run: str | Path, out: str | Path | None = None) -> Path:
    """Write report.html into a run folder.

    Args:
        run: the run folder; what it lacks is left out of the page with a sentence. So is a file
            that is damaged or cannot be read, with a warning too.
        out: file to write in its place.

    Returns:
        path of the page.

    Raises:
        FileNotFoundError: there is no such run folder, or it has no config.json.
        OSError: the page cannot be written.
    """
    path = Path(run)
    files = load_run(path)
    environment = _environment()
    macros = environment.get_template("sections.html.j2").module
    parts = [_part(key, section, getattr(macros, key), files) for key, section in SECTIONS.items()]
    html = environment.get_template("report.html.j2").render(name=path.resolve().name, parts=parts)
    # what UTF-8 cannot hold, as of a file name that is none, is shown as a question mark
    page = write_atomic(out or path / "report.html", html.encode("utf-8", "replace"))
    for fault in dict.fromkeys(fault for part in parts for fault in part.faults):
        warnings.warn(f"{run}: {fault}", stacklevel=2)
    return page


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    environment.filters.update(svg_uri=figures.to_svg_uri, number=number)
    return environment


def _part(key: str, section: Section, macro: Callable[..., Any], files: RunFiles) -> Part:
    """Make a part of the page; a fault of ours in it leaves the others standing."""
    faults = [files.faults[name] for name in section.files if name in files.faults]
    try:
        return Part(key, section.title, macro(section.values(files), bool(faults)), faults)
    except Exception as error:
        log.debug("section %s", key, exc_info=True)
        fault = (
            f"the section {section.title or key!r} could not be made "
            f"({type(error).__name__}: {one_line(error):.200}); this is a fault of ddsm, which "
            "needs to be reported"
        )
        return Part(key, section.title, "", [*faults, fault])
