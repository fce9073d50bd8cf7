"""Rows against plain Python arithmetic on the fabricated files themselves."""

import io
import json
import math

import pytest
from fabricated import write_compare
from rich.console import Console

from understudy.reports.tables import (
    compare_rows,
    load_compare,
    load_run,
    render_compare,
    run_rows,
    short_number,
    stage_rows,
    takeaway,
)

T95 = {2: 12.706204736432095, 3: 4.302652729911275}  # n seeds -> 0.975 quantile with n - 1 degrees of freedom


def final_values(folder, method, seeds, metric):
    values = []
    for seed in seeds:
        lines = (folder / f"cells/{method}-seed{seed}/metrics.jsonl").read_text().splitlines()
        evals = [record for record in map(json.loads, lines) if record["kind"] == "eval"]
        values.append(evals[-1]["metrics"][metric]["value"])
    return values


def t_interval(values):
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    half = T95[len(values)] * math.sqrt(variance / len(values))
    return mean, mean - half, mean + half


def wilson_interval(rate, n):
    z = 1.959963984540054
    k = round(rate * n)
    half = z * math.sqrt(k * (n - k) / n + z * z / 4) / (n + z * z)
    center = (k + z * z / 2) / (n + z * z)
    return center - half, center + half


@pytest.mark.parametrize(
    ("method", "seeds"), [("opd-f", [0, 1, 2]), ("nail-f", [0, 1, 2]), ("nail-r", [0, 1])]
)
def test_rows_are_plain_arithmetic(compare_folder, method, seeds):
    rows = {row["method"]: row for row in compare_rows(load_compare(compare_folder))}
    row = rows[method]
    assert set(row) == {"method", "seeds", "failed", "budget", "metrics"}
    assert (row["seeds"], row["failed"]) == (len(seeds), 3 - len(seeds))
    assert row["budget"] == {
        "trajectories": 350 * 128,
        "expert_queries": 350 * 128 * 21,
        "optimizer_steps": 350,
        "cpu_seconds": pytest.approx(
            sum(350 * (0.08 + 0.002 * seed) for seed in seeds) / len(seeds), rel=1e-12
        ),
    }
    mean, low, high = t_interval(final_values(compare_folder, method, seeds, "expert_kl_nats"))
    kl = row["metrics"]["expert_kl_nats"]
    assert (kl["mean"], kl["low"], kl["high"]) == pytest.approx((mean, max(low, 0.0), high), abs=1e-9)
    mean, low, high = t_interval(final_values(compare_folder, method, seeds, "accuracy_greedy"))
    floor_low, floor_high = wilson_interval(mean, 256)
    greedy = row["metrics"]["accuracy_greedy"]
    expected = (mean, max(min(low, floor_low), 0.0), min(max(high, floor_high), 1.0))
    assert (greedy["mean"], greedy["low"], greedy["high"]) == pytest.approx(expected, abs=1e-9)
    assert greedy["n"] == len(seeds)


def test_rows_are_json(compare_folder):
    json.dumps(compare_rows(load_compare(compare_folder)), allow_nan=False)


def test_one_seed_gives_no_interval(tmp_path):
    compare = load_compare(write_compare(tmp_path / "one", ["nail-f", "opd-f"], [3]))
    rows = compare_rows(compare)
    greedy = rows[0]["metrics"]["accuracy_greedy"]
    assert (greedy["low"], greedy["high"], greedy["n"]) == (None, None, 1)
    assert "cannot be told from chance" in takeaway(rows)


def test_run_rows_keep_the_interval_over_prompts(run_folder):
    lines = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if line["kind"] == "eval"][-1]["metrics"]["accuracy_sampled"]
    (row,) = run_rows(load_run(run_folder))
    assert row["metrics"]["accuracy_sampled"] == {
        "mean": last["value"],
        "low": last["low"],
        "high": last["high"],
        "n": 256,
    }
    assert row["budget"]["optimizer_steps"] == 150


def test_null_and_missing_metrics_are_absent_not_zero(run_folder):
    path = run_folder / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        if line["kind"] == "eval":
            line["metrics"]["validation_loss_nats"] = {"value": None, "low": None, "high": None, "n": 9}
            del line["metrics"]["accuracy_sampled"]
            line["metrics"]["reverse_expert_kl_nats"] = {"value": math.inf, "low": None, "high": None, "n": 9}
            line["metrics"]["made_up"] = {"value": -2.0, "low": -3.0, "high": -1.0, "n": 9}
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    (row,) = run_rows(load_run(run_folder))
    assert set(row["metrics"]) == {"accuracy_greedy", "teacher_forced_accuracy", "expert_kl_nats", "made_up"}


