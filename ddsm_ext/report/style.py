"""The page's frame: style sheet and the few HTML pieces that every section uses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

CSS = Path(__file__).with_name("style.css").read_text(encoding="utf-8")


def page(title: str, body: str) -> str:
    """Return the whole HTML document; `body` is HTML, `title` is text."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def image(uri: str, alt: str, caption: str) -> str:
    """Return a figure: `uri` is a data URI; `alt` and `caption` are text."""
    text = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure><img src="{uri}" alt="{escape(alt, quote=True)}">{text}</figure>'


def cards(rows: Iterable[tuple[str, str, str]]) -> str:
    """Return the headline boxes from (name, figure, remark) texts."""
    boxes = [
        f'<div class="card"><div class="name">{escape(name)}</div>'
        f'<div class="figure">{escape(figure)}</div>'
        f'<div class="remark">{escape(remark)}</div></div>'
        for name, figure, remark in rows
    ]
    return f'<div class="cards">{"".join(boxes)}</div>'


def data_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of numbers; every cell is text."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f'<div class="scroll"><table class="data"><tr>{top}</tr>{body}</table></div>'


def facts_table(rows: Iterable[tuple[str, str]]) -> str:
    """Return a table of (name, text) facts."""
    body = "".join(f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in rows)
    return f'<table class="data facts">{body}</table>'


def paragraph(text: str, kind: str = "") -> str:
    """Return a paragraph of text; `kind` is a class of the style sheet, empty for none."""
    attribute = f' class="{kind}"' if kind else ""
    return f"<p{attribute}>{escape(text)}</p>"
