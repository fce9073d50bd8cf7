"""Figure and page of a comparison of responses, from its record."""

import json
import warnings

import pytest

from understudy.diagnostics.findings import Settings
from understudy.discrepancy import compare_responses
from understudy.errors import DataError
from understudy.reports.discrepancy import discrepancy_figure, gap_cells, headers, shown, with_interval
from understudy.reports.drawing import to_png
from understudy.reports.page import write_report

HOSTILE = "<script>alert(1)</script> $x^ \x1b[31m \u6f22"


def write(file, texts, grades):
    rows = [
        {"id": f"{i % 6}<b>", "response": text, "score": grade}
        for i, (text, grade) in enumerate(zip(texts, grades, strict=True))
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("discrepancy")
    a = write(
        place / "a.jsonl", [f"{HOSTILE} {'so ' * (i % 5)}" for i in range(12)], [i % 2 for i in range(12)]
    )
    b = write(place / "b.jsonl", [f"wait {'x ' * (i % 7)}" for i in range(12)], [1] * 12)
    settings = Settings(num_resamples=100, num_shuffles=100)
    compare_responses(a, b, out=place / "out", labels=("A <i> $^$", "B"), settings=settings)
    return place / "out"


def record(folder):
    return json.loads((folder / "discrepancy.json").read_text())


def test_the_page_shows_every_row_and_escapes_what_came_from_files(folder):
    assert {path.name for path in folder.iterdir()} == {"discrepancy.json", "figure.png", "report.html"}
    page = (folder / "report.html").read_text()
    assert "<script>" not in page
    assert "<i>" not in page
    assert "<b>" not in page
    assert "\x1b" not in page
    assert "Discrepancy: A &lt;i&gt; $^$ and B" in page
    found = record(folder)
    for row in (*found["gaps"], *found["by_prompt"], *found["ngrams"]):
        for cell in gap_cells(row):
            assert cell.replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;") in page, cell
    assert "The prompts that differ most" in page
    assert page.count("&lt;b&gt;</td>") == 6
    assert page.count("data:image/png") == 1
    assert "versions" in page


def test_the_figure_shows_the_record(folder):
    found = record(folder)
    lengths, gaps, prompts = (figure := discrepancy_figure(found)).axes
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "Lengths", "Lower bounds on total variation", "Mean length, prompt by prompt",
    ]  # fmt: skip
    stairs = [patch.get_data() for patch in lengths.patches]
    assert list(stairs[0].values) == pytest.approx([100 * row[1] for row in found["bins"]])
    assert list(stairs[2].values) == pytest.approx([100 * row[2] for row in found["bins"]])
    bars = [bar.get_width() for bar in gaps.patches]
    assert bars == pytest.approx([100 * max(row["gap"], 0) for row in found["gaps"]])
    dots = [line.get_xdata()[0] for line in gaps.lines if line.get_marker() == "o"]
    assert dots == pytest.approx([100 * row["bound"]["value"] for row in found["gaps"]])
    assert gaps.texts[0].get_text() == "performance gap 50.0 %"
    assert gaps.yaxis_inverted()
    offsets = prompts.collections[0].get_offsets()
    assert [list(xy) for xy in offsets] == [[p["length_a"], p["length_b"]] for p in found["prompts"]]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        assert to_png(figure).startswith(b"\x89PNG")


def test_a_page_without_prompts_grades_or_halves(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text('{"response": "so"}\n')
    settings = Settings(prompts="independent")
    found = compare_responses(
        tmp_path / "a.jsonl", tmp_path / "b.jsonl", out=tmp_path / "o", settings=settings
    )
    assert len(discrepancy_figure(found).axes) == 2
    page = (tmp_path / "o" / "report.html").read_text()
    assert "Prompt by prompt, averaged" not in page
    assert "The prompts that differ most" not in page
    assert "(no interval)" in page


def test_report_draws_it_again_the_same(folder):
    page = folder / "report.html"
    before = page.read_bytes()
    page.unlink()
    assert write_report(folder) == page
    assert page.read_bytes() == before


@pytest.mark.parametrize("text", ["{", "[]", '{"name_a": "A"}'])
def test_a_broken_record_is_named(tmp_path, text):
    (tmp_path / "discrepancy.json").write_text(text)
    with pytest.raises(
        DataError, match=r"discrepancy\.json is not a record that `understudy discrepancy` wrote"
    ):
        write_report(tmp_path)


def test_cells():
    bound = {"value": 0.0812, "low": 0.04, "high": 0.1222, "n": 9}
    row = {
        "name": "x\x07",
        "kind": "event",
        "share_a": 0.5,
        "share_b": 0,
        "gap": -0.023,
        "chance": None,
        "p_value": None,
    }
    assert gap_cells({**row, "bound": bound}) == (
        "x\ufffd", "event", "50.0 %", "0.0 %", "-2.3 %", "-", "-", "8.1 % (4.0 to 12.2)",
    )  # fmt: skip
    assert gap_cells({**row, "bound": bound, "chance": 0.1, "p_value": 0.0312})[5:7] == ("10.0 %", "0.031")
    assert with_interval({**bound, "low": None}) == "8.1 % (no interval)"
    assert headers({"name_a": "A\n", "name_b": "B"})[2:4] == ("A\ufffd", "B")
    assert shown("a\u202eb") == "a\ufffdb"
