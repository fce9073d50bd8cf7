"""Figures show the numbers they were given, and no text covers another."""

import itertools
import json

import numpy as np
import pytest
from fabricated import SHAPES, with_stages, write_compare
from matplotlib.collections import QuadMesh
from matplotlib.text import Text

from understudy.errors import DataError
from understudy.reports.curves import learning_curves
from understudy.reports.figures import (
    moving_front,
    position_figure,
    story_figure,
    time_figure,
)
from understudy.reports.series import groups_of, position_table, warm_end
from understudy.reports.tables import compare_rows, load_compare, load_run


def assert_texts_are_apart(figure):
    """No two texts of a figure overlap and none leaves it (tick labels are matplotlib's own care)."""
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    ticks = {id(t) for axes in figure.axes for t in (*axes.get_xticklabels(), *axes.get_yticklabels())}
    boxes = []
    for text in figure.findobj(Text):
        is_shown = text.get_visible() and text.get_text().strip() and id(text) not in ticks
        if is_shown and (
            text.axes is None or text.axes.axison or text in text.axes.texts or text is text.axes.title
        ):
            boxes.append((text.get_text(), Text.get_window_extent(text, renderer)))
    assert len(boxes) >= 3
    for words, box in boxes:
        assert -1 <= box.x0 <= box.x1 <= figure.bbox.width + 1, words
        assert -1 <= box.y0 <= box.y1 <= figure.bbox.height + 1, words
    for (words, box), (other, second) in itertools.combinations(boxes, 2):
        width = min(box.x1, second.x1) - max(box.x0, second.x0)
        height = min(box.y1, second.y1) - max(box.y0, second.y0)
        assert width <= 1 or height <= 1.5, f"{words!r} overlaps {other!r}"


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """All eight methods of the demo, one seed: the most crowded figures."""
    return load_compare(write_compare(tmp_path_factory.mktemp("demo") / "all", list(SHAPES), [0]))


@pytest.fixture(scope="module")
def compare(compare_folder):
    return load_compare(compare_folder)


def test_learning_curve_ends_at_the_mean_of_the_table(compare):
    figure = learning_curves(compare, "expert_kl_nats", "expert_queries")
    axes = figure.axes[0]
    thick = {line.get_label().split()[0]: line for line in axes.lines if line.get_linewidth() == 2.0}
    assert list(thick) == ["opd-f", "nail-f", "nail-r"]
    groups = {group.label: group for group in groups_of(compare)}
    for row in compare_rows(compare):
        x, y = thick[row["method"]].get_data()
        (begin,) = {warm_end(r, w, "expert_queries") for r, w in groups[row["method"]].runs}
        assert x[-1] + begin == row["budget"]["expert_queries"]  # x counts from the end of the warm start
        assert y[-1] == pytest.approx(row["metrics"]["expert_kl_nats"]["mean"], abs=1e-12)
        assert thick[row["method"]].get_label() == f"{row['method']}  {y[-1]:.3f}"
        (label,) = [text for text in axes.texts if text.get_text() == thick[row["method"]].get_label()]
        assert label.xy[1] * axes.get_ylim()[1] == pytest.approx(y[-1], abs=1e-12)  # the axis begins at 0
    thin = [line for line in axes.lines if line.get_linewidth() == 0.7]
    assert len(thin) == 3 + 3 + 2
    grey = [line for line in axes.lines if line.get_linewidth() == 1.0]
    for line, warm in zip(grey, compare.warm_starts, strict=True):
        assert list(line.get_ydata()) == [r["metrics"]["expert_kl_nats"]["value"] for r in warm.evals]
    assert len(axes.collections) == 2  # a band needs three seeds: nail-r has two
    assert axes.get_title(loc="left") == "KL(expert || student) by expert queries"


@pytest.mark.parametrize("axis", ["trajectories", "expert_queries", "steps", "cpu_seconds"])
def test_crowded_learning_curves_keep_their_labels_apart(demo, axis):
    assert_texts_are_apart(learning_curves(demo, "accuracy_greedy", axis))


def test_story_tells_the_final_accuracies(demo):
    figure = story_figure(demo)
    assert_texts_are_apart(figure)
    words = [text.get_text() for text in figure.axes[0].texts]
    rows = {row["method"]: row["metrics"] for row in compare_rows(demo)}
    for method in ("opd-f", "nail-f", "opd-known", "nail-known"):
        start = words.index(method)
        values = [words[start + 1], words[start + 4]]
        assert values == [
            f"{rows[method][name]['mean']:.2f}" for name in ("accuracy_greedy", "accuracy_sampled")
        ]
    assert words.count("one seed") == 8


def test_story_says_what_was_not_run(compare):
    words = [text.get_text() for text in story_figure(compare).axes[0].texts]
    assert words.count("not run") == 4  # opd-known and nail-known, two halves each


