"""The page holds everything, escapes everything and never leaves half a file."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from fabricated import write_compare, write_run

from understudy.errors import DataError
from understudy.reports import html as html_module
from understudy.reports.page import write_report
from understudy.reports.tables import compare_rows, load_compare

HOSTILE = '<script>alert("x")</script><img src=http://example.org/a.png onerror=alert(1)>'
VOID = {"meta", "img", "input", "br"}


class Balanced(HTMLParser):
    """Every tag is closed in order; collects what is fetched and what could run."""

    def __init__(self):
        super().__init__()
        self.open, self.sources, self.handlers, self.tags = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href", "action", "data")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def parsed(html):
    parser = Balanced()
    parser.feed(html)
    parser.close()
    assert parser.open == []
    return parser


@pytest.fixture(scope="module")
def compare_html(compare_folder, tmp_path_factory):
    path = write_report(compare_folder)
    assert path == compare_folder / "report.html"
    return path.read_text()


def test_compare_page_is_whole_and_self_contained(compare_html, compare_folder):
    parser = parsed(compare_html)
    assert "script" not in parser.tags
    assert parser.sources
    assert all(source.startswith("data:image/png;base64,") for source in parser.sources)
    assert "default-src 'none'" in compare_html
    images = {path.name for path in (compare_folder / "figures").iterdir()}
    assert {
        "story.png",
        "moving_front.png",
        "time.png",
        "learning_accuracy_greedy_by_cpu_seconds.png",
    } <= images
    assert len(images) == len(parser.sources)
    assert not [name for name in images if name.endswith(".tmp")]
    heads = ["What was run", "Results", "Failed cells", "Learning curves", "Accuracy and KL by position"]
    for head in [*heads, "The moving front", "Where the time went", "Sample rollouts"]:
        assert f"<h2>{head}</h2>" in compare_html
    assert compare_html.count("How to read this.") == 6


def test_compare_page_has_the_numbers_of_the_rows(compare_html, compare_folder):
    for row in compare_rows(load_compare(compare_folder)):
        (line,) = re.findall(rf"<tr><td>{row['method']}</td>.*?</tr>", compare_html)
        entry = row["metrics"]["accuracy_greedy"]
        assert f"<td>{entry['mean']:.2f}<small>{entry['low']:.2f} to {entry['high']:.2f}</small></td>" in line
    assert "<td>2 of 3</td>" in compare_html


def test_failed_cell_shows_its_error(compare_html):
    assert "<p>nail-r, seed 2</p><pre>TrainingError: loss &lt;nan&gt; at step 12</pre>" in compare_html


def test_each_group_of_tabs_has_one_panel_per_button_and_one_open(compare_html):
    groups = re.findall(r'<div class="tabs">(.*?)</div></div>', compare_html)
    assert len(groups) == 4
    for group in groups:
        assert group.count('type="radio"') == group.count('class="panel"') == 4
        assert group.count(" checked") == 1
    for index in range(1, 5):
        assert f".tabs > input:nth-of-type({index}):checked ~ .panel:nth-of-type({index})" in compare_html


def test_a_page_with_experts_and_aligned_steps(staged_folder):
    html = write_report(staged_folder).read_text()
    parsed(html)
    images = {path.name for path in (staged_folder / "figures").iterdir()}
    assert "learning_accuracy_greedy_by_aligned_steps.png" in images
    groups = re.findall(r'<div class="tabs">(.*?)</div></div>', html)
    assert {group.count('type="radio"') for group in groups} == {
        group.count('class="panel"') for group in groups
    }
    assert all("by aligned steps</label>" in group for group in groups)
    assert ".tabs > input:nth-of-type(5):checked ~ .panel:nth-of-type(5)" in html
    rows = re.findall(r"<tr[^>]*><td>([^<]*)</td><td>\d</td>", html)
    stages = ["start base (sft)", "expert far (nail-known)", "expert rl (nail-r)"]
    assert rows == ["sft", "opd-f", "nail-f", *stages]
    assert (
        html.count('<tr class="divided"><td>start base (sft)</td>') == html.count('<tr class="divided">') == 1
    )


def test_hostile_text_is_escaped_everywhere(tmp_path):
    sample = {
        "step": 1,
        "prompt": HOSTILE,
        "response": HOSTILE,
        "reference": HOSTILE,
        "score": 1.0,
        "finish": HOSTILE,
    }
    marked = {**sample, "is_student": [True] * len(HOSTILE.split())}
    unmarked = {**sample, "score": None}
    folder = write_run(
        tmp_path / "run", "nail-f", 0, range(25, 51, 25), "main", samples=[sample, marked, unmarked]
    )
    metrics = {HOSTILE: {"value": 0.5, "low": None, "high": None, "n": 1}}
    record = {"kind": "eval", "step": 1, "metrics": metrics, "seconds": {"train": 1.0}}
    (folder / "metrics.jsonl").write_text(
        json.dumps(record) + "\n" + json.dumps({"kind": "end", "reason": HOSTILE})
    )
    (folder / "recipe.json").write_text(json.dumps({"name": HOSTILE, "method": {"name": HOSTILE}, "seed": 0}))
    (folder / "versions.json").write_text(json.dumps({"command": ["understudy", HOSTILE], HOSTILE: HOSTILE}))
    html = write_report(folder).read_text()
    parser = parsed(html)
    assert "script" not in parser.tags
    assert parser.handlers == []
    assert all(source.startswith("data:") for source in parser.sources)
    assert html.count("&lt;script&gt;") >= 8


def test_truncated_run_with_few_metrics_still_has_a_page(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    loss = {"validation_loss_nats": {"value": 0.5, "low": 0.4, "high": 0.6, "n": 8}}
    evals = [{"kind": "eval", "step": s, "trajectories": None, "metrics": loss} for s in (1, 2)]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, evals)) + '\n{"kind": "tra')
    html = write_report(folder).read_text()
    parsed(html)
    assert "the last line is half-written" in html
    assert "<td>0.500<small>0.400 to 0.600</small></td>" in html
    assert [p.name for p in (folder / "figures").iterdir()] == ["learning_validation_loss_nats_by_steps.png"]


def test_compare_with_nothing_done_lists_the_errors(tmp_path):
    folder = write_compare(tmp_path / "none", ["opd-f"], [0], failed={("opd-f", 0)})
    html = write_report(folder).read_text()
    parsed(html)
    assert "No cell is done yet" in html
    assert "loss &lt;nan&gt; at step 12" in html


@pytest.mark.parametrize("name", ["figures/time.png", "report.html"])
def test_a_report_that_fails_leaves_the_old_one_whole(run_folder, monkeypatch, name):
    old, replace = run_folder / name, html_module.os.replace
    old.parent.mkdir(exist_ok=True)
    old.write_text("old")
    record = {"kind": "eval", "step": 1, "seconds": {"train": 1.0}}
    (run_folder / "metrics.jsonl").write_text(json.dumps(record))

    def full_disk(source, target):
        if target == old:
            raise OSError("No space left on device")
        replace(source, target)

    monkeypatch.setattr(html_module.os, "replace", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_report(run_folder)
    assert old.read_text() == "old"
    assert list(run_folder.rglob("*.tmp")) == []


def test_a_folder_of_neither_kind_is_named(tmp_path):
    with pytest.raises(
        DataError, match=r"theory\.json, discrepancy\.json, forks\.json or correction\.json, found none"
    ):
        write_report(tmp_path)


def test_reports_import_neither_torch_nor_pyplot():
    code = "import sys, understudy.reports.page\nprint({'torch', 'matplotlib.pyplot'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
