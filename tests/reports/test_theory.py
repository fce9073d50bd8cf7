"""Figures, tables and the page of the theory lab, from records alone."""

import json

import pytest

from lab_sample import ROWS, sample
from understudy.errors import DataError
from understudy.files import finite
from understudy.reports.drawing import to_png
from understudy.reports.page import write_report
from understudy.reports.theory import COLORS, load_theory, row_cells, show, theory_figure, verdict


def record(name="lock", order=4):
    head = {"order": order, "name": name, "question": "Does it <hold>?", "source": "arXiv:1", "seed": 0}
    return finite({**head, "seconds": 1.25, **sample().as_record()})


def write(folder, **changes):
    folder.mkdir(parents=True)
    (folder / "theory.json").write_text(json.dumps(record(**changes)))


def test_rows_in_words():
    rows = [row.as_record() for row in ROWS]
    assert row_cells(rows[0]) == ("enumerated", "<= 0.5", "0.25", "yes")
    assert row_cells(rows[1])[1:3] == (">= 0.1", "0.2 (0.15 to 0.25)")
    near = {**rows[0], "relation": "=", "tolerance": 0.05}
    assert row_cells(near)[1] == "= 0.5 +- 0.05"
    assert row_cells({**near, "tolerance": 1e-9})[1] == "= 0.5"
    assert [verdict(row) for row in rows] == ["yes", "yes", "cannot tell", "no, as shown"]
    assert verdict({**rows[3], "holds": "yes"}) == "yes (expected: no)"
    assert [show(x) for x in (None, 0.0, 12345.6, 123456.0, 0.00012345, 1.0)] == [
        "-", "0", "1.235e+04", "1.235e+05", "1.234e-04", "1",
    ]  # fmt: skip


def test_the_figure_shows_what_the_record_says():
    figure = theory_figure(record())
    lines, plane, heat = figure.axes[:3]
    assert [axes.get_title(loc="left") for axes in (lines, plane, heat)] == ["lines", "plane", "heat"]
    assert (lines.get_xscale(), lines.get_yscale(), lines.get_ylim()) == ("log", "log", (0.01, 1.0))
    drawn = {line.get_label(): line for line in lines.get_lines()}
    assert [drawn[name].get_linestyle() for name in ("run", "closed form", "bound")] == ["-", "--", ":"]
    # A measurement and its prediction share a colour; a bound has its own.
    assert drawn["run"].get_color() == drawn["closed form"].get_color() == COLORS[0]
    assert drawn["bound"].get_color() == COLORS[1]
    assert list(drawn["closed form"].get_ydata()) == [0.5, 0.2, 0.05]
    assert len(lines.collections) == 1  # the band of the one line with an interval
    assert plane.get_aspect() == 1
    assert len(plane.patches) == 1
    assert [text.get_text() for text in heat.texts] == ["1", "0.5", "0.25"]  # and none for the missing cell
    assert [tick.get_text() for tick in heat.get_yticklabels()] == ["0", "0.2"]
    assert to_png(figure).startswith(b"\x89PNG")


def test_a_page_of_several_experiments_in_their_order(tmp_path):
    write(tmp_path / "nailgun", name="nailgun", order=6)
    write(tmp_path / "lock")
    html = write_report(tmp_path).read_text()
    assert 0 < html.index("<h2>lock:") < html.index("<h2>nailgun:")
    assert "Does it &lt;hold&gt;?" in html
    assert "as printed &lt;b&gt;" in html
    assert "<b>" not in html
    assert "the sign is wrong &amp; it shows" in html
    assert html.count("data:image/png") == 2
    assert (tmp_path / "lock" / "figure.png").is_file()
    assert 'class="wrong"' not in html


def test_a_claim_that_fails_unexpectedly_stands_out(tmp_path):
    write(tmp_path / "lock")
    file = tmp_path / "lock" / "theory.json"
    changed = json.loads(file.read_text())
    changed["rows"][0]["holds"] = "no"
    file.write_text(json.dumps(changed))
    assert write_report(tmp_path / "lock").read_text().count('class="wrong"') == 1


@pytest.mark.parametrize("text", ["", "[1]", '{"name": "lock"}', "not json"])
def test_a_damaged_record_is_named(tmp_path, text):
    (tmp_path / "theory.json").write_text(text)
    with pytest.raises(DataError, match=r"theory\.json is not a record that `understudy theory` wrote"):
        load_theory(tmp_path)


def test_a_folder_without_records_is_named(tmp_path):
    with pytest.raises(DataError, match=r"expected theory\.json in"):
        load_theory(tmp_path)
