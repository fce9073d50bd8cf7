"""What comes before a run: a student's and an expert's checkpoint that recipes make, once, in order."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from small import TABLE, chained_recipe, quiet_console, recipe_file
from understudy import comparison
from understudy.comparison import compare
from understudy.config import load_recipe, placed, recipe_from_table
from understudy.errors import ConfigError
from understudy.reports.folders import load_compare
from understudy.resolved import resolved_recipe
from understudy.run import train
from understudy.stages import missing_stages, sources
from understudy.tasks import ModularAddition
from understudy.trainer import loop


@pytest.fixture
def chain(tmp_path) -> str:
    return chained_recipe(tmp_path)


def test_what_is_needed_comes_first_and_once(chain, tmp_path):
    """The base is needed twice. Fails if it is made twice, or after what begins with it."""
    recipe = load_recipe(chain)
    base, expert = missing_stages(recipe)
    assert (base.role, base.folder, base.needs) == ("student", tmp_path / "base", ())
    assert (expert.role, expert.folder, expert.needs) == (
        "expert",
        tmp_path / "expert-5",
        (tmp_path / "base",),
    )
    assert [s.folder for s in missing_stages(recipe, roles=("student",))] == [tmp_path / "base"]


def test_a_checkpoint_on_the_way_is_not_the_end_of_its_run(chain, tmp_path):
    """Fails if the last evaluation of a run is shown for its best checkpoint."""
    run = tmp_path / "run"
    for name in ("final", "best"):
        (run / name).mkdir(parents=True)
    (run / "recipe.json").write_text("{}")
    for name, folder in {"final": run, "best": None}.items():
        changed = {"expert.checkpoint": str(run / name), "expert.recipe": None}
        found = sources(load_recipe(chain, changed)).get("expert")
        assert (None if found is None else found.folder) == folder


def test_a_seed_in_a_path_is_the_seed_of_the_run(chain, tmp_path):
    """An expert of its own for each seed, trained with it; the base, whose path has none, keeps its own seed."""
    for seed in (5, 6):
        recipe = replace(load_recipe(chain), seed=seed)
        base, expert = missing_stages(recipe)
        assert (base.recipe.seed, expert.recipe.seed) == (7, seed)
        imitated = placed(recipe).expert
        assert imitated is not None
        assert imitated.checkpoint == str(expert.checkpoint) == f"{tmp_path}/expert-{seed}/final"


@pytest.mark.parametrize(("task", "seed"), [("shared", 1337), ("own", 99)])
def test_whose_task_an_expert_learns(chain, task, seed):
    recipe = load_recipe(chain, {"expert.task": task, "task.seed": 1337})
    assert missing_stages(recipe)[1].recipe.task.seed == seed  # pyright: ignore[reportAttributeAccessIssue]


def test_what_is_there_is_not_made(chain, tmp_path):
    (tmp_path / "base" / "final").mkdir(parents=True)
    assert [s.folder.name for s in missing_stages(load_recipe(chain))] == ["expert-5"]


def test_a_recipe_that_needs_itself_is_refused(tmp_path):
    itself = {"student.checkpoint": f"{tmp_path}/a/final", "student.recipe": f"{tmp_path}/a.toml"}
    recipe = load_recipe(recipe_file(tmp_path, "a", **itself))
    with pytest.raises(ConfigError, match=r"a\.toml makes .*/a and needs it to begin with"):
        missing_stages(recipe)


@pytest.mark.parametrize("table", ["student", "expert"])
def test_the_checkpoint_of_a_stage_is_what_its_run_writes(table):
    made = {"checkpoint": "somewhere", "recipe": "a.toml"}
    changed = {**TABLE, table: {"kind": "local", **made} if table == "expert" else made}
    with pytest.raises(ConfigError, match=rf"{table}\.checkpoint must end in /final"):
        recipe_from_table(changed)


def test_a_run_makes_what_it_needs(chain, tmp_path):
    """Base, expert and student, each begun where it should; a second run makes none of it again."""
    train(load_recipe(chain), tmp_path / "run", console=quiet_console())
    described = json.loads((tmp_path / "expert-5" / "recipe.json").read_text())
    assert described["seed"] == 5
    assert described["student"]["checkpoint"] == f"{tmp_path}/base/final"
    made = {name: (tmp_path / name / "result.json").stat().st_mtime_ns for name in ("base", "expert-5")}
    train(load_recipe(chain, {"method.name": "opd-f"}), tmp_path / "again", console=quiet_console())
    assert made == {name: (tmp_path / name / "result.json").stat().st_mtime_ns for name in made}


def test_a_comparison_makes_each_stage_once(chain, tmp_path):
    """Two methods with two seeds: one base, two experts; each cell has its own seed's expert."""
    recipe = load_recipe(chain, {"compare": {"methods": ["kd", "opd-f"], "seeds": [1, 2], "workers": 2}})
    rows = compare(recipe, tmp_path / "all", console=quiet_console())
    assert [row["failed"] for row in rows] == [0, 0]
    assert sorted(p.parent.name for p in tmp_path.glob("*/final")) == ["base", "expert-1", "expert-2"]
    cell = json.loads((tmp_path / "all" / "cells" / "kd-seed2" / "recipe.json").read_text())
    assert placed(recipe_from_table(cell)).expert.checkpoint == f"{tmp_path}/expert-2/final"  # pyright: ignore


