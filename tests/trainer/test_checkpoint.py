"""What a run leaves on disk: loadable by anybody, whole or not there at all, also when the disk is full."""

from __future__ import annotations

import json
import resource
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from small import LOGP_TOLERANCE, make_recipe, make_setup, quiet_console
from understudy import files
from understudy.errors import ConfigError, TrainingError
from understudy.models import hidden_states, inner_model, merged
from understudy.run import train
from understudy.trainer import loop
from understudy.trainer.checkpoint import Progress, checkpoints, load_checkpoint, save_checkpoint, save_model
from understudy.trainer.journal import Journal

LORA = {"rank": 2, "alpha": 8.0, "target_modules": ["q_proj", "down_proj"]}


def load(folder) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def logits_of(model, token_BT):
    with torch.no_grad():
        return inner_model(model)(input_ids=token_BT).logits


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_final_loads_and_has_the_same_logits(tmp_path, family):
    s = make_setup(make_recipe(student__new__family=family), tmp_path)
    save_model(s.model, None, tmp_path / "final")
    token_BT = torch.randint(0, 4, (3, 9))
    found = load(tmp_path / "final")
    torch.testing.assert_close(logits_of(found, token_BT), logits_of(s.model, token_BT), rtol=0, atol=0)
    assert inner_model(found).config.dtype in (torch.float32, "float32")


def test_adapters_are_merged_into_what_is_saved(tmp_path):
    """A plain model with the adapter model's logits; the model that goes on training keeps its adapters.

    Fails if the base is saved without the adapters, or if saving folds them into the live model.
    """
    recipe = make_recipe(student__lora=LORA, train__steps=4, optimizer__learning_rate=0.05)
    s = make_setup(recipe, tmp_path)
    loop.run_rounds(s, Progress(), [])
    token_BT = torch.randint(0, 4, (3, 9))
    before = logits_of(s.model, token_BT)
    save_model(s.model, None, tmp_path / "final")
    found = load(tmp_path / "final")
    assert not any("lora" in name for name, _ in found.named_parameters())
    torch.testing.assert_close(logits_of(found, token_BT), before, rtol=0, atol=LOGP_TOLERANCE)
    assert torch.equal(logits_of(s.model, token_BT), before)
    trained = [name for name, p in s.model.named_parameters() if p.requires_grad]
    assert trained
    assert all("lora" in name for name in trained)
    untrained = make_setup(recipe, tmp_path / "again")
    assert (logits_of(untrained.model, token_BT) - before).abs().max() > 1e-2, "the adapters must have moved"
    torch.testing.assert_close(
        hidden_states(merged(s.model), token_BT), hidden_states(s.model, token_BT), rtol=0, atol=1e-4
    )


def test_a_run_with_adapters_warm_starts_another(tmp_path):
    """The merged checkpoint is the next run's starting point."""
    result = train(make_recipe(student__lora=LORA), tmp_path / "one", console=quiet_console())
    again = make_recipe(warm_start__checkpoint=str(result.checkpoint), student__lora=LORA, train__steps=1)
    second = train(again, tmp_path / "two", console=quiet_console())
    first_row = json.loads((tmp_path / "two" / "metrics.jsonl").read_text().splitlines()[0])
    name = "validation_loss_nats"
    assert first_row["metrics"][name]["value"] == pytest.approx(result.metrics[name]["value"], abs=1e-5)
    assert second.reason == "max_steps"


@pytest.mark.parametrize(
    ("metric", "values"), [("accuracy_greedy", [1, 3, 2]), ("validation_loss_nats", [5, 3, 4])]
)
def test_best_is_the_best_by_its_metric(monkeypatch, tmp_path, metric, values):
    """Three evaluations, the second the best: `best` holds the weights of then. Fails if nats count upwards."""
    recipe = make_recipe(train__steps=2, evaluate__every_steps=1, evaluate__best_metric=metric)
    s = make_setup(recipe, tmp_path)
    real, seen = s.evaluate, []

    def evaluate():
        found = real()
        seen.append({k: v.clone() for k, v in s.model.state_dict().items()})
        value = replace(found.metrics[metric], value=float(values[len(seen) - 1]))
        return replace(found, metrics={**found.metrics, metric: value})

    progress = Progress()
    loop.run_rounds(replace(s, evaluate=evaluate), progress, [])
    assert (progress.best_step, progress.best_value) == (1, 3)
    saved = load_file(tmp_path / "best" / "model.safetensors")
    assert all(torch.equal(saved[name], seen[1][name]) for name in saved)
    assert not all(torch.equal(saved[name], seen[2][name]) for name in saved)


# --- full disks, damage, other settings -----------------------------------------------------------------------------------