def test_moving_front_shows_the_mean_by_position(compare):
    figure = moving_front(compare)
    meshes = [mesh for axes in figure.axes for mesh in axes.collections if isinstance(mesh, QuadMesh)][:3]
    for mesh, group in zip(meshes, groups_of(compare), strict=True):
        table = position_table(group, "teacher_forced_accuracy")
        assert list(table) == list(range(-175, 151, 25))  # the warm start's evaluations come first
        shown = np.asarray(mesh.get_array()).reshape(21, len(table))
        np.testing.assert_allclose(shown, np.stack(list(table.values()), axis=1), atol=1e-12)
    assert_texts_are_apart(figure)


def test_position_figure_draws_first_and_last_evaluation(compare):
    figure = position_figure(compare, "expert_kl_nats")
    table = position_table(groups_of(compare)[0], "expert_kl_nats")
    lines = figure.axes[0].lines
    assert len(lines) == 5
    np.testing.assert_allclose(lines[0].get_ydata(), table[-175])
    np.testing.assert_allclose(lines[-1].get_ydata(), table[150])
    assert lines[0].get_xdata().tolist() == list(range(1, 22))
    assert_texts_are_apart(figure)


def test_time_bars_add_up(compare):
    figure = time_figure(compare)
    axes = figure.axes[0]
    widths = [[bar.get_width() for bar in container] for container in axes.containers]
    cpu_seconds = [row["budget"]["cpu_seconds"] for row in compare_rows(compare)]
    assert [sum(column) for column in zip(*widths, strict=True)] == pytest.approx(cpu_seconds, rel=1e-9)
    starts = [container[0].get_x() for container in axes.containers]
    assert starts == pytest.approx(
        [sum(column[0] for column in widths[:i]) for i in range(len(widths))], rel=1e-9
    )
    assert widths[0] == pytest.approx([0.35 * seconds for seconds in cpu_seconds], rel=1e-9)
    assert_texts_are_apart(figure)


def test_single_run_and_crowd(run_folder, demo):
    run = load_run(run_folder)
    assert_texts_are_apart(learning_curves(run, "accuracy_greedy"))
    assert_texts_are_apart(position_figure(run, "expert_kl_nats"))
    runs = [cell.run for cell in demo.cells]
    assert len(learning_curves(runs, "accuracy_greedy").axes[0].get_lines()) >= len(runs)


@pytest.fixture(scope="module")
def staged(staged_folder):
    return load_compare(staged_folder)


def lines_of(figure):
    """Label -> line, of the first axes' lines that have one."""
    return lines_of_axes(figure.axes[0])


def lines_of_axes(axes):
    return {line.get_label().split("  ")[0]: line for line in axes.lines if "  " in line.get_label()}


def test_experts_are_lines_of_their_own_by_their_own_steps(staged):
    figure = learning_curves(staged, "expert_kl_nats", "steps")
    lines = lines_of(figure)
    assert list(lines) == ["far (nail-known)", "rl (nail-r)", "sft", "opd-f", "nail-f"]
    far, rl = lines["far (nail-known)"], lines["rl (nail-r)"]
    for line, stage in ((far, staged.stages[1]), (rl, staged.stages[2])):
        x, y = line.get_data()
        assert list(x) == [record["step"] for record in stage.runs[0].evals]
        values = [run.evals[-1]["metrics"]["expert_kl_nats"]["value"] for run in stage.runs]
        assert y[-1] == pytest.approx(np.mean(values), abs=1e-12)
        assert line.get_linewidth() < 1.5
    assert far.get_color() == rl.get_color()
    assert far._dash_pattern != rl._dash_pattern
    assert figure.axes[0].get_xlim()[1] >= 800
    assert_texts_are_apart(figure)


def test_a_long_name_of_an_expert_has_room(tmp_path):
    folder = write_compare(tmp_path / "c", ["sft", "nail-f"], [0])
    with_stages(folder, names=("countdown-expert-by-reward", "far"))
    assert_texts_are_apart(learning_curves(load_compare(folder), "accuracy_greedy", "steps"))


def test_an_expert_that_asked_nobody_has_no_line_by_queries(tmp_path):
    folder = with_stages(write_compare(tmp_path / "c", ["sft", "nail-f"], [0]))
    for file in (tmp_path / "c-stages").rglob("metrics.jsonl"):
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        file.write_text("".join(json.dumps({**line, "expert_queries": 0}) + "\n" for line in lines))
    compare = load_compare(folder)
    assert list(lines_of(learning_curves(compare, "accuracy_greedy", "expert_queries"))) == [
        "far (nail-known)",
        "sft",
        "nail-f",
    ]


def test_experts_are_in_learning_curves_alone(staged):
    assert list(lines_of_axes(story_figure(staged).axes[1])) == ["sft", "opd-f", "nail-f"]
    titles = [axes.get_title(loc="left") for axes in position_figure(staged, "expert_kl_nats").axes]
    assert [title for title in titles if title] == ["sft", "opd-f", "nail-f"]
    assert [label.get_text() for label in time_figure(staged).axes[0].get_yticklabels()] == [
        "sft",
        "opd-f",
        "nail-f",
    ]


