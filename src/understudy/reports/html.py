"""What all pages share: one file, no scripts, nothing fetched, light and dark."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from understudy.reports.drawing import to_png
from understudy.reports.tables import format_value

STYLE = """
:root {
  color-scheme: light dark;
  --ink: #1d2126; --soft: #5b6470; --paper: #ffffff; --card: #f5f6f8; --line: #d9dde3;
  --accent: #0a62a8; --bad: #a33a00;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e8eaed; --soft: #a4adb8; --paper: #14171b; --card: #1e2329; --line: #363d46;
    --accent: #7cc0f5; --bad: #ff9a66;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 2rem 1.2rem 4rem; max-width: 66rem; color: var(--ink); background: var(--paper);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif;
}
h1 { font-size: 1.6rem; margin: 0 0 .3rem; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
p { margin: .4rem 0; max-width: 48rem; }
.guide, .soft { color: var(--soft); font-size: .9rem; }
.warn { border-left: .25rem solid var(--bad); padding: .3rem .8rem; background: var(--card); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td {
  padding: .3rem .8rem .3rem 0; text-align: right; border-bottom: 1px solid var(--line); vertical-align: top;
}
th { font-size: .85rem; font-weight: 600; }
th:first-child, td:first-child, table.facts td { text-align: left; }
td small { display: block; color: var(--soft); white-space: nowrap; }
img {
  display: block; max-width: 100%; height: auto; border-radius: .5rem; background: #fff;
  border: 1px solid var(--line);
}
pre {
  white-space: pre-wrap; overflow-wrap: anywhere; background: var(--card); padding: .7rem .9rem;
  border-radius: .5rem; font-size: .85rem; margin: .4rem 0;
}
details { margin: .5rem 0; }
summary { cursor: pointer; color: var(--accent); }
"""


def document(title: str, body: Iterable[str], *, style: str = "") -> str:
    """A whole page. The title is escaped here, the body is HTML already; a content policy forbids scripts."""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}{style}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + "\n</body>\n</html>\n"
    )


def embedded(figure: Figure, path: Path, words: str) -> str:
    """Write a figure to `path` and return it as an image inside the page."""
    png = to_png(figure)
    path.parent.mkdir(exist_ok=True)
    replace(path, png)
    return f'<img alt="{escape(words)}" src="data:image/png;base64,{base64.b64encode(png).decode("ascii")}">'


def replace(path: Path, content: bytes) -> None:
    """Write beside the target, then rename over it: a reader sees the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def value_cell(entry: dict[str, Any] | None, name: str) -> str:
    """A metric's mean with its interval below, for a table; a dash for nothing."""
    if entry is None:
        return "-"
    if entry["low"] is None or entry["high"] is None:
        return f"{format_value(name, entry['mean'])}<small>no interval</small>"
    interval = f"{format_value(name, entry['low'])} to {format_value(name, entry['high'])}"
    return f"{format_value(name, entry['mean'])}<small>{interval}</small>"
