"""The section on held-out prompts: every number of the record at its place, escaped, and nothing made up."""

import copy
import json
import re

import numpy as np
import pytest
from test_figures import assert_texts_are_apart
from test_page import HOSTILE, parsed

from understudy.errors import DataError
from understudy.reports.held_out import (
    difference_rows,
    drawn_metrics,
    held_out_figure,
    held_out_section,
    is_outdated,
    load_held_out,
)
from understudy.reports.page import _held_out, write_report
from understudy.reports.tables import load_compare

NAMES = ("accuracy_greedy", "ood/accuracy_greedy", "pass@2", "pass@8", "avg@8", "validation_loss_nats")


def entry(*values, half=0.05):
    mean = sum(values) / len(values)
    low, high = (mean - half, mean + half) if len(values) > 1 else (None, None)
    by_seed = {str(seed): value for seed, value in enumerate(values)}
    return {"mean": mean, "low": low, "high": high, "n": len(values), "by_seed": by_seed}


def labelled(label, kind, *values):
    metrics = {name: entry(*(value + 0.01 * i for value in values)) for i, name in enumerate(NAMES)}
    return {"label": label, "kind": kind, "seeds": list(range(len(values))), "metrics": metrics}


def difference(value, **more):
    estimate = {"value": value, "low": value - 0.1, "high": value + 0.1, "n": 40}
    found = {"value_a": 0.5 + value, "value_b": 0.5, "difference": estimate, "num_higher": 9, "num_lower": 3}
    found |= {"p_sign": 0.3, "p_sign_flip": 0.02, "p_verdict": 0.02, "verdict": "higher"}
    return {**found, "by_seed": {"0": value + 0.01, "1": value - 0.01}, **more}


RECORD = {
    "recipe": "made up",
    "split": "test",
    "rows": [
        labelled("sft", "method", 0.3, 0.4),
        labelled("opd-r", "method", 0.5),
        labelled("start", "start", 0.2, 0.2),
        labelled("solver", "expert", 0.8, 0.9),
        labelled("other", "expert", 0.6, 0.6),
    ],
    "paired": [
        {
            "a": "sft",
            "b": "start",
            "metrics": {"accuracy_greedy": difference(0.25), "pass@8": difference(0.1)},
        },
        {"a": "sft", "b": "solver", "metrics": {"ood/accuracy_greedy": difference(-0.125)}},
    ],
    "left_out": ["opd-r, seed 1: failed"],
}


def test_a_panel_a_set_with_dots_intervals_and_lines():
    figure = held_out_figure(RECORD, ["accuracy_greedy", "ood/accuracy_greedy"])
    panels = figure.axes
    assert [axes.get_title(loc="left") for axes in panels] == ["own task", "ood"]
    for shift, axes in zip((0.0, 0.01), panels, strict=True):
        means = {
            line.get_ydata()[0]: line.get_xdata()[0] for line in axes.lines if line.get_markersize() == 7
        }
        assert means == {0: pytest.approx(0.35 + shift), 1: pytest.approx(0.5 + shift)}
        (seeds,) = (
            list(x.get_xdata()) for x in axes.lines if len(x.get_xdata()) == 2 and x.get_marker() == "o"
        )
        assert seeds == pytest.approx([0.3 + shift, 0.4 + shift])
        bars = [
            x.get_xdata() for x in axes.lines if x.get_marker() == "None" and list(x.get_ydata()) == [0, 0]
        ]
        np.testing.assert_allclose(bars, [[0.3 + shift, 0.4 + shift]])
        upright = [x.get_xdata()[0] for x in axes.lines if list(x.get_ydata()) == [0, 1]]
        assert upright == pytest.approx([0.2 + shift, 0.85 + shift, 0.6 + shift])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["start", "solver", "other"]
    assert [label.get_text() for label in panels[0].get_yticklabels()] == ["sft", "opd-r"]
    assert_texts_are_apart(figure)


