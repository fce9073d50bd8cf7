"""Every number that a run writes is in docs/metrics.md with its formula and unit."""

import json
import re
from pathlib import Path

import pytest

from small import make_recipe, quiet_console
from understudy.reports.tables import METRICS
from understudy.run import train

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run with everything that can be recorded: warm start, sampling, expert, best checkpoint."""
    recipe = make_recipe(
        warm_start={"method": "sft", "max_steps": 1},
        evaluate__best_metric="expert_kl_nats",
        checkpoint__every_steps=1,
        evaluate__samples_per_prompt=2,
        evaluate__ks=[2],
        evaluate__also={"longer": {"task": {"length": 8}}},
    )
    place = tmp_path_factory.mktemp("metrics") / "run"
    train(recipe, place, console=quiet_console())
    return place


def documented(name: str) -> bool:
    """`set/pass@2` is documented as `pass@k`."""
    own = re.sub("@[0-9]+$", "@k", name.rpartition("/")[2])
    return f"`{own}`" in PAGE


def records(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_every_field_of_every_record_is_documented(folder):
    found = records(folder / "metrics.jsonl")
    assert {record["kind"] for record in found} == {"train", "eval", "end"}
    names = {name for record in found for name in record}
    names |= {phase for record in found for phase in record.get("seconds", {})}
    names |= {metric for record in found for metric in record.get("metrics", {})}
    names |= {field for record in found for entry in record.get("metrics", {}).values() for field in entry}
    names |= {name for record in records(folder / "trajectories.jsonl") for name in record}
    result = json.loads((folder / "result.json").read_text())
    names |= {*result, *result["budget"]}
    assert {"loss_nats", "expert_kl_nats", "checkpoint", "finish", "low", "set", "longer/pass@2"} <= names
    assert [name for name in sorted(names) if not documented(name)] == []


def test_every_field_of_a_look_ahead_is_documented(tmp_path):
    method = {"name": "near-future", "embedding": "student", "suppress": "matched"}
    train(make_recipe(method=method), tmp_path / "run", console=quiet_console())
    found = [record for record in records(tmp_path / "run" / "metrics.jsonl") if record["kind"] == "train"]
    names = {name for record in found for name in (*record, *record["seconds"])}
    assert {"forks_real", "window_loss_nats", "look"} <= names
    assert [name for name in sorted(names) if not documented(name)] == []


def test_every_metric_a_report_knows_is_documented():
    assert [name for name in METRICS if not documented(name)] == []


def test_every_file_of_a_run_is_documented(folder):
    written = {path.name for path in folder.iterdir()} - {"data", "warm_start", "checkpoints"}
    assert written >= {"final", "best", "metrics.jsonl", "result.json"}
    assert [name for name in sorted(written) if f"`{name}`" not in PAGE and f"`{name}/`" not in PAGE] == []