def test_a_comparison_says_where_its_students_and_experts_come_from(chain, tmp_path):
    """A folder inside is named relative to it. Fails if a resumed comparison calls what it made itself found."""
    inside = {"expert.checkpoint": f"{tmp_path}/all/expert-{{seed}}/final"}
    (tmp_path / "elsewhere" / "final").mkdir(parents=True)  # a checkpoint that no run of ours left
    own = {"method.name": "opd-f", "expert.recipe": None, "expert.checkpoint": f"{tmp_path}/elsewhere/final"}
    compared = {"methods": ["kd", "own"], "seeds": [1], "workers": 1, "overrides": {"own": own}}
    train(load_recipe(tmp_path / "base.toml"), tmp_path / "base", console=quiet_console())
    recipe = load_recipe(chain, {**inside, "compare": compared})
    for resume in (False, True):
        compare(recipe, tmp_path / "all", resume=resume, console=quiet_console())
        header = json.loads((tmp_path / "all" / "compare.json").read_text())
        kd, of_own = header["cells"]
        base = {"checkpoint": f"{tmp_path}/base/final", "folder": f"{tmp_path}/base", "recipe": "base"}
        assert kd["student"] == of_own["student"] == {**base, "made": False}
        expert = {"checkpoint": inside["expert.checkpoint"], "folder": "expert-1", "recipe": "expert"}
        assert kd["expert"] == {**expert, "made": True}
        assert of_own["expert"] is None
    stages = load_compare(tmp_path / "all").stages
    assert [(s.kind, s.label, len(s.runs)) for s in stages] == [
        ("start", "base (sft)", 1),
        ("expert", "expert (sft)", 1),
    ]


def test_how_steps_are_aligned_may_be_changed_when_all_is_done(chain, tmp_path):
    compared = {"methods": ["kd"], "seeds": [1], "workers": 1}
    compare(load_recipe(chain, {"compare": compared}), tmp_path / "all", console=quiet_console())
    scaled = {**compared, "step_scale": {"kd": 10}}
    compare(load_recipe(chain, {"compare": scaled}), tmp_path / "all", resume=True, console=quiet_console())
    assert json.loads((tmp_path / "all" / "compare.json").read_text())["step_scale"] == {"kd": 10}
    changed = load_recipe(chain, {"compare": {**scaled, "workers": 2}})
    with pytest.raises(ConfigError, match=r"compare\.workers: 1 -> 2"):
        compare(changed, tmp_path / "all", resume=True, console=quiet_console())