def test_aligned_steps_are_divided_and_said(staged):
    plain = lines_of(learning_curves(staged, "accuracy_greedy", "steps"))
    figure = learning_curves(staged, "accuracy_greedy", "aligned_steps")
    aligned = lines_of(figure)
    assert list(aligned) == list(plain)
    for label in ("sft", "opd-f", "nail-f"):
        line, divisor = aligned[label], 8 if label == "sft" else 1
        np.testing.assert_allclose(line.get_xdata(), np.asarray(plain[label].get_xdata()) / divisor)
        np.testing.assert_allclose(line.get_ydata(), plain[label].get_ydata())
    assert (
        figure.axes[0].get_xlabel()
        == "optimiser steps after the warm start (sft divided by 8; experts: rounds)"
    )
    assert figure.axes[0].get_title(loc="left") == "Greedy accuracy by aligned steps"
    assert_texts_are_apart(figure)


def test_labels_of_one_divisor_are_said_together(tmp_path):
    folder = write_compare(tmp_path / "c", ["sft", "opd-f", "nail-f"], [0])
    header = json.loads((folder / "compare.json").read_text())
    scale = {"sft": 16, "nail-f": 2.5, "opd-f": 16}
    (folder / "compare.json").write_text(json.dumps({**header, "step_scale": scale}))
    axes = learning_curves(load_compare(folder), "accuracy_greedy", "aligned_steps").axes[0]
    assert axes.get_xlabel().endswith("(sft and opd-f divided by 16, nail-f divided by 2.5)")
    (folder / "compare.json").write_text(
        json.dumps({**header, "step_scale": dict.fromkeys(("sft", "opd-f", "nail-f"), 4)})
    )
    axes = learning_curves(load_compare(folder), "accuracy_greedy", "aligned_steps").axes[0]
    assert axes.get_xlabel().endswith("(of every method divided by 4)")


def test_experts_are_aligned_by_rounds_and_cut_off_far_beyond_the_students(tmp_path):
    folder = with_stages(write_compare(tmp_path / "c", ["sft"], [0]))
    for stage in load_compare(folder).stages:
        file = stage.runs[0].folder / "metrics.jsonl"
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        lines = [{**line, "round": line["step"] / 2} if "step" in line else line for line in lines]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    header = json.loads((folder / "compare.json").read_text())
    (folder / "compare.json").write_text(json.dumps({**header, "step_scale": {"sft": 8}}))
    compare = load_compare(folder)
    by_steps = lines_of(learning_curves(compare, "accuracy_greedy", "steps"))
    aligned = lines_of(learning_curves(compare, "accuracy_greedy", "aligned_steps"))
    x, y = (np.asarray(data) for data in by_steps["far (nail-known)"].get_data())
    right = 3 * np.asarray(by_steps["sft"].get_xdata())[-1] / 8
    assert x[0] / 2 < right < x[-1] / 2
    found_x, found_y = (np.asarray(data) for data in aligned["far (nail-known)"].get_data())
    assert found_x[-1] == pytest.approx(right)
    assert found_y[-1] == pytest.approx(np.interp(right, x / 2, y))
    np.testing.assert_allclose(found_x[:-1], (x / 2)[x / 2 < right])


def test_what_an_expert_measured_on_another_task_is_not_drawn(tmp_path):
    folder = with_stages(write_compare(tmp_path / "c", ["sft"], [0]))
    own = {"task": {"kind": "countdown", "max_target": 10}}
    (folder / "recipe.json").write_text(json.dumps(own))
    for stage in load_compare(folder).stages:
        file = stage.runs[0].folder / "recipe.json"
        target = 40 if stage.label.startswith("far") else 10
        table = json.loads(file.read_text()) | {"task": {"kind": "countdown", "max_target": target}}
        file.write_text(json.dumps(table))
    stages = load_compare(folder).stages
    has = {stage.label: bool(stage.runs[0].evals[-1]["metrics"]) for stage in stages}
    assert has == {"base (sft)": True, "far (nail-known)": False}
    lines = lines_of(learning_curves(load_compare(folder), "accuracy_greedy", "steps"))
    assert set(lines) == {"sft"}


def test_what_no_run_has_is_an_error(compare, run_folder):
    with pytest.raises(DataError, match=r"'reverse_expert_kl_nats'.*no run here has any"):
        learning_curves(compare, "reverse_expert_kl_nats")
    with pytest.raises(DataError, match=r"an axis out of trajectories, .*got 'tokens'"):
        learning_curves(compare, "accuracy_greedy", "tokens")
    with pytest.raises(DataError, match=r"by_position 'validation_loss_nats'"):
        position_figure(load_run(run_folder), "validation_loss_nats")
