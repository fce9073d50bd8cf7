"""The examination finds what was broken on purpose, names it, and says how to fix it; what is whole it calls ok."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from small import make_recipe
from small_text import make_world, model, rows, write_rows
from understudy.build import build_task, check_ids
from understudy.config import recipe_from_table
from understudy.doctor import Finding, examine
from understudy.errors import ModelError
from understudy.models import load_tokenizer
from understudy.resolved import to_toml
from understudy.starter import make_starter


@pytest.fixture
def world(tmp_path):
    return tmp_path, make_world(tmp_path)


def findings(table, **dotted) -> dict[str, Finding]:
    changes = {key.replace("__", "."): value for key, value in dotted.items()}
    found = examine(recipe_from_table(table, changes))
    # The first of a name: problems of one part are reported before what follows from them.
    return {f.check: f for f in reversed(found)}


def edit_json(file: Path, **changes) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_a_sound_recipe_of_text_has_no_complaint(world):
    _, table = world
    found = findings(table)
    assert {f.status for f in found.values()} == {"ok"}, [f for f in found.values() if f.status != "ok"]
    assert set(found) == {
        "recipe", "student", "expert tokenizer", "expert", "token ids", "end of sequence",
        "expert's end of sequence", "chat template", "prompts for the expert", "lengths", "grader",
        "reference ends", "student's log-probs repeat", "expert's log-probs repeat",
    }  # fmt: skip
    assert found["grader"].found == "16 of 16 gold answers score 1"


def test_a_sound_recipe_of_token_ids_has_no_complaint():
    found = examine(make_recipe())
    assert {f.status for f in found} == {"ok"}
    assert {f.check for f in found} >= {"noise", "expert's log-probs repeat", "grader", "lengths"}


def test_rewards_are_looked_at_where_they_are_learnt_from():
    found = {f.check: f for f in examine(make_recipe(method__name="grpo", train__samples_per_prompt=4))}
    assert {f.status for f in found.values()} == {"ok"}
    assert found["rewards"].found == "the task grades responses; 4 to a prompt are compared"
    assert "rewards" not in {f.check for f in examine(make_recipe())}


def test_noise_that_beats_the_first_choice():
    # p = 3 actions: at eta = 0.9 the right token keeps 0.1 and each of two others has 0.45.
    noise = {"law": "absorbing", "eta": 0.9, "error": "other"}
    found = {f.check: f for f in examine(make_recipe(expert__noise=noise))}
    assert found["noise"].status == "problem"
    assert "stays first at 0.0% of 48 positions" in found["noise"].found
    assert "Lower expert.noise.eta" in found["noise"].fix
    # The same rate spread over all actions, as published, leaves the right token 0.1 + 0.3 against 0.3.
    assert {f.check: f for f in examine(make_recipe(expert__noise__eta=0.9))}["noise"].status == "ok"


def test_an_expert_with_another_vocabulary(world):
    folder, table = world
    other = write_rows(
        folder / "other.jsonl", [{"prompt": "entirely other words " * 9, "reference": "words"}]
    )
    make_starter(folder / "expert", model=model(), texts=[other], vocab_size=270, overwrite=True)
    found = findings(table)["expert tokenizer"]
    assert found.status == "problem"
    assert "has another vocabulary (270 tokens, the student" in found.found
    assert "student's tokenizer" in found.fix


def test_nan_weights_are_found_in_student_and_expert(world):
    folder, table = world
    for who in ("student", "expert"):
        file = folder / who / "model.safetensors"
        tensors = load_file(file)
        tensors[sorted(tensors)[0]][0] = torch.nan
        save_file(tensors, file, metadata={"format": "pt"})
        found = findings(table)[who]
        assert found.status == "problem"
        assert "holds NaN or infinite weights in" in found.found
        assert found.fix == "Use an earlier checkpoint of that run."


def test_fewer_output_rows_than_tokens(world):
    """Unused ids beyond the rows are worth a word; used ones cannot be trained."""
    folder, table = world
    unused = write_rows(folder / "wordy.jsonl", [{"text": "~~~~ ~~~~ ^^^^ ^^^^ " * 9}])
    make_starter(folder / "wordy", model=None, texts=[unused], vocab_size=270)
    found = findings(table, student__tokenizer=str(folder / "wordy"))
    assert found["token ids"].status == "warning"
    assert "use none beyond them" in found["token ids"].found
    with pytest.raises(ModelError, match=r"has 10 output rows and the tokenizer gives id \d+"):
        check_ids(
            build_task(recipe_from_table(table), load_tokenizer(str(folder / "student")), frozenset()), 10
        )


def test_ids_with_holes(world):
    folder, table = world
    file = folder / "student" / "tokenizer.json"
    made = json.loads(file.read_text())
    vocab = made["model"]["vocab"]
    last = max(vocab, key=vocab.get)
    vocab[last] = vocab[last] + 3
    file.write_text(json.dumps(made))
    shutil.copy(file, folder / "expert" / "tokenizer.json")
    found = findings(table)["token ids"]
    assert found.status == "problem"
    assert "the ids have holes" in found.found


def test_files_that_disagree_on_the_end(world):
    folder, table = world
    edit_json(folder / "student" / "generation_config.json", eos_token_id=[4])
    found = findings(table)["end of sequence"]
    assert found.status == "warning"
    assert "tokenizer: '<eos>' (id 1), generation config: '<assistant>' (id 4)" in found.found
    assert "task.end_token" in found.fix


def test_an_expert_that_ends_with_another_token(world):
    folder, table = world
    for name in ("config.json", "generation_config.json"):
        edit_json(folder / "expert" / name, eos_token_id=[3])
    half = findings(table)["expert's end of sequence"]
    assert half.status == "warning"
    assert "'<eos>' (id 1) or '<user>' (id 3)" in half.found
    edit_json(folder / "expert" / "tokenizer_config.json", eos_token="<user>")
    never = findings(table)["expert's end of sequence"]
    assert never.status == "problem"
    assert "its samples never end" in never.found
    assert "task.end_token = '<user>'" in never.fix


def test_padding_with_the_end_token_is_called_harmless(world):
    folder, table = world
    for who in ("student", "expert"):
        edit_json(folder / who / "tokenizer_config.json", pad_token="<eos>")
    found = findings(table)["end of sequence"]
    assert found.status == "ok"
    assert "masks go by position" in found.found


def test_another_chat_template_of_the_expert(world):
    folder, table = world
    chats = [{"messages": [{"role": "user", "content": f"{i}?"}], "reference": str(i)} for i in range(30)]
    changes = {
        "task__train": str(write_rows(folder / "chats.jsonl", chats[:20])),
        "task__validation": str(write_rows(folder / "held.jsonl", chats[20:])),
    }
    same = findings(table, **changes)
    assert same["prompts for the expert"].status == "ok"
    file = folder / "expert" / "chat_template.jinja"
    file.write_text(file.read_text().replace("<assistant>{% endif %}", "<assistant>\n{% endif %}"))
    other = findings(table, **changes)
    assert other["expert's chat template"].status == "warning"
    assert other["prompts for the expert"].status == "problem"
    assert "30 of 30 prompts" in other["prompts for the expert"].found
    file.unlink()
    none = findings(table, **changes)
    assert "the expert none" in none["expert's chat template"].found
    assert none["prompts for the expert"].status == "problem"
    assert "no chat template" in none["prompts for the expert"].found


def test_templates_that_do_not_open_the_turn_or_do_not_render(world):
    folder, table = world
    file = folder / "student" / "chat_template.jinja"
    file.write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    found = findings(table)["chat template"]
    assert (found.status, "changes nothing" in found.found) == ("warning", True)
    file.write_text("{{ raise_exception('no') }}")
    assert findings(table)["chat template"].status == "problem"


def test_bad_rows_are_named(world):
    folder, table = world
    (folder / "train.jsonl").write_text('{"prompt": "1+1="}\n{"prompt": \n')
    found = findings(table)["data"]
    assert found.status == "problem"
    assert "train.jsonl, line 2: not JSON" in found.found
    assert "Expected one object a line." in found.fix


def test_what_does_not_fit_the_context(world):
    _, table = world
    found = findings(table, task__max_prompt_tokens=60, task__max_new_tokens=60)
    assert found["context"].status == "problem"
    assert "do not fit the student's context of 96" in found["context"].found
    found = findings(table, train__max_new_tokens=95)
    assert found["lengths"].status == "problem"
    assert "responses up to 95; the student's context is 96" in found["lengths"].found


def test_references_that_are_cut_and_rows_that_are_dropped(world):
    _, table = world
    found = findings(table, train__max_new_tokens=2)
    assert found["references"].status == "warning"
    # Rows 0 .. 55; the answer i % 10 + i // 10 has two digits, and with its end three tokens, for 15 of them.
    two_digits = sum(i % 10 + i // 10 > 9 for i in range(56))
    assert f"{two_digits / 56:.1%} of the references" in found["references"].found
    found = findings(table, task__max_new_tokens=2, task__too_long="drop")
    assert found["dropped rows"].status == "warning"
    dropped = sum(i % 10 + i // 10 > 9 for i in range(40))
    assert f"{dropped} rows of train ({dropped / 40:.0%})" in found["dropped rows"].found


def test_without_a_validation_split(world):
    _, table = world
    del table["task"]["validation"]
    found = findings(table)["data"]
    assert found.found == "there are no validation prompts"
    assert "task.validation_rows" in found.fix


def test_references_that_a_method_needs_and_does_not_get(world):
    folder, table = world
    for name in ("train", "validation"):
        rows = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        write_rows(folder / f"{name}.jsonl", [{"prompt": row["prompt"]} for row in rows])
    changes = {"task__grader": None, "method__name": "sft", "data__offline": "reference", "expert": None}
    found = findings(table, **changes)
    assert found["reference ends"].status == "problem"
    assert found["grader"].found == "the task has no grader or no references: no accuracy is measured"
    assert found["expert"].found == "none, and sft needs none"


def test_an_expert_that_is_still_to_be_trained(world):
    folder, table = world
    first = {**table, "method": {"name": "sft"}, "data": {"offline": "reference"}}
    del first["expert"]
    (folder / "first.toml").write_text(to_toml(first))
    expert = {
        "kind": "local",
        "checkpoint": str(folder / "later" / "final"),
        "recipe": str(folder / "first.toml"),
    }
    found = findings(table, expert=expert)
    assert found["expert"].status == "warning"
    assert "trains it first" in found["expert"].found
    assert found["student's log-probs repeat"].status == "ok"
    found = findings(table, expert={**expert, "recipe": str(folder / "gone.toml")})
    assert found["expert"].status == "problem"
    assert "no recipe at" in found["expert"].found


def test_a_student_that_is_still_to_be_trained(world):
    """A warning, as for the expert; its tokenizer is that of what makes it. `{seed}` is the run's seed when it is there."""
    folder, table = world
    first = {**table, "method": {"name": "sft"}, "data": {"offline": "reference"}}
    del first["expert"]
    (folder / "first.toml").write_text(to_toml(first))
    made = {"checkpoint": str(folder / "base-{seed}" / "final"), "recipe": str(folder / "first.toml")}
    found = findings(table, student=made, seed=4)
    assert found["student"].status == "warning"
    assert f"{folder}/base-4/final is not there yet; the run trains it first" in found["student"].found
    assert found["expert's log-probs repeat"].status == "ok"
    assert [f for f in found.values() if f.status == "problem"] == []
    shutil.copytree(folder / "student", folder / "base-4" / "final")
    assert findings(table, student=made, seed=4)["student"].status == "ok"


