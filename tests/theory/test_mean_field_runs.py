"""Measured curves against the maps: what is read, what is refused, and rows on synthetic curves with known answers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from understudy.theory import mean_field as maps
from understudy.theory import mean_field_demo as demo
from understudy.theory import mean_field_long as long_file
from understudy.theory.experiments import mean_field as experiment
from understudy.theory.mean_field_data import (
    METRICS,
    SHIPPED_DEMO,
    SHIPPED_LONG,
    SHIPPED_SERIES,
    load,
    read_demo,
    write_series,
)


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def law(right: float, num_actions: int) -> list[float]:
    return [right] + [(1 - right) / (num_actions - 1)] * (num_actions - 1)


def write_comparison(folder: Path, length: int = 4, **changes) -> Path:
    """A finished comparison in miniature: two seeds, curves that tell method, seed and stage apart."""
    methods = ["opd-f", "opd-r", "nail-f", "other"]
    cells = [{"label": m, "method": m, "seed": s, "folder": f"cells/{m}-seed{s}", "status": "done"}
             for m in methods for s in (0, 1)]  # fmt: skip
    if "status" in changes:
        cells[2]["status"] = changes["status"]
    noise = {"law": changes.get("law", "absorbing"), "eta": 0.25, "error": "other"} | changes.get("noise", {})
    recipe = {
        "task": {"kind": "modular_addition", "modulus": 3, "length": length},
        "expert": {"kind": "oracle", "noise": noise},
        "train": {"steps": 7},
        "evaluate": {"prompts": 4},
    }
    compare = {"methods": changes.get("methods", methods), "seeds": [0, 1], "command": "made", "cells": cells}
    for name, content in (("compare.json", compare), ("recipe.json", recipe)):
        (folder / name).write_text(json.dumps(content))
    for number, cell in enumerate(cells):
        place = folder / cell["folder"]
        place.mkdir(parents=True)
        method = {"name": cell["label"]} | changes.get("method", {}).get(cell["label"], {})
        (place / "recipe.json").write_text(json.dumps({"method": method}))
        records: list[dict[str, Any]] = [{"kind": "train"}]
        for stage, step, offset in (("warm_start", 0, 9.0), ("main", 0, 0.5), ("main", 7, 0.25)):
            values: list[float | None] = [
                offset + number / 100 + t / 1000 for t in range(changes.get("found", length))
            ]
            if "hole" in changes:
                values[1] = None
            greedy = {"accuracy_greedy": [changes["greedy"]] * length} if "greedy" in changes else {}
            chains = {"accuracy_sampled": {"value": 0.25 * (number % 2) * (step > 0), "n": 4}}
            records.append(
                {"kind": "eval", "stage": stage, "stage_step": step, "metrics": chains,
                 "by_position": dict.fromkeys(METRICS, values) | greedy}
            )  # fmt: skip
        (place / "metrics.jsonl").write_text("\n".join(json.dumps(record) for record in records) + "\n")
    return folder


def test_read_demo(tmp_path):
    curves = read_demo(write_comparison(tmp_path))
    assert list(curves["end"]) == ["opd-f", "opd-r", "nail-f"]
    assert [curves[name] for name in ("num_actions", "length", "eta", "error", "steps", "prompts")] == [
        3, 4, 0.25, "other", 7, 4]  # fmt: skip
    loss = curves["end"]["opd-r"]["validation_loss_nats"]
    assert loss["by_seed"] == [[0.27, 0.271, 0.272, 0.273], [0.28, 0.281, 0.282, 0.283]]
    assert loss["mean"] == [0.275, 0.276, 0.277, 0.278]
    assert curves["warm_start"] == ""
    assert curves["start"]["accuracy_greedy"]["by_seed"][1][0] == 0.51
    assert curves["chains_right"]["nail-f"] == 1
    assert curves["num_chains"]["nail-f"] == 8
    json.dumps(curves)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"law": "additive"}, "'absorbing'.*found.*'additive'"),
        ({"methods": ["opd-f", "nail-f"]}, "methods opd-r expected, found"),
        ({"status": "failed"}, "cell opd-r, seed 0, expected, found it failed"),
        ({"hole": True}, r"4 finite values of accuracy_greedy by position expected, found \[3, 3\]"),
        ({"found": 3}, "4 finite values of accuracy_greedy by position expected, found"),
        ({"noise": {"error": None}}, "recipe.json: expert.noise.error expected, found none"),
        ({"noise": {"eta": None}}, "recipe.json: expert.noise.eta expected, found none"),
        (
            {"method": {"opd-f": {"rollout_temperature": 0.3}}},
            "rollout_temperature = 1.0 expected, as the map of opd-f has it, found 0.3",
        ),
        ({"method": {"nail-f": {"rollout_temperature": 0.1}}}, "= 0.0 expected, .* nail-f has it, found 0.1"),
        ({"method": {"opd-r": {"name": "opd-f"}}}, "method.name = opd-r expected, found opd-f"),
    ],
)
def test_read_demo_refuses(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        read_demo(write_comparison(tmp_path, **changes))


def test_read_demo_takes_the_temperature_of_the_map_when_it_is_said(tmp_path):
    method = {"opd-f": {"rollout_temperature": 1.0}, "other": {"rollout_temperature": 0.3}}
    read_demo(write_comparison(tmp_path, method=method))


def test_read_demo_refuses_other_folders(tmp_path):
    with pytest.raises(ValueError, match=r"no finished comparison: compare.json expected"):
        experiment.run(settings=experiment.Settings(run_folder=str(tmp_path)))


def synthetic(method_right: dict[str, np.ndarray], num_actions: int = 3, eta: float = 0.2) -> dict:
    """Curves of two seeds that stand exactly where they are put."""
    length = len(next(iter(method_right.values())))

    def curve(right_T: np.ndarray) -> dict:
        loss = (-np.log(right_T)).tolist()
        half, rising = [0.5] * length, [0.4 + 0.1 * t for t in range(length)]
        return {
            "validation_loss_nats": {"by_seed": [loss, loss], "mean": loss},
            "accuracy_greedy": {"by_seed": [half, half], "mean": half},
            "accuracy_sampled": {"by_seed": [half, half], "mean": half},
            "expert_kl_nats": {"by_seed": [rising, rising], "mean": rising},
        }

    end = {method: curve(right_T) for method, right_T in method_right.items()}
    return {
        "num_actions": num_actions, "length": length, "eta": eta, "error": "other", "steps": 1, "prompts": 4, "warm_start": "",
        "seeds": [0, 1], "start": next(iter(end.values())), "end": end,
        "chains_right": dict.fromkeys(end, 1), "num_chains": dict.fromkeys(end, 8),
    }  # fmt: skip


def test_demo_measures():
    paths = {
        "opd-f": maps.forward_walk(0.8, 12, 3),
        "opd-r": maps.reverse_walk(math.log(8), 12, 3),
        "nail-f": maps.forward_walk(0.8, 12, 3, temperature=0),
        "kd": maps.offline_walk(0.8, 12, 3),
    }
    curves = synthetic({name: path.right_T for name, path in paths.items()})
    assert demo.gaps(curves, "opd-f")["opd-f"] == pytest.approx(0, abs=1e-12)
    expected = math.sqrt(np.mean((paths["opd-f"].right_T - paths["kd"].right_T) ** 2))
    assert demo.gaps(curves, "opd-f")["bc"] == pytest.approx(expected, abs=1e-12)
    assert demo.nearest_prefixes(curves) == (8, 8)
    swapped = synthetic({"opd-f": paths["kd"].right_T, "nail-f": paths["nail-f"].right_T})
    assert demo.nearest_prefixes(swapped) == (2, 4)
    late = synthetic({"opd-f": np.concatenate([[0.8, 0.8], paths["opd-f"].right_T[:10]])})
    assert long_file.best_delay(late, "opd-f") == (2, pytest.approx(0, abs=1e-12))


def test_demo_rows_of_synthetic_curves():
    paths = demo.predicted(synthetic({"opd-f": np.full(6, 0.5)}))
    curves = synthetic({name: paths[demo.OWN_MAP[name]].right_T for name in ("opd-f", "opd-r", "nail-f")})
    blind = long_file.blind_ratios(curves)[0]
    # KL 0.5 nats at the second position, where a share 0.8 is clean: over the mixture's own divergence, by hand.
    mixed, q, u = law(0.8 * 0.8 + 0.2 / 3, 3), law(0.8, 3), [1 / 3] * 3
    assert blind == pytest.approx(0.5 / (0.8 * kl(q, mixed) + 0.2 * kl(u, mixed)), abs=1e-9)
    walk = next(row for row in demo.rows(curves) if "a walk" in row.claim)
    # Sampled accuracy was put at 0.5; the walk at p = 0.8, K = 3 is 1/3 + 2/3 0.7^t.
    gaps = [0.5 - 1 / 3 - 2 / 3 * 0.7**t for t in range(1, 7)]
    assert walk.measured == pytest.approx(math.sqrt(sum(gap**2 for gap in gaps) / 6), abs=1e-12)
    assert walk.bound == pytest.approx(0.3, abs=1e-12)
    chain = next(row for row in demo.rows(curves) if "right chain" in row.claim)
    assert (chain.bound, chain.measured) == pytest.approx((0.8**6, 1 / 8), abs=1e-12)
    own = next(row for row in demo.rows(curves) if "worst seed" in row.claim)
    assert (own.measured, own.holds) == (pytest.approx(0, abs=1e-12), "yes")


def test_the_worst_seed_decides():
    paths = demo.predicted(synthetic({"opd-f": np.full(6, 0.5)}))
    curves = synthetic({name: paths[demo.OWN_MAP[name]].right_T for name in ("opd-f", "opd-r", "nail-f")})
    middle = 0.75 * paths["bc"].right_T + 0.25 * paths["opd-f"].right_T
    curves["end"]["opd-f"]["validation_loss_nats"]["by_seed"][1] = (-np.log(middle)).tolist()
    own = next(row for row in demo.rows(curves) if "worst seed" in row.claim)
    assert (own.measured, own.holds) == (pytest.approx(3, abs=1e-9), "no")
    # The mean of two curves, one of them below its map by as much as the other is above, hides both.
    assert demo.single_gaps(curves["end"]["opd-f"], paths["opd-f"])[0] == pytest.approx(0, abs=1e-12)


def test_long_rows_of_synthetic_curves():
    """Refuted rows come out "yes", which the experiment counts as a failure, where students do stay at their maps."""
    paths = demo.predicted(synthetic({"opd-f": np.full(6, 0.5)}))
    long = synthetic({name: paths[demo.OWN_MAP[name]].right_T for name in ("opd-f", "opd-r", "nail-f")})
    stays = (-np.log(maps.delayed(paths["opd-f"], 2))).tolist()
    series = {**{k: long[k] for k in ("num_actions", "length", "eta", "error", "prompts", "seeds")},
              "steps": [0, 5, 10], "validation_loss_nats": [[0.9] * 6, [0.3] * 6, stays]}  # fmt: skip
    near, _, ends = long_file.rows(long, series)
    assert (near.measured, near.holds, near.is_as_expected) == (6, "yes", False)
    assert (ends.measured, ends.holds, ends.is_as_expected) == (pytest.approx(ends.bound), "yes", False)
    assert long_file.series_delay(series) == 2
    assert long_file.reading(long, series).endswith("no longer falling.")
    lower = {**series, "validation_loss_nats": [[0.9] * 6, [0.5] * 6, [0.2] * 6]}
    assert long_file.rows(long, lower)[2].holds == "no"
    assert long_file.reading(long, lower).endswith("from 0.900 over 0.500 (step 5) to 0.200, still falling.")


def test_shipped_curves_are_complete():
    for path, steps in ((SHIPPED_DEMO, 30), (SHIPPED_LONG, 200)):
        curves = load(path)
        assert (curves["num_actions"], curves["length"], curves["steps"]) == (3, 21, steps)
        for evaluation in (curves["start"], *curves["end"].values()):
            for name in METRICS:
                mean = np.mean(evaluation[name]["by_seed"], axis=0)
                # Five digits, before and after the mean: half a unit each, at most 5e-5 of a number.
                assert evaluation[name]["mean"] == pytest.approx(mean.tolist(), rel=1e-4)
    series = load(SHIPPED_SERIES)
    assert (series["num_actions"], series["length"], series["seeds"]) == (3, 21, [0])
    assert list(long_file.series_losses(series)) == list(range(0, 900, 100))
    assert {len(values) for values in series["validation_loss_nats"]} == {21}


def test_write_series(tmp_path):
    run = write_comparison(tmp_path) / "cells/opd-f-seed1"
    recipe = json.loads((tmp_path / "recipe.json").read_text()) | {"method": {"name": "opd-f"}, "seed": 1}
    (run / "recipe.json").write_text(json.dumps(recipe))
    write_series(run, tmp_path / "series.json", "made")
    series = load(tmp_path / "series.json")
    assert (series["steps"], series["seeds"], series["command"]) == ([0, 7], [1], "made")
    assert series["validation_loss_nats"] == [[0.51, 0.511, 0.512, 0.513], [0.26, 0.261, 0.262, 0.263]]
    recipe["method"] = {"name": "opd-r"}
    (run / "recipe.json").write_text(json.dumps(recipe))
    with pytest.raises(ValueError, match=r"method\.name = opd-f expected, found opd-r"):
        write_series(run, tmp_path / "series.json", "made")


@pytest.mark.parametrize(
    "changes",
    [{}, {"noise": {"eta": 0}}, {"greedy": 1.0}, {"greedy": 0.0}],
    ids=["miniature", "no noise", "opd-f solved", "opd-f unsolved"],
)
def test_an_own_run_is_shown_and_never_judged(tmp_path, changes):
    folder = write_comparison(tmp_path, length=6, **changes)
    settings = experiment.Settings(run_folder=str(folder), time_step=0.1, stall_factor=2.0)
    own = experiment.run(settings=settings)
    assert own.is_as_expected
    assert own.panels[3].title.startswith("Own run, K = 3")
    assert own.panels[3].title.endswith("after 7 steps")
    assert own.settings["run_folder"] == str(folder)
    shown = [row for row in own.rows if row.source == "own run"]
    assert len(shown) == 7  # three methods, nearest, chain, walk, greedy
    assert {row.holds for row in shown} == {"not judged"}
    assert {row.relation for row in own.rows if row not in shown} <= {"<=", ">=", "="}
    assert not any(
        "demo run" in row.source and "longer" not in row.source and "one seed" not in row.source
        for row in own.rows
    )
    loss = next(row for row in shown if "opd-r" in row.claim)
    assert loss.measured == pytest.approx(0.2775, abs=1e-12)  # seeds 0.27, 0.28, and 0 to 5 thousandths
    right = [0.75 * (1 - changes.get("noise", {}).get("eta", 0.25)) / 0.75]
    assert loss.bound >= -math.log(right[0]) - 1e-12
    greedy = next(row for row in shown if "greedy accuracy" in row.claim)
    assert greedy.measured == changes.get("greedy", pytest.approx(0.26))
    assert all(len(row.claim) < 85 for row in own.rows)