def test_nothing_begins_before_what_it_needs_has_ended(chain, tmp_path, monkeypatch):
    """Four workers, all free at once, and runs that take a while."""
    events: list[tuple[str, str]] = []

    class SlowWorker:
        def run(self, order: dict[str, Any]) -> None:
            name = Path(order["folder"]).name
            events.append(("begin", name))
            time.sleep(0.3)
            events.append(("end", name))

        def close(self) -> None:
            pass

    monkeypatch.setattr(comparison, "Worker", SlowWorker)
    recipe = load_recipe(chain, {"compare": {"methods": ["kd", "opd-f"], "seeds": [1, 2], "workers": 4}})
    (tmp_path / "all").mkdir()
    jobs = comparison._jobs(recipe, tmp_path / "all", ("student", "expert"))
    board = comparison._Board(tmp_path / "all", recipe, jobs)
    comparison._run_jobs(jobs, board, None, 4, quiet_console())
    assert len(events) == 2 * 7
    needs = {"expert-1": "base", "expert-2": "base"}
    needs |= {f"{label}-seed{seed}": f"expert-{seed}" for label in ("kd", "opd-f") for seed in (1, 2)}
    for name, first in needs.items():
        assert events.index(("end", first)) < events.index(("begin", name))


def test_a_failed_stage_fails_what_needs_it(chain, tmp_path):
    """And nothing else. Fails if a cell waits for ever, or runs without its expert."""
    base = {"expert.checkpoint": f"{tmp_path}/base/final", "expert.recipe": f"{tmp_path}/base.toml"}
    compared = {"methods": ["kd", "sft"], "seeds": [1], "workers": 1, "overrides": {"sft": base}}
    recipe = load_recipe(chain, {"compare": compared})
    (tmp_path / "expert-1").write_text("in the way")
    rows = {row["method"]: row for row in compare(recipe, tmp_path / "all", console=quiet_console())}
    assert (rows["kd"]["failed"], rows["sft"]["failed"]) == (1, 0)
    cells = json.loads((tmp_path / "all" / "compare.json").read_text())["cells"]
    assert "what it needs failed: expert expert, seed 1" in next(
        c["error"] for c in cells if c["label"] == "kd"
    )


def test_objects_of_your_own_are_the_cells_alone(chain, tmp_path):
    """A stage is kept for runs that never see them. Fails if the base is trained on the caller's task and then kept."""
    recipe = load_recipe(chain, {"compare": {"methods": ["kd"], "seeds": [1], "workers": 1}})
    own = ModularAddition(modulus=3, length=6, seed=4321)
    rows = compare(recipe, tmp_path / "all", task=own, console=quiet_console())
    assert [row["failed"] for row in rows] == [0]
    for stage in ("base", "expert-1"):
        assert json.loads((tmp_path / stage / "own.json").read_text()) == {}
    cell = json.loads((tmp_path / "all" / "cells" / "kd-seed1" / "own.json").read_text())
    assert cell == {"task": own.identity}


def test_one_folder_cannot_hold_two_recipes(chain, tmp_path):
    """The expert learns the cell's task, and the cells' tasks differ. Fails if the second cell gets the first one's expert."""
    changed = {"kd": {}, "opd-f": {"task.seed": 11}}
    recipe = load_recipe(chain, {"compare": {"methods": ["kd", "opd-f"], "seeds": [1], "overrides": changed}})
    with pytest.raises(ConfigError, match=r"expert-1 would have to hold two runs.*task\.seed: 1337 .* 11"):
        compare(recipe, tmp_path / "all", console=quiet_console())
    # Within one run: the base twice, once as the expert, who learns the run's own task.
    both = {"expert.checkpoint": f"{tmp_path}/base/final", "expert.recipe": f"{tmp_path}/base.toml"}
    with pytest.raises(ConfigError, match=r"base would have to hold two runs.*task\.seed"):
        missing_stages(load_recipe(chain, {**both, "task.seed": 12}))


def test_what_is_there_must_be_what_would_be_made(chain, tmp_path):
    """A finished stage of another recipe is refused, naming what differs; a checkpoint that no run left is anybody's own."""
    train(load_recipe(chain), tmp_path / "run", console=quiet_console())
    assert missing_stages(load_recipe(chain)) == []
    changed = load_recipe(chain, {"task.seed": 11})
    with pytest.raises(
        ConfigError, match=r"expert-5 holds .*task\.seed: 1337 .* 11.*Delete .*another folder"
    ):
        train(changed, tmp_path / "again", console=quiet_console())
    assert not (tmp_path / "again" / "recipe.json").exists()
    assert missing_stages(changed, roles=("student",)) == []
    (tmp_path / "expert-5" / "recipe.json").unlink()
    assert missing_stages(changed) == []