def test_every_complaint_has_a_fix_and_nothing_else_has():
    with pytest.raises(AssertionError):
        Finding(check="x", status="problem", found="y")
    with pytest.raises(AssertionError):
        Finding(check="x", status="ok", found="y", fix="z")


def test_a_further_evaluation_set_is_made_as_a_run_makes_it(world):
    folder, table = world
    file = write_rows(folder / "hard.jsonl", rows(60, 3))
    task = {"kind": "jsonl", "validation": str(file), "max_prompt_tokens": 16, "max_new_tokens": 8}
    table["evaluate"]["also"] = {"hard": {"task": task}}
    found = findings(table)["evaluation sets"]
    assert (found.status, found.found) == ("ok", "hard (3 prompts)")
    file.unlink()
    found = findings(table)["evaluation sets"]
    assert found.status == "problem"
    assert "evaluate.also.hard" in found.found
    assert str(file) in found.found


def test_too_few_held_out_prompts_are_told_before_the_run():
    table = {
        "name": "few",
        "task": {"kind": "sorting", "min_length": 2, "max_length": 2, "max_number": 20},
        "student": {"new": {"family": "llama", "layers": 1, "width": 16, "heads": 2, "max_positions": 64}},
        "method": {"name": "sft"},
        "data": {"offline": "reference"},
        "train": {"steps": 1, "batch_size": 2, "device": "cpu"},
        "optimizer": {"learning_rate": 1e-3},
        "evaluate": {"prompts": 500},
    }
    found = findings(table)
    assert found["held-out prompts"].status == "problem"
    assert "prompts = 500, and the validation split" in found["held-out prompts"].found
    assert "evaluation sets" not in found


@pytest.mark.parametrize("is_part", [False, True])
def test_training_on_held_out_puzzles_is_told(is_part):
    task = {"kind": "countdown", "format": "compact", "operands": [3], "max_number": 9, "max_target": 20}
    table = {
        "name": "knows all",
        "student": {"new": {"family": "llama", "layers": 1, "width": 16, "heads": 2, "max_positions": 512}},
        "method": {"name": "sft"},
        "data": {"offline": "reference"},
        "train": {"steps": 1, "batch_size": 2, "device": "cpu"},
        "optimizer": {"learning_rate": 1e-3},
        "evaluate": {"prompts": 8},
    }
    for knows in (False, True):
        chosen = {**task, "train_on_all": knows}
        found = findings(
            {**table, "task": {"kind": "mixture", "parts": [{"task": chosen}]} if is_part else chosen}
        )
        assert ("unseen prompts" in found) == knows
    assert found["unseen prompts"].status == "warning"
    assert "learnt by heart" in found["unseen prompts"].found
