"""Evaluating a checkpoint gives the numbers the run itself logged, and says what is missing when it cannot."""

import json

import pytest

from small import make_recipe, quiet_console
from small_text import make_world
from understudy.config import recipe_from_table
from understudy.errors import ConfigError, DataError, ModelError
from understudy.measure import checkpoint_and_recipe, evaluate_checkpoint
from understudy.run import train


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    recipe = make_recipe(train__steps=3, optimizer__learning_rate=0.02, evaluate__prompts=24)
    folder = tmp_path_factory.mktemp("evaluate") / "run"
    train(recipe, folder, console=quiet_console())
    return folder


def test_the_same_numbers_as_the_runs_last_evaluation(run_folder):
    place, recipe = checkpoint_and_recipe(run_folder, None)
    assert place == run_folder / "final"
    # From the same weights, prompts and random numbers: equal to the bit, not only close.
    logged = json.loads((run_folder / "result.json").read_text())["metrics"]
    assert evaluate_checkpoint(place, recipe).to_json()["metrics"] == logged


def test_another_split_and_more_samples_are_other_numbers(run_folder):
    place, recipe = checkpoint_and_recipe(
        run_folder, None, ["evaluate.samples_per_prompt=3", "evaluate.prompts=5"]
    )
    validation, test = (evaluate_checkpoint(place, recipe, split=split) for split in ("validation", "test"))
    assert test.metrics["expert_kl_nats"].n == 15
    assert test.metrics["teacher_forced_accuracy"].n == 5
    assert test.metrics["validation_loss_nats"].value != validation.metrics["validation_loss_nats"].value


def test_a_run_that_trained_adapters_is_evaluated_as_the_merged_model(run_folder):
    place, recipe = checkpoint_and_recipe(run_folder, None)
    with_lora = recipe_from_table(recipe.to_table(), {"student.lora": {"target_modules": ["no_such_module"]}})
    assert evaluate_checkpoint(place, with_lora).metrics == evaluate_checkpoint(place, recipe).metrics


def test_what_is_missing_is_named(run_folder, tmp_path):
    with pytest.raises(ConfigError, match="no checkpoint or run folder at"):
        checkpoint_and_recipe(tmp_path / "gone", None)
    with pytest.raises(ConfigError, match="a checkpoint without a recipe"):
        checkpoint_and_recipe(run_folder / "final", None)
    (tmp_path / "recipe.json").write_text("{}")
    with pytest.raises(ConfigError, match="has no final checkpoint: the run is not finished"):
        checkpoint_and_recipe(tmp_path, None)


def test_a_split_that_is_not_there(tmp_path):
    table = make_world(tmp_path)
    with pytest.raises(DataError, match="has no test split"):
        evaluate_checkpoint(tmp_path / "student", recipe_from_table(table), split="test")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="cannot load a causal LM"):
        evaluate_checkpoint(tmp_path / "empty", recipe_from_table(table))


def test_several_samples_that_are_all_wrong_do_not_claim_certainty(run_folder):
    """A variance of zero over prompts must not become an interval of width zero."""
    place, recipe = checkpoint_and_recipe(
        run_folder, None, ["evaluate.samples_per_prompt=2", "evaluate.prompts=16"]
    )
    hard = recipe_from_table(recipe.to_table(), {"task.length": 12})
    found = evaluate_checkpoint(place, hard).metrics["accuracy_sampled"]
    # 16 prompts, none right: Wilson's upper end is z^2 / (n + z^2) = 0.1936. By chance right: 32 * 3^-12 = 6e-5.
    assert (found.value, found.low) == (0.0, pytest.approx(0.0, abs=1e-12))
    assert found.high == pytest.approx(0.19361, abs=1e-4)


def test_a_run_with_own_objects_is_not_measured_against_others(tmp_path):
    """Its recipe says nothing of them: the numbers would be those of another expert."""
    (tmp_path / "final").mkdir()
    (tmp_path / "recipe.json").write_text("{}")
    (tmp_path / "own.json").write_text('{"noise": "Slip(rate=0.3)"}')
    with pytest.raises(ConfigError, match=r"own objects \(noise\).*noise=\.\.\."):
        checkpoint_and_recipe(tmp_path, None)