def test_what_is_drawn():
    """The accuracies on every set, and of k samples the largest k; without a grader the losses."""
    assert drawn_metrics(RECORD) == {
        "accuracy_greedy": ["accuracy_greedy", "ood/accuracy_greedy"],
        "pass@8": ["pass@8"],
    }
    losses = copy.deepcopy(RECORD)
    for row in losses["rows"]:
        row["metrics"] = {"validation_loss_nats": row["metrics"]["validation_loss_nats"]}
    assert drawn_metrics(losses) == {"validation_loss_nats": ["validation_loss_nats"]}
    assert held_out_figure(losses, ["validation_loss_nats"]).axes[0].lines


def test_differences_in_words():
    (row,) = difference_rows(RECORD, "start")
    assert row == (
        *("sft", "Greedy accuracy", "0.75", "0.50", "+0.250", "+0.150 to +0.350", "40", "0.02", "higher"),
        "+0.260 +0.240",
    )
    none = {"value": 0.0, "low": None, "high": None, "n": 1}
    of_one = {**RECORD, "paired": [{"a": "x", "b": "y", "metrics": {"accuracy_greedy": difference(0.0)}}]}
    of_one["paired"][0]["metrics"]["accuracy_greedy"]["difference"] = none
    assert difference_rows(of_one, "y")[0][5] == "-"


def test_the_page_has_the_section(tmp_path, staged_folder):
    record = copy.deepcopy(RECORD)
    record["rows"][0]["label"] = record["paired"][0]["a"] = record["left_out"][0] = HOSTILE
    html = held_out_section(record, tmp_path / "figures")
    assert "script" not in parsed(html).tags
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == [
        "test_accuracy_greedy.png",
        "test_pass_at_8.png",
    ]
    assert html.index("<h3>Against start") < html.index("<h3>Against solver")
    assert html.count('<tr class="divided"><td>start</td>') == 1
    folder = staged_folder / "evaluations"
    folder.mkdir()
    try:
        (folder / "test.json").write_text(json.dumps(RECORD))
        page = write_report(staged_folder).read_text()
    finally:
        (folder / "test.json").unlink()
        folder.rmdir()
    parsed(page)
    section = page[page.index("<h2>On test prompts</h2>") : page.index("<h2>The story")]
    assert section.count("How to read this.") == 1
    assert "<td>0.35<small>0.30 to 0.40</small></td>" in section
    assert "<td>+0.260 +0.240</td>" in section
    assert re.search(r"Left out: opd-r, seed 1: failed\.", section)
    assert "Other cells are finished now than were measured here" in section
    assert "On test prompts" not in write_report(staged_folder).read_text()


def test_what_was_measured_before_a_cell_ended_is_outdated(staged_folder):
    compare = load_compare(staged_folder)
    record = {"split": "test", "paired": [], "left_out": []}
    record["rows"] = [
        {"label": label, "kind": "method", "seeds": [0, 1, 2], "metrics": {}} for label in compare.methods
    ]
    assert not is_outdated(record, compare)
    record["rows"][0]["seeds"] = [0, 1]
    assert is_outdated(record, compare)
    record["left_out"] = ["sft, seed 2: running"]
    assert is_outdated(record, compare)
    record["left_out"] = ["sft, seed 2: its checkpoint is gone"]
    assert not is_outdated(record, compare)
    record["rows"][1]["seeds"] = [0, 1, 2, 3]
    assert is_outdated(record, compare)


def test_a_damaged_record_is_a_warning_on_the_page(staged_folder, tmp_path):
    folder = staged_folder / "evaluations"
    folder.mkdir()
    try:
        (folder / "test.json").write_text('{"rows": [3], "paired": []}')
        page = _held_out(load_compare(staged_folder), tmp_path)
    finally:
        (folder / "test.json").unlink()
        folder.rmdir()
    parsed(page)
    assert re.search(r'class="warn">expected an object with rows and paired in .*test\.json', page)


@pytest.mark.parametrize(
    "text", ["[]", "{", '{"rows": 3, "paired": []}', '{"rows": []}', '{"rows": [], "paired": []}']
)
def test_a_damaged_record_is_one_sentence(tmp_path, text):
    assert load_held_out(tmp_path, "test") is None
    (tmp_path / "evaluations").mkdir()
    (tmp_path / "evaluations" / "test.json").write_text(text)
    with pytest.raises(
        DataError, match=r"an object with rows and paired in .*test\.json, found something else"
    ):
        load_held_out(tmp_path, "test")
