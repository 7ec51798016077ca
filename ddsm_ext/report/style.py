"""The page's frame: style sheet and the few HTML pieces that every section uses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

CSS = """
:root { --ink: #1f2933; --muted: #5b6774; --line: #e1e6eb; --accent: #c2410c; --soft: #f6f8fa; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: var(--ink); line-height: 1.55;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 860px; margin: 0 auto; padding: 28px 20px 72px; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 4px; }
h2 { font-size: 1.2rem; margin: 44px 0 8px; padding-top: 16px; border-top: 1px solid var(--line); }
p { margin: 8px 0; max-width: 70ch; }
.muted, figcaption, .none { color: var(--muted); font-size: .92rem; }
.cards { display: grid; grid-template-columns: repeat(3, 1fr); gap: 14px; margin: 22px 0 6px; }
.card { border: 1px solid var(--line); border-radius: 10px; padding: 14px 16px;
  background: var(--soft); }
.card .name { font-size: .88rem; color: var(--muted); }
.card .figure { font-size: 1.55rem; font-weight: 650; color: var(--accent); line-height: 1.3; }
.card .remark { font-size: .85rem; color: var(--muted); line-height: 1.4; }
figure { margin: 14px 0; }
figure img { width: 100%; height: auto; display: block; }
figcaption { margin-top: 4px; max-width: 75ch; }
.samples { overflow-x: auto; }
.samples table { border-collapse: collapse; width: 100%; min-width: 520px; }
.samples th { font-weight: 500; white-space: nowrap; padding-right: 14px; width: 1%; }
.samples td { padding: 3px 0; }
.samples img { width: 100%; height: auto; display: block; image-rendering: pixelated; }
.scroll { overflow-x: auto; }
table.data { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums;
  font-size: .92rem; }
table.data th, table.data td { padding: 6px 12px 6px 0; border-bottom: 1px solid var(--line);
  text-align: right; white-space: nowrap; }
table.data th:first-child, table.data td:first-child, .samples th { text-align: left; }
table.data th { color: var(--muted); font-weight: 500; }
table.facts th, table.facts td { text-align: left; white-space: normal; vertical-align: top; }
table.facts th { width: 11em; }
pre { background: var(--soft); border: 1px solid var(--line); border-radius: 8px;
  padding: 12px 14px;
  overflow-x: auto; font-size: .84rem; line-height: 1.45; }
details summary { cursor: pointer; color: var(--muted); margin: 10px 0; }
nav { margin: 18px 0 0; font-size: .92rem; } nav a { margin-right: 14px; color: var(--muted);
  white-space: nowrap; display: inline-block; }
@media (max-width: 700px) { .cards { grid-template-columns: 1fr; } }
@media (max-width: 560px) { main { padding: 18px 14px 48px; } h1 { font-size: 1.4rem; } }
"""


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
