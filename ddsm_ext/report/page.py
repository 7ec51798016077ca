"""Builds report.html: one self-contained page from the files of a run folder."""

from __future__ import annotations

from pathlib import Path

from jinja2 import ChainableUndefined, Environment, FileSystemLoader

from ddsm_ext.io.files import to_json, write_atomic
from ddsm_ext.report import sections
from ddsm_ext.report.figures import to_svg_uri
from ddsm_ext.report.headline import headline
from ddsm_ext.report.run_files import RunFiles, load_run
from ddsm_ext.settings import Refusal


def build_report(run: str | Path) -> Path:
    """Write report.html into a run folder.

    Args:
        run: the run folder; what it lacks is left out of the page with a sentence.

    Returns:
        path of the page.

    Raises:
        FileNotFoundError: there is no such run folder.
        ValueError: a file in it cannot be read, or is not of the form that ddsm writes.
    """
    files = load_run(run)
    path = files.path / "report.html"
    try:
        page = render(files)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Refusal(
            f"{run}: a file has another form ({type(error).__name__}: {error}); "
            "need the files that ddsm writes"
        ) from error
    write_atomic(path, page.encode("utf-8"))
    return path


def render(files: RunFiles) -> str:
    """Return the page's HTML for the files of a run."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=ChainableUndefined,  # what a file lacks shows as nothing
    )
    environment.filters.update(svg_uri=to_svg_uri, number=sections.number)
    return environment.get_template("report.html.j2").render(
        run=files,
        source=Path(files.config.get("data", {}).get("source", "images")).name,
        headline=headline(files.metrics),
        samples=list(sections.samples(files)),
        evaluations=sections.evaluations(files),
        config_text=to_json(files.config, indent=2),
        **sections.drawn(files),
    )