@pytest.mark.parametrize("width", [80, 160])
def test_table_fits_its_console_and_says_what_to_take_from_it(compare_folder, width):
    rows = compare_rows(load_compare(compare_folder))
    out = io.StringIO()
    render_compare(rows, Console(file=out, width=width))
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert "..." not in text
    assert "\u2026" not in text  # nothing was cut
    greedy = {row["method"]: row["metrics"]["accuracy_greedy"] for row in rows}["nail-f"]
    assert f"{greedy['mean']:.2f}" in text
    assert f"{greedy['low']:.2f}-{greedy['high']:.2f}" in text
    assert "2 of 3" in text
    assert "44.8k" in text


def row(method, mean, low, high):
    return {
        "method": method,
        "metrics": {"accuracy_greedy": {"mean": mean, "low": low, "high": high, "n": 3}},
    }


def test_takeaway_names_what_overlaps():
    rows = [row("a", 0.5, 0.4, 0.6), row("b", 0.9, 0.8, 1.0), row("c", 0.7, 0.55, 0.85)]
    assert takeaway(rows).endswith(
        "Best greedy accuracy at the end: b (0.90); its interval overlaps that of c."
    )
    assert takeaway(rows[:2]).endswith("b (0.90), clear of the rest.")
    assert takeaway(rows[:1]) == "Below a value: its 95 % interval over seeds."


def test_takeaway_knows_that_a_low_loss_is_better():
    def loss(method, mean):
        return {
            "method": method,
            "metrics": {"expert_kl_nats": {"mean": mean, "low": mean, "high": mean, "n": 3}},
        }

    assert "at the end: b (0.10)" in takeaway([loss("a", 0.4), loss("b", 0.1)])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (math.nan, "-"),
        (0, "0"),
        (7.25, "7.25"),
        (999.4, "999"),
        (999.6, "1k"),
        (42200, "42.2k"),
        (3e6, "3M"),
    ],
)
def test_short_number(value, text):
    assert short_number(value) == text


def test_stages_are_rows_of_their_own(staged_folder):
    compare = load_compare(staged_folder)
    rows = stage_rows(compare)
    assert [(row["stage"], row["method"], row["seeds"]) for row in rows] == [
        ("start", "start base (sft)", 1),
        ("expert", "expert far (nail-known)", 3),
        ("expert", "expert rl (nail-r)", 3),
    ]
    assert [row["method"] for row in compare_rows(compare)] == ["sft", "opd-f", "nail-f"]
    assert set(rows[0]) == {*compare_rows(compare)[0], "stage"}
    assert rows[2]["budget"]["optimizer_steps"] == 800
    lasts = []
    for run in compare.stages[2].runs:
        lasts.append(run.evals[-1]["metrics"]["expert_kl_nats"]["value"])
    assert rows[2]["metrics"]["expert_kl_nats"]["mean"] == pytest.approx(sum(lasts) / 3)


@pytest.mark.parametrize("width", [80, 120])
def test_rows_below_leave_the_methods_table_as_it_is(staged_folder, width):
    """Fails if a long name of an expert widens or cuts the columns of the methods."""
    compare = load_compare(staged_folder)
    rows, below = compare_rows(compare), stage_rows(compare)
    below[1]["method"] = "expert an-expert-with-quite-a-long-name (nail-known)"

    def shown(*, below):
        out = io.StringIO()
        render_compare(rows, Console(file=out, width=width), below=below)
        return [line.rstrip() for line in out.getvalue().splitlines()]

    def of_methods(lines):
        found = [line.split() for line in lines]
        return [
            words
            for words in found
            if words[:1] and words[:2] in (["sft", "3"], ["opd-f", "3"], ["nail-f", "3"])
        ]

    alone, both = shown(below=()), shown(below=below)
    assert len(of_methods(alone)) == 3
    assert of_methods(alone) == of_methods(both)
    text = "\n".join(both)
    assert "\u2026" not in text
    assert both.index("") > both.index(next(line for line in both if line.startswith("nail-f")))
    first = next(line for line in both if line.startswith("start base"))
    assert first.split()[:4] == ["start", "base", "1", "12.8k"]
    assert max(map(len, both)) <= width
    assert "nail-known" not in takeaway(rows)
