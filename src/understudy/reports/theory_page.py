"""`report.html` of the theory lab: for every experiment its question, figure, table and reading."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from understudy.reports.html import document, embedded, replace
from understudy.reports.theory import FIGURE, HEADERS, load_theory, row_cells, theory_figure

STYLE = """
td:nth-child(1), td:nth-child(5) { text-align: left; }
td.wrong { color: var(--bad); font-weight: 600; }
"""
GUIDE = (
    "Solid lines with marks are measured, dashed ones predicted in closed form, dotted ones bounds. A number with an interval "
    "was simulated (99.9 %), one without was computed exactly for the worlds it speaks of. 'no, as shown' marks a statement "
    "that does not hold: as printed, or where one might apply it beyond what it is stated for; the source says which."
)


def write_theory_report(folder: str | Path) -> Path:
    """Write `report.html`, and `figure.png` beside each record, for the records of a folder; returns the page.

    Raises:
        DataError: the folder has no record, or one cannot be read.
    """
    folder = Path(folder)
    records = load_theory(folder)
    body = ["<h1>Theory lab</h1>", f'<p class="guide">{escape(GUIDE)}</p>']
    body += [_section(record, _home(folder, record) / FIGURE) for record in records]
    page = folder / "report.html"
    replace(page, document("Theory lab", body, style=STYLE).encode("utf-8"))
    return page


def _home(folder: Path, record: Mapping[str, Any]) -> Path:
    return folder / record["name"] if (folder / record["name"]).is_dir() else folder


def _section(record: Mapping[str, Any], figure: Path) -> str:
    image = embedded(theory_figure(record), figure, record["question"])
    heads = "".join(f"<th>{escape(text)}</th>" for text in (*HEADERS, "source and note"))
    rows = "".join(_row(row) for row in record["rows"])
    reading = "".join(f"<p>{escape(sentence)}</p>" for sentence in record["reading"])
    made = f"seed {record['seed']}; {record['seconds']:.1f} s; {record['source']}"
    return (
        f"<h2>{escape(record['name'])}: {escape(record['question'])}</h2>{image}{reading}"
        f'<div class="scroll"><table><tr>{heads}</tr>{rows}</table></div><p class="soft">{escape(made)}</p>'
    )


def _row(row: Mapping[str, Any]) -> str:
    is_wrong = row["holds"] == ("yes" if row["is_refuted"] else "no")
    claim, bound, measured, verdict = map(escape, row_cells(row))
    count = f" n = {row['num']:,}." if row["num"] else ""
    note = escape(f"{row['source']}.{count} {row['note']}".strip())
    mark = ' class="wrong"' if is_wrong else ""
    return (
        f"<tr><td>{claim}</td><td>{bound}</td><td>{measured}</td><td{mark}>{verdict}</td><td>{note}</td></tr>"
    )
