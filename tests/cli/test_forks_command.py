"""`understudy forks` from the outside: what it prints and writes, what it keeps, and what it refuses."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from command import understudy, write_recipe

import understudy as library
from small import TABLE, chained_recipe, make_recipe, quiet_console, recipe_file
from small_text import make_world, model, write_rows
from understudy import fork_correction, fork_subjects, forks
from understudy.build import build_task
from understudy.config import recipe_from_table
from understudy.diagnostics.fork_probe import Pair, token_losses
from understudy.experts.expert import OracleExpert
from understudy.experts.noisy import NoisyExpert, build_noise
from understudy.fork_correction import correct_forks
from understudy.fork_subjects import Probing, settings_of
from understudy.forks import find_forks
from understudy.models import load_model
from understudy.records import Prompt, Trajectory
from understudy.reports.forks import write_forks_report
from understudy.rollouts.sampler import Limits
from understudy.starter import make_starter

SIZES = ("--per-group", 6, "--window", 4)
HOSTILE = "<script>"


@pytest.fixture(scope="module", autouse=True)
def few_resamples():
    """Intervals are tested where they are made; here they would take most of the time."""
    with mock.patch.object(forks, "probe_forks", partial(forks.probe_forks, num_resamples=100)):
        yield


def text_table(folder: Path) -> dict[str, Any]:
    """A student and an expert of random weights; prompts that would be obeyed by a page that does not escape."""
    table = make_world(folder, max_prompt_tokens=40, max_new_tokens=10)
    made = [{"prompt": f"{HOSTILE}{i}=", "reference": str(i)} for i in range(10)]
    write_rows(folder / "validation.jsonl", made)
    table["evaluate"]["prompts"] = 10
    return {**table, "seed": 2}


@pytest.fixture(scope="module")
def probed(tmp_path_factory):
    """A recipe, the folder that its probe has filled, and what was printed."""
    folder = tmp_path_factory.mktemp("forks")
    recipe = write_recipe(folder / "sums.toml", text_table(folder))
    out = folder / "out"
    return recipe, out, understudy("forks", recipe, *SIZES, "--out", out)


def record_of(out: Path, name: str = "forks.json") -> dict[str, Any]:
    return json.loads((out / name).read_text())


def test_the_table_for_a_person_and_the_files(probed):
    _, out, found = probed
    assert found.code == 0, found.err
    record = record_of(out)
    lines = found.out.splitlines()
    assert lines[0].split()[:3] == ["tokens", "n", "loss,"]
    assert [line.split()[:2] for line in lines[1:4]] == [["high", "6"], ["random", "6"], ["low", "6"]]
    assert "10 responses of" in found.out
    assert f"{record['num_tokens']} tokens; expert" in found.out
    assert "Windows of 4 tokens, greedily; words compared by the embedding `expert`." in found.out
    assert "False alarms: " in found.out
    assert "Seconds: rollouts " in found.out
    assert lines[-1] == f"page: {out / 'forks.html'}"
    assert {path.name for path in out.iterdir()} == {"forks.json", "forks.html", "figures", "parts"}
    assert {path.name for path in (out / "figures").iterdir()} == {"distances.png", "losses.png"}
    assert sorted(path.name.split("-")[0] for path in (out / "parts").iterdir()) == [
        "high",
        "low",
        "random",
        "rollouts",
    ]
    assert {"versions", "settings", "key", "seconds"} <= record.keys()
    assert set(record["seconds"]) == {"rollouts", "scoring", "student windows", "expert windows", "transport"}


def test_the_numbers_are_those_of_the_tokens(probed):
    _, out, _ = probed
    record = record_of(out)
    tokens = {g: [t for t in record["tokens"] if t["group"] == g] for g in ("high", "random", "low")}
    upper = torch.tensor([t["distance"] for t in tokens["low"]], dtype=torch.float64).quantile(0.75).item()
    share = sum(t["distance"] < upper for t in tokens["high"]) / 6
    assert record["low_upper"] == pytest.approx(upper)
    assert record["probe"]["false_alarm_share"]["value"] == pytest.approx(share)
    median = torch.tensor([t["distance"] for t in tokens["low"]], dtype=torch.float64).quantile(0.5).item()
    assert any(median < t["distance"] < upper for t in tokens["high"]), "or another limit would do as well"
    assert sum(t["is_false_alarm"] for t in record["tokens"]) == round(6 * share)
    for group in record["groups"]:
        rows = tokens[group["group"]]
        assert group["num_identical"] == sum(t["student_ids"] == t["expert_ids"] for t in rows)
        median = torch.tensor([t["loss_nats"] for t in rows], dtype=torch.float64).quantile(0.5).item()
        assert group["losses"]["median"] == pytest.approx(median)
    assert min(t["loss_nats"] for t in tokens["high"]) > max(t["loss_nats"] for t in tokens["low"])
    for fork in record["shown"]:
        assert sum(mass for _, _, mass, _ in fork["plan"]) == pytest.approx(1)
        assert sum(mass * cost for _, _, mass, cost in fork["plan"]) == pytest.approx(
            fork["distance"], abs=1e-6
        )
        (token,) = (
            t
            for t in tokens["high"]
            if [t[k] for k in ("prompt", "position")] == [fork[k] for k in ("prompt", "position")]
        )
        assert fork["is_false_alarm"] == token["is_false_alarm"]
        assert len(fork["student"]) == len(token["student_ids"])


def test_the_page_shows_both_futures_and_escapes_what_models_and_files_say(probed):
    _, out, _ = probed
    page, record = (out / "forks.html").read_text(), record_of(out)
    assert any(HOSTILE in fork["prefix"] for fork in record["shown"])
    assert HOSTILE not in page
    assert "&lt;script&gt;" in page
    assert page.count('<div class="fork">') == len(record["shown"]) == 6
    assert page.count("<svg") == 6
    cells = sum(len(fork["plan"]) for fork in record["shown"])
    assert page.count('class="cell"') == cells
    assert page.count("data:image/png") == 2
    assert page.count("false alarm:") == sum(fork["is_false_alarm"] for fork in record["shown"])
    for url in ("http://", "https://", 'src="/', "url("):
        assert url not in page
    (out / "forks.html").unlink()
    found = understudy("report", out)
    assert found.code == 0
    assert f"report: {out / 'forks.html'}" in found.out
    assert (out / "forks.html").read_text() == page


def test_every_text_on_the_page_is_escaped(probed, corrected, tmp_path):
    """Whatever a record holds as text; what does not print is a box."""
    bad = "<b>\x1b$^"
    for out, name, rows in (
        (probed[1], "forks.json", "shown"),
        (corrected[1], "correction.json", "examples"),
    ):
        record = record_of(out, name)
        for row in record[rows]:
            row |= {key: bad for key in ("prompt", "prefix", "said") if key in row}
            row |= {
                key: bad if isinstance(row[key], str) else [bad] * len(row[key])
                for key in ("student", "expert")
            }
            row |= {"corrected": dict.fromkeys(row["corrected"], bad)} if "corrected" in row else {}
        record |= dict.fromkeys(("name", "place", "student", "expert"), bad)
        (tmp_path / name).write_text(json.dumps(record))
    page = write_forks_report(tmp_path).read_text()
    assert page.count("&lt;b&gt;\ufffd$^") > 50
    assert "<b>\ufffd" not in page
    assert "\x1b" not in page
    assert "<title>Forks: &lt;b&gt;" in page


def test_json_and_a_second_call_that_computes_nothing(probed):
    recipe, out, _ = probed
    with (
        mock.patch.object(fork_subjects, "rollouts", side_effect=AssertionError),
        mock.patch.object(forks, "look_ahead", side_effect=AssertionError),
    ):
        found = understudy("forks", recipe, *SIZES, "--out", out, "--json")
    assert found.code == 0, found.err
    assert "probed before" in found.err
    record = record_of(out)
    shown = json.loads(found.out)
    assert shown["folder"] == str(out)
    assert {key: record[key] for key in shown if key != "folder"} == {
        k: v for k, v in shown.items() if k != "folder"
    }
    assert "tokens" not in shown


def calls(target: str):
    homes = {"rollouts": fork_subjects, "look_ahead": forks, "correct": fork_correction}
    return mock.patch.object(homes[target], target, wraps=getattr(homes[target], target))


def test_what_was_measured_before_a_kill_is_kept(probed, tmp_path):
    """The record and one group are lost: that group alone is looked at again. Other windows: responses are kept."""
    recipe, out, _ = probed
    whole = record_of(out)
    (tmp_path / "parts").mkdir()
    for part in (out / "parts").iterdir():
        if not part.name.startswith("low"):
            (tmp_path / "parts" / part.name).write_bytes(part.read_bytes())
    with calls("rollouts") as wrote, calls("look_ahead") as looked:
        assert understudy("forks", recipe, *SIZES, "--out", tmp_path).code == 0
    assert (wrote.call_count, looked.call_count) == (0, 1)
    again = record_of(tmp_path)
    assert [again[key] for key in ("key", "tokens", "probe", "groups")] == [
        whole[key] for key in ("key", "tokens", "probe", "groups")
    ]
    with calls("rollouts") as wrote, calls("look_ahead") as looked:
        assert understudy("forks", recipe, "--per-group", 6, "--window", 3, "--out", tmp_path).code == 0
    assert (wrote.call_count, looked.call_count) == (0, 3)
    assert record_of(tmp_path)["settings"]["looking"]["window_tokens"] == 3
    with calls("rollouts") as wrote:
        assert understudy("forks", recipe, *SIZES, "--seed", 4, "--out", tmp_path).code == 0
    assert wrote.call_count == 1
    assert record_of(tmp_path)["tokens"] != whole["tokens"]


def test_batches_do_not_matter(probed, tmp_path):
    recipe, out, _ = probed
    small = ("--set", "evaluate.batch_size=4")
    assert understudy("forks", recipe, *SIZES, *small, "--out", tmp_path / "o").code == 0
    whole, split = (record_of(place)["tokens"] for place in (out, tmp_path / "o"))
    for one, other in zip(whole, split, strict=True):
        assert other == one | {name: pytest.approx(one[name], abs=1e-5) for name in ("loss_nats", "distance")}


def test_more_responses_and_the_other_split(probed, tmp_path):
    recipe, _, _ = probed
    many = ("--prompts", 5, "--samples", 3)
    assert understudy("forks", recipe, *SIZES, *many, "--out", tmp_path).code == 0
    record = record_of(tmp_path)
    assert (record["num_prompts"], record["samples_per_prompt"], record["num_responses"]) == (5, 3, 15)
    assert {t["sample"] for t in record["tokens"]} == {0, 1, 2}
    # The unit of the intervals is the prompt, not the response.
    assert record["probe"]["pearson"]["n"] <= 5
    found = understudy("forks", recipe, *SIZES, "--split", "test", "--out", tmp_path)
    assert found.code == 2
    assert "has no test split" in found.err


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    recipe = make_recipe(optimizer__learning_rate=0.05, evaluate__prompts=12)
    library.train(recipe, folder, console=quiet_console())
    return folder


def test_a_run_folder_is_probed_at_its_end(run_folder):
    """Its final weights, its own expert, an exact law; results lie in the run."""
    found = understudy("forks", run_folder, *SIZES, "--embedding", "student")
    assert found.code == 0, found.err
    out = run_folder / "forks"
    record = record_of(out)
    assert (record["student"], record["expert"]) == (str(run_folder / "final"), "oracle")
    (part,) = (out / "parts").glob("rollouts-*.json")
    rows = json.loads(part.read_text())["responses"]
    recipe = recipe_from_table(json.loads((run_folder / "recipe.json").read_text()))
    task = build_task(recipe, None, frozenset())
    prompts = {p.id: p for p in task.prompts("validation", 0, 12)}
    noise = build_noise(recipe.expert.noise, task.action_ids)
    expert = NoisyExpert(OracleExpert(task.oracle(), "sum"), noise)
    pair = Pair(
        student=load_model(str(run_folder / "final")),
        expert=expert,
        vocab_size=task.vocab_size,
        limits=Limits(max_new_tokens=6),
        seed=0,
        batch_size=99,
    )
    made = [trajectory(prompts[row["prompt"]], row["ids"]) for row in rows]
    for row, losses in zip(rows, token_losses(pair, made), strict=True):
        assert row["losses"] == pytest.approx(losses, abs=1e-5)


def trajectory(prompt: Prompt, ids: list[int]) -> Trajectory:
    n = len(ids)
    return Trajectory(
        prompt=prompt, sample_index=0, response_ids=tuple(ids), is_student=(True,) * n, logp=(0.0,) * n, temperature=1.0,
        finish="length", round=0, student_version=0,
    )  # fmt: skip


def test_missing_stages_are_trained_first_each_seed_its_own(tmp_path, monkeypatch):
    """An expert a seed: `--seed 6` probes expert-6, a correction with two seeds needs both. A run keeps the expert it had."""
    monkeypatch.chdir(tmp_path)
    recipe = chained_recipe(tmp_path)
    found = understudy("forks", recipe, *SIZES, "--seed", 6)
    assert found.code == 0, found.err
    assert record_of(Path("runs/student-forks"))["expert"] == f"{tmp_path}/expert-6/final"
    assert not (tmp_path / "expert-5").exists()
    small = ("--per-group", 2, "--window", 3, "--steps", 1)
    found = understudy("forks", recipe, *small, "--correct", "--seeds", 2)
    assert found.code == 0, found.err
    assert (tmp_path / "expert-5" / "final").is_dir()
    assert record_of(Path("runs/student-forks"), "correction.json")["seeds"] == [5, 6]
    assert understudy("train", recipe, "--out", "run").code == 0
    found = understudy("forks", "run", *SIZES, "--seed", 9)
    assert found.code == 0, found.err
    record = record_of(Path("run/forks"))
    assert (record["expert"], record["seed"]) == (f"{tmp_path}/expert-5/final", 9)


def test_a_near_future_recipe_gives_the_defaults():
    options = {
        "window_tokens": 7, "window_temperature": 0.5, "embedding": "student", "candidate_quantile": 0.8,
        "candidate_spacing": 3, "window_weight": 0.25, "plan": "entropic", "regularisation": 0.1, "targets": "heaviest",
    }  # fmt: skip
    recipe = make_recipe(
        method={"name": "near-future", **options}, optimizer__betas=[0.5, 0.6], optimizer__clip_norm=2.0
    )
    found = settings_of(Probing(), recipe, steps=3)
    assert (found.quantile, found.spacing) == (0.8, 3)
    assert (found.looking.window_tokens, found.looking.temperature, found.looking.embedding) == (
        7,
        0.5,
        "student",
    )
    c = found.correcting
    assert (c.window_weight, c.plan, c.regularisation, c.targets) == (0.25, "entropic", 0.1, "heaviest")
    assert (c.steps, c.betas, c.clip_norm, c.looking) == (3, (0.5, 0.6), 2.0, found.looking)
    own = settings_of(Probing(quantile=0.5, window_tokens=2, temperature=0.0, embedding="expert"), recipe)
    assert (own.quantile, own.looking.window_tokens, own.looking.temperature) == (0.5, 2, 0.0)
    plain = settings_of(Probing(), make_recipe())
    assert (plain.quantile, plain.spacing, plain.looking.window_tokens) == (0.9775, 1, 50)
    assert (plain.looking.temperature, plain.looking.embedding) == (0.0, "expert")
    by_nats = make_recipe(method={"name": "near-future", "embedding": "student", "candidate_nats": 1.0})
    assert settings_of(Probing(), by_nats).quantile == 0.9775


# --- local correction -------------------------------------------------------------------------------------------------

CORRECT = ("--correct", "--per-group", 3, "--window", 4, "--steps", 2, "--rates", "1e-3,1e-2", "--seeds", 2)


@pytest.fixture(scope="module")
def corrected(probed):
    recipe, out, _ = probed
    return (
        recipe,
        out.with_name("corrected"),
        understudy("forks", recipe, *CORRECT, "--out", out.with_name("corrected")),
    )


def test_a_correction_is_a_table_for_every_rate(corrected):
    _, out, found = corrected
    assert found.code == 0, found.err
    record = record_of(out, "correction.json")
    assert [table["rate"] for table in record["rates"]] == [1e-3, 1e-2]
    for table in record["rates"]:
        assert table["num_prefixes"] == 6
        assert f"rate {table['rate']:g}" in found.out
        before = table["distances"]["before"]
        assert table["before"]["value"] == pytest.approx(sum(before) / 6)
        for arm in table["arms"]:
            after = table["distances"][arm["arm"]]
            assert arm["change"]["value"] == pytest.approx(sum(after) / 6 - sum(before) / 6)
    assert record["rates"][0]["distances"]["before"] == record["rates"][1]["distances"]["before"]
    names = [line.split()[0] for line in found.out.splitlines() if line.strip()][2:8]
    assert names == ["before", "opd", "near-future", "window-only", "sft", "opd-expert-window"]
    assert "6 prefixes from before high-loss tokens" in found.out
    assert "seeds 2, 3; 2 steps each" in found.out
    assert "Rate 0.001: opd below before: " in found.out
    assert record["correcting"]["steps"] == 2
    page = (out / "forks.html").read_text()
    assert HOSTILE not in page
    assert page.count("data:image/png") == 1
    assert page.count('<div class="fork">') == 6
    assert (out / "figures" / "correction.png").is_file()


def test_a_correction_that_was_killed_goes_on(corrected, tmp_path):
    """Interrupted after five of twelve, the last line cut in two: the same numbers, and only what is missing is computed."""
    recipe, out, _ = corrected
    correct, done = fork_correction.correct, []

    def until_killed(*args: Any, **kwargs: Any):
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append(args)
        return correct(*args, **kwargs)

    with mock.patch.object(fork_correction, "correct", until_killed):
        assert understudy("forks", recipe, *CORRECT, "--out", tmp_path).code == 130
    (lines,) = (tmp_path / "parts").glob("correction-*.jsonl")
    assert len(lines.read_text().splitlines()) == 5
    lines.write_text(lines.read_text()[:-7])
    with calls("correct") as counted, calls("rollouts") as wrote:
        assert understudy("forks", recipe, *CORRECT, "--out", tmp_path).code == 0
    assert (counted.call_count, wrote.call_count) == (8, 1)
    unbroken, resumed = (record_of(place, "correction.json") for place in (out, tmp_path))
    assert resumed["rates"] == unbroken["rates"]
    with calls("correct") as counted:
        found = understudy(
            "forks", recipe, *CORRECT[:-4], "--rates", "1e-2,1e-4", "--seeds", 2, "--out", tmp_path, "--json"
        )
    assert counted.call_count == 6
    shown = json.loads(found.out)
    assert shown["rates"][0] == unbroken["rates"][1]
    assert "examples" not in shown


def test_probe_and_correction_share_a_page_and_responses(probed, tmp_path):
    recipe, _, _ = probed
    understudy("forks", recipe, *SIZES, "--out", tmp_path)
    with calls("rollouts") as wrote:
        assert understudy("forks", recipe, *CORRECT[:-4], "--out", tmp_path).code == 0
    assert wrote.call_count == 0
    record = record_of(tmp_path, "correction.json")
    assert [table["rate"] for table in record["rates"]] == [1e-3]  # the recipe's own
    probe = {(t["prompt"], t["position"]): t for t in record_of(tmp_path)["tokens"] if t["group"] == "high"}
    (lines,) = (tmp_path / "parts").glob("correction-*.jsonl")
    for row in map(json.loads, lines.read_text().splitlines()):
        same = probe[row["prompt"], row["position"]]
        assert row["before"] == pytest.approx(same["distance"], abs=1e-6)
        assert (row["student_ids"], row["expert_ids"]) == (same["student_ids"], same["expert_ids"])
    page = (tmp_path / "forks.html").read_text()
    assert "Forks side by side" in page
    assert "Local correction" in page


def test_adapters_are_what_is_corrected(probed, tmp_path):
    """A recipe with LoRA: only its adapters move."""
    recipe, _, _ = probed
    lora = ("--set", "student.lora={target_modules=['q_proj']}", "--out", tmp_path)
    with calls("correct") as corrected:
        assert understudy("forks", recipe, *CORRECT[:-4], *lora).code == 0
    (pair, *_), _ = corrected.call_args
    names = [name for name, p in pair.student.named_parameters() if p.requires_grad]
    assert names
    assert all("lora_" in name for name in names)


# --- what is refused --------------------------------------------------------------------------------------------------


def refused(message: str, *arguments: object) -> None:
    found = understudy("forks", *arguments)
    assert (found.code, found.out) == (2, ""), found
    assert message in " ".join(found.err.split()), found.err
    assert "Traceback" not in found.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--per-group", 1], "--per-group must be at least 2, got 1"),
        (["--quantile", 1], "--quantile must be in [0, 1), got 1.0"),
        (["--window", 0], "--window must be at least 1, got 0"),
        (["--temperature", -1], "--temperature must be at least 0, got -1.0"),
        (["--temperature", "nan"], "--temperature must be at least 0, got nan"),
        (["--embedding", "mine"], "'mine' is not one of"),
        (["--prompts", 0], "Invalid value for '--prompts'"),
        (["--rates", "1e-3"], "--rates says how to correct; give --correct, too."),
        (["--steps", 1], "--steps says how to correct"),
        (["--seeds", 1], "--seeds says how to correct"),
        (["--correct", "--rates", "fast"], "--rates takes numbers and commas, such as 1e-4,1e-3; got 'fast'"),
        (["--correct", "--rates", "0"], "--rates must be numbers above 0, got 0.0"),
        (["--correct", "--steps", 0], "--steps must be at least 1, got 0"),
        (["--correct", "--seeds", 0], "--seeds must be at least 1, got 0"),
        (["--per-group", 11], "11 high tokens are wanted, and 10 responses have 10. Raise --prompts or --samples, or lower"),
        (["--out", "taken"], "taken holds something else (compare.json). Use another --out."),
        (["--out", "sums.toml"], "cannot create the folder sums.toml"),
        (["--set", "expert.checkpoint=./gone"], "cannot load a tokenizer from ./gone"),
        (["--set", "expert.checkpoint=other"], "has another vocabulary"),
    ],
)  # fmt: skip
def test_bad_settings_are_one_sentence(probed, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    recipe = Path("sums.toml")
    recipe.write_text(probed[0].read_text())
    Path("taken").mkdir()
    Path("taken/compare.json").write_text("{}")
    if "expert.checkpoint=other" in arguments:
        texts = write_rows(Path("words.jsonl"), [{"prompt": "how now, brown cow", "reference": "so so"}])
        make_starter("other", model=model(), texts=[texts], vocab_size=270)
    refused(message, recipe, *arguments)


def test_an_expert_that_a_method_does_without(probed, tmp_path):
    table = {key: value for key, value in TABLE.items() if key != "expert"}
    table |= {"method": {"name": "sft"}, "data": {"offline": "reference"}}
    recipe = write_recipe(tmp_path / "alone.toml", table)
    refused(
        "alone.toml has no expert, and a fork is where the student leaves one. Add an [expert] table.", recipe
    )
    expert_window = ("--set", "method.name=near-future", "--set", "method.targets=expert-window")
    refused(
        "method.targets = 'expert-window' is what the arm sft does", probed[0], *expert_window, "--correct"
    )


def test_an_exact_law_has_no_embedding(tmp_path, monkeypatch):
    """And nothing is left of a call that was refused."""
    monkeypatch.chdir(tmp_path)
    recipe = write_recipe(tmp_path / "tiny.toml", TABLE)
    for embedding in ((), ("--embedding", "expert-hidden")):
        refused(
            "is an exact law (expert.kind = 'oracle') and has no embedding table", recipe, *SIZES, *embedding
        )
    assert list(tmp_path.iterdir()) == [recipe]


def test_a_student_that_a_warm_start_makes(tmp_path):
    recipe = recipe_file(tmp_path, "warm", warm_start={"method": "sft", "max_steps": 1})
    refused("warm.toml comes out of a warm start, which is part of a run. Train it (understudy train", recipe)


def test_places_that_are_none(run_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused("no recipe at gone", "gone")
    Path("empty").mkdir()
    refused("empty holds neither a run (recipe.json) nor a recipe (recipe.toml)", "empty")
    refused("--set student.checkpoint=", run_folder / "final")
    Path("both").mkdir()
    Path("both/compare.json").write_text("{}")
    refused("both holds a comparison. Give the folder of one of its cells, or its recipe.", "both")
    Path("begun").mkdir()
    Path("begun/recipe.json").write_text((run_folder / "recipe.json").read_text())
    refused("begun has no final checkpoint: the run is not finished", "begun")
    (Path("begun") / "own.json").write_text('{"task": "mine"}')
    refused(
        "begun was trained with own objects (task), which its recipe cannot name: it cannot be probed",
        "begun",
    )


def test_a_broken_record_is_named(probed, tmp_path):
    (tmp_path / "forks.json").write_text('{"name": "x"}')
    found = understudy("report", tmp_path)
    assert found.code == 2
    assert "forks.json is not a record that `understudy forks` wrote (KeyError: 'groups')" in found.err
    recipe, _, _ = probed
    assert understudy("forks", recipe, *SIZES, "--out", tmp_path).code == 0


def test_the_same_from_python(probed, corrected):
    """And from what is kept."""
    recipe, out, _ = probed
    probing = Probing(per_group=6, window_tokens=4)
    found = find_forks(recipe, probing=probing, out=out, console=quiet_console())
    assert {**record_of(out), "folder": str(out)} == found
    _, place, _ = corrected
    few = Probing(per_group=2, window_tokens=4)
    with mock.patch.object(fork_correction, "correct", side_effect=AssertionError):
        record = correct_forks(recipe, probing=few, steps=2, rates=[1e-2], out=place, console=quiet_console())
    assert record["rates"][0]["num_prefixes"] == 2
