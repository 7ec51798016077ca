"""Builds report.html: one self-contained page from the files of a run folder."""

from __future__ import annotations

from html import escape
from pathlib import Path

from ddsm_ext.io.files import write_atomic
from ddsm_ext.report import sections, style
from ddsm_ext.report.headline import headline
from ddsm_ext.report.run_files import RunFiles, load_run


def build_report(run: str | Path) -> Path:
    """Write report.html into a run folder.

    Args:
        run: the run folder; what it lacks is left out of the page with a sentence.

    Returns:
        path of the page.

    Raises:
        FileNotFoundError: there is no such run folder.
        ValueError: a file in it cannot be read.
    """
    files = load_run(run)
    path = files.path / "report.html"
    write_atomic(path, render(files).encode("utf-8"))
    return path


def render(files: RunFiles) -> str:
    """Return the page's HTML for the files of a run."""
    name = files.path.resolve().name
    parts = [f"<h1>{escape(name)}</h1>", style.paragraph(_summary(files), "muted")]
    figures = headline(files.metrics)
    if figures is not None:
        parts.append(style.cards(figures.lines()))
    else:
        parts.append(
            style.paragraph(
                "The headline figures appear when the full width and a strategy have been "
                "scored (ddsm search, then ddsm eval).",
                "none",
            )
        )
    links = [f'<a href="#{key}">{escape(title)}</a>' for key, title, _ in sections.SECTIONS]
    parts.append(f"<nav>{''.join(links)}</nav>")
    for key, title, make in sections.SECTIONS:
        parts.append(f'<section id="{key}"><h2>{escape(title)}</h2>{make(files)}</section>')
    return style.page(f"{name} - ddsm report", "\n".join(parts))


def _summary(files: RunFiles) -> str:
    model, data = files.config.get("model", {}), files.config.get("data", {})
    size = model.get("image_size")
    channels = "grey" if model.get("image_channels") == 1 else "colour"
    source = Path(str(data.get("source", "images"))).name
    text = f"One slimmable U-Net trained on {source}"
    if size:
        text += f" ({size}x{size}, {channels})"
    steps = files.config.get("train", {}).get("steps")
    if steps:
        text += f" for {steps} steps"
    return text + "; each denoising step runs it at the width that the search chose."