@contextmanager
def largest_file(num_bytes: int):
    """No file can grow beyond this: what a full disk looks like to a writer."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


FULL = {
    # model.safetensors is about 19 kB, the optimiser's state twice that
    "at the weights": 9_000,
    "at the optimiser": 28_000,
    "at the first file": 0,
}


@pytest.mark.parametrize("where", FULL)
def test_a_full_disk_loses_nothing(monkeypatch, tmp_path, where):
    """The second checkpoint cannot be written: one sentence, the first one is whole, and resuming ends with the
    weights of an unbroken run."""
    recipe = make_recipe(train__steps=6, checkpoint__every_steps=2)
    unbroken = train(recipe, tmp_path / "unbroken", console=quiet_console())
    real = loop.save_checkpoint

    def full(accelerator, model, tokenizer, progress, *rest):
        with largest_file(FULL[where] if progress.step == 4 else 10**9):
            return real(accelerator, model, tokenizer, progress, *rest)

    monkeypatch.setattr(loop, "save_checkpoint", full)
    folder = tmp_path / "run"
    with pytest.raises(
        TrainingError, match=r"could not write .*step-000004.*free some space.*--resume"
    ) as error:
        train(recipe, folder, console=quiet_console())
    assert len(str(error.value).splitlines()) == 1
    assert [p.name for p in (folder / "checkpoints").iterdir()] == ["step-000002"]
    monkeypatch.setattr(loop, "save_checkpoint", real)
    resumed = train(recipe, folder, resume=True, console=quiet_console())
    files = [(r.checkpoint / "model.safetensors").read_bytes() for r in (resumed, unbroken)]
    assert files[0] == files[1]


def test_a_full_disk_keeps_the_old_model(tmp_path):
    s = make_setup(make_recipe(), tmp_path)
    save_model(s.model, None, tmp_path / "best")
    before = (tmp_path / "best" / "model.safetensors").read_bytes()
    with torch.no_grad():
        next(s.model.parameters()).add_(1.0)
    with largest_file(9_000), pytest.raises(TrainingError, match=r"could not write .*best"):
        save_model(s.model, None, tmp_path / "best")
    assert (tmp_path / "best" / "model.safetensors").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["best"]


def test_the_last_checkpoints_are_kept_in_the_order_of_their_steps(tmp_path):
    """Fails if names are compared as text: the millionth step would come before the second."""
    s = make_setup(make_recipe(), tmp_path)
    folder = tmp_path / "checkpoints"
    for step in (8, 999_998, 1_000_000, 1_000_002):
        save_checkpoint(s.accelerator, s.model, None, Progress(step=step), [], folder, 2)
    assert [p.name for p in checkpoints(folder)] == ["step-1000000", "step-1000002"]


def test_a_damaged_checkpoint_is_named(tmp_path):
    s = make_setup(make_recipe(), tmp_path)
    for name in ("progress.json", "model.safetensors", "optimizer.bin", "pool-0-of-1.json"):
        path = save_checkpoint(s.accelerator, s.model, None, Progress(step=3), [], tmp_path / name, 1)
        file = path / "state" / name
        file.write_bytes(file.read_bytes()[: len(file.read_bytes()) // 2])
        with pytest.raises(TrainingError, match=r"step-000003 cannot be read.*Delete it"):
            load_checkpoint(s.accelerator, path)


def test_another_number_of_processes_is_refused(tmp_path):
    s = make_setup(make_recipe(), tmp_path)
    path = save_checkpoint(s.accelerator, s.model, None, Progress(step=3), [], tmp_path / "c", 1)
    (path / "state" / "pool-0-of-1.json").rename(path / "state" / "pool-0-of-2.json")
    with pytest.raises(TrainingError, match=r"not written by 1 process.*Resume with as many as before"):
        load_checkpoint(s.accelerator, path)


def test_resuming_is_for_the_same_recipe(tmp_path):
    folder = tmp_path / "run"
    result = train(make_recipe(), folder, console=quiet_console())
    with pytest.raises(ConfigError, match=r"other settings \(optimizer.learning_rate: 0.001 -> 0.5\)"):
        train(make_recipe(optimizer__learning_rate=0.5), folder, resume=True, console=quiet_console())
    with pytest.raises(ConfigError, match="already holds a run"):
        train(make_recipe(), folder, console=quiet_console())
    assert train(make_recipe(), folder, resume=True, console=quiet_console()) == result


def test_the_journal_is_cut_back_and_is_always_json(tmp_path):
    journal = Journal(tmp_path, is_writing=True)
    journal.write("metrics", {"a": float("nan"), "b": [float("inf"), 1.5]})
    sizes = journal.sizes()
    journal.write("metrics", {"a": 2})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"torn')
    journal.cut(sizes)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"a": null, "b": [null, 1.5]}\n'
    Journal(tmp_path, is_writing=False).write("trajectories", {"a": 1})
    assert not (tmp_path / "trajectories.jsonl").exists()


def broken_write(target, make):
    with files.atomic_path(target) as part:
        make(part)
        raise KeyError


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    """For a file and for a folder; what a killed writer leaves behind is swept up."""
    files.write_json(tmp_path / "x.json", {"a": 1})
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "old").touch()
    for make, name in ((Path.touch, "x.json"), (Path.mkdir, "f")):
        with pytest.raises(KeyError):
            broken_write(tmp_path / name, make)
    with files.atomic_path(tmp_path / "f") as part:
        part.mkdir()
        (part / "new").touch()
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1}
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")) == ["f", "f/new", "x.json"]
    (tmp_path / "f" / ".new.77.part").mkdir()
    (tmp_path / ".f.77.old").mkdir()
    files.remove_unfinished(tmp_path)
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")) == ["f", "f/new", "x.json"]