def test_what_is_made_first_is_said_beforehand(chain, tmp_path):
    """In order, each once; nothing where everything is there. The rest still reads back as the recipe."""
    recipe = load_recipe(chain)
    base = f"# first  student {tmp_path}/base/final, which is not there yet: {tmp_path}/base.toml"
    expert = "# first  expert {0}/expert-{1}/final, which is not there yet: {0}/expert.toml"
    lines = resolved_recipe(recipe).splitlines()
    assert [line for line in lines if "# first" in line] == [base, expert.format(tmp_path, 5)]
    compared = load_recipe(chain, {"compare": {"methods": ["kd", "opd-f"], "seeds": [1, 2]}})
    lines = resolved_recipe(compared).splitlines()
    wanted = [base, expert.format(tmp_path, 1), expert.format(tmp_path, 2)]
    assert [line for line in lines if "# first" in line] == wanted
    for name in ("base", "expert-5"):
        (tmp_path / name / "final").mkdir(parents=True)
    assert "# first" not in resolved_recipe(recipe)


def test_killed_inside_a_stage_and_resumed(chain, tmp_path, monkeypatch):
    """The base is killed after its checkpoint; the comparison that is resumed goes on with it, from there, to the same end."""
    base = tmp_path / "base.toml"
    base.write_text(base.read_text() + "\n[checkpoint]\nevery_steps = 1\n")
    recipe = load_recipe(chain, {"compare": {"methods": ["kd"], "seeds": [1], "workers": 1}})
    unbroken = tmp_path / "unbroken"
    train(load_recipe(base), unbroken, console=quiet_console())
    real = loop._checkpoint

    def killed(s, progress, pool, clock):
        real(s, progress, pool, clock)
        if s.folder.name == "base" and progress.step == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "_checkpoint", killed)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "alone", console=quiet_console())
    assert not (tmp_path / "base" / "final").exists()
    monkeypatch.setattr(loop, "_checkpoint", real)
    rows = compare(recipe, tmp_path / "all", resume=True, console=quiet_console())
    assert [row["failed"] for row in rows] == [0]
    steps = [json.loads(x) for x in (tmp_path / "base" / "metrics.jsonl").read_text().splitlines()]
    assert [r["stage_step"] for r in steps if r["kind"] == "train"] == [1, 2]
    found, wanted = (load_file(f / "final" / "model.safetensors") for f in (tmp_path / "base", unbroken))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_warm_start_begins_with_the_stage(chain, tmp_path):
    """Base, then the warm start from it, then the method from the warm start; in a comparison the warm start waits, too."""
    warm = {"warm_start.method": "sft", "warm_start.max_steps": 1, "warm_start.check_every_steps": 1}
    train(load_recipe(chain, warm), tmp_path / "run", console=quiet_console())
    described = json.loads((tmp_path / "run" / "warm_start" / "recipe.json").read_text())
    assert described["student"]["checkpoint"] == f"{tmp_path}/base/final"
    assert starts_with(tmp_path / "run" / "warm_start", tmp_path / "base")
    assert starts_with(tmp_path / "run", tmp_path / "run" / "warm_start")
    compared = {"compare": {"methods": ["kd"], "seeds": [1], "workers": 2}}
    for name in ("base", "expert-5"):
        shutil.rmtree(tmp_path / name)
    rows = compare(load_recipe(chain, {**warm, **compared}), tmp_path / "all", console=quiet_console())
    assert [row["failed"] for row in rows] == [0]
    assert starts_with(tmp_path / "all" / "warm_start" / "seed1", tmp_path / "base")


def starts_with(run: Path, before: Path) -> bool:
    """Whether the first loss on held-out prompts of one run is the last of another, which was measured on the same ones."""
    (first, _), (_, last) = ends(run), ends(before)
    return first == pytest.approx(last, rel=1e-6)


def ends(run: Path) -> tuple[float, float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    values = [r["metrics"]["validation_loss_nats"]["value"] for r in rows if r["kind"] == "eval"]
    return values[0], values[-1]
