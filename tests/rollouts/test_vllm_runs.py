"""Whole runs with a server beside them: whose weights it holds at each round, what stops a run, what is refused before one."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fake_vllm import FakeVLLM

from small import Babble, flat_weights, make_model, make_parts, make_recipe, make_setup, quiet_console
from understudy import comparison
from understudy.doctor import examine
from understudy.errors import ConfigError, TrainingError
from understudy.experts.local import LocalExpert
from understudy.models import quiet_transformers
from understudy.resolved import resolved_recipe
from understudy.rollouts import server as server_module
from understudy.rollouts.collect import Round, collect
from understudy.rollouts.server import KEY_VARIABLE
from understudy.run import train
from understudy.tasks.task import Grade
from understudy.trainer import loop
from understudy.trainer.checkpoint import Progress
from understudy.trainer.loop import run_rounds
from understudy.trainer.setup import Clock

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
NOBODY = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(server_module, "WAITS_SECONDS", (0.0, 0.0))


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    """A student of the tiny recipe's shape with another seed: the server holds it until it is given the run's own."""
    folder = tmp_path_factory.mktemp("start")
    with quiet_transformers():
        make_parts(make_recipe(seed=77)).student.save_pretrained(folder)
    return folder


def records(folder: Path, kind: str) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == kind]


@dataclass(frozen=True, kw_only=True)
class Graded(Babble):
    """The more even tokens, the better."""

    def grade(self, prompt, response_ids) -> Grade | None:
        score = sum(t % 2 == 0 for t in response_ids) / self.max_new_tokens
        return Grade(score=score, is_correct=score > 0.5)


@pytest.mark.parametrize("method", ["opd-r", "grpo", "gkd"])
def test_the_server_writes_with_the_weights_of_each_round(monkeypatch, tmp_path, method):
    """The stored log-probs of every round are those of the weights that it starts from, by the model itself.

    Fails if a handover is left out, comes after the rollouts, or if a merged or an earlier copy is handed over.
    """
    changes = {
        "method__name": method,
        "train__steps": 8,
        "train__steps_per_round": 2,
        "optimizer__learning_rate": 0.03,
    }
    if method == "grpo":
        changes["train__samples_per_prompt"] = 4
    own = {"task": Graded(), "expert": LocalExpert(make_model(seed=60, vocab=12), 12, identity="sixty")}
    with quiet_transformers():
        make_parts(make_recipe(seed=77), **own).student.save_pretrained(tmp_path / "start")
    gaps, rounds, real = [], [], loop.collect
    with FakeVLLM(folder=tmp_path / "start") as fake:
        recipe = make_recipe(**changes, rollouts__server=fake.url)
        s = make_setup(recipe, tmp_path, **own)

        def spy(*args):
            fresh = real(*args)
            for t in (t for t in fresh if all(t.is_student)):
                ids, start = torch.tensor([t.prompt.token_ids + t.response_ids]), len(t.prompt.token_ids)
                with torch.no_grad():
                    logp = s.model(ids).logits.log_softmax(-1)[0, start - 1 : -1]
                rescored = logp[range(len(t.response_ids)), list(t.response_ids)]
                gaps.append((rescored - torch.tensor(t.logp)).abs().max().item())
            rounds.append(flat_weights(s.model))
            return fresh

        monkeypatch.setattr(loop, "collect", spy)
        run_rounds(s, Progress(), [])
        assert len(fake.reloads) == len(set(fake.reloads)) == 4
    assert len(gaps) == 64 if method != "gkd" else 0 < len(gaps) < 64
    assert min((a - b).abs().max() for a, b in itertools.pairwise(rounds)) > 0.02, "weights must move"
    assert max(gaps) < 1e-4, gaps
    assert not (tmp_path / "served").exists()


def test_processes_share_a_round_and_change_nothing(tmp_path, start):
    """Each asks for its own rows; together they are the same trajectories, as the same seeds are asked for."""
    with FakeVLLM(folder=start) as fake:
        s = make_setup(make_recipe(method__name="opd-r", rollouts__server=fake.url), tmp_path)
        shares = []
        for processes in (1, 3):
            found = []
            for i in range(processes):
                this = Round(
                    number=2, first_prompt=8, num_prompts=6, student_version=1, process=i, num_processes=processes
                )  # fmt: skip
                found += collect(s.sources, s.method.prefixes, s.options, this)
            shares.append({t.id: (t.response_ids, t.logp, t.student_version) for t in found})
    assert shares[0] == shares[1]
    assert len(shares[0]) == 6


def test_one_process_hands_over_and_all_wait(tmp_path):
    s = make_setup(make_recipe(method__name="opd-r", rollouts__server=NOBODY), tmp_path)
    for is_main in (True, False):
        events: list[str] = []
        accelerator = SimpleNamespace(
            is_main_process=is_main,
            wait_for_everyone=lambda events=events: events.append("wait"),
            autocast=s.accelerator.autocast,
        )
        server = SimpleNamespace(
            update=lambda model, version, events=events: events.append(f"update {version}")
        )
        fake = SimpleNamespace(sources=SimpleNamespace(server=server), model=s.model, accelerator=accelerator)
        progress = Progress(step=3, steps_before=4)
        loop._hand_over(fake, progress, Clock(progress, torch.device("cpu")))  # pyright: ignore
        assert events == (["update 7", "wait"] if is_main else ["wait"])


def test_a_run_that_lost_its_server_goes_on_with_another(tmp_path, start, monkeypatch):
    """The server goes away in the third round; what is written stays. Resumed, the run gives a new server at another address the
    loaded weights before it asks, and ends in the same weights as one that was never broken, to the last bit."""
    monkeypatch.setenv(KEY_VARIABLE, "s3cret-key")
    settings = {
        "method__name": "opd-r",
        "train__steps": 4,
        "optimizer__learning_rate": 0.03,
        "checkpoint__every_steps": 1,
    }
    with FakeVLLM(folder=start, key="s3cret-key") as fake:
        whole = train(
            make_recipe(**settings, rollouts__server=fake.url), tmp_path / "whole", console=quiet_console()
        )
        assert len(fake.reloads) == 4
    with FakeVLLM(folder=start, key="s3cret-key") as fake:
        fake.fault = lambda path, asked: "drop" if len(fake.reloads) == 3 and "seed" in asked else None
        with pytest.raises(TrainingError, match="does not answer POST /v1/completions"):
            train(
                make_recipe(**settings, rollouts__server=fake.url), tmp_path / "cut", console=quiet_console()
            )
        first = fake.url
    assert [r["step"] for r in records(tmp_path / "cut", "train")] == [1, 2]
    with FakeVLLM(folder=start, key="s3cret-key") as fake:
        assert fake.url != first
        recipe = make_recipe(**settings, rollouts__server=fake.url)
        resumed = train(recipe, tmp_path / "cut", resume=True, console=quiet_console())
        assert [Path(path).name[:11] for path in fake.reloads] == ["step-000002", "step-000003"]
        other = make_recipe(**settings, rollouts__drafts="off", rollouts__server=fake.url)
        sentence = r"started with other settings \(rollouts\.drafts: 'auto' -> 'off'\)"
        with pytest.raises(ConfigError, match=sentence):
            train(other, tmp_path / "cut", resume=True, console=quiet_console())
    files = [(result.checkpoint / "model.safetensors").read_bytes() for result in (whole, resumed)]
    assert files[0] == files[1]
    assert [r["step"] for r in records(tmp_path / "cut", "train")] == [1, 2, 3, 4]
    for record in records(tmp_path / "cut", "train"):
        assert 0 <= record["server_logp_gap_nats"] < 1e-4
        assert record["seconds"]["serve"] > 0
        assert record["drafted_rate"] == 0 == record["read_rate"]
    assert "`server_logp_gap_nats`" in PAGE
    assert "`serve`" in PAGE
    assert "`served/`" in PAGE
    for path in (p for p in tmp_path.rglob("*") if p.is_file()):
        assert b"s3cret-key" not in path.read_bytes(), path


def test_weights_go_through_a_folder_of_the_runs_own_on_a_shared_disk(tmp_path, start):
    """Whatever else lies there is left alone."""
    shared = tmp_path / "shared"
    other = shared / "step-000001-mine"
    other.mkdir(parents=True)
    with FakeVLLM(folder=start) as fake:
        recipe = make_recipe(
            method__name="opd-r", rollouts__server=fake.url, rollouts__server_weights=str(shared)
        )
        train(recipe, tmp_path / "run", console=quiet_console())
        parents = {Path(path).parent for path in fake.reloads}
    (own,) = parents
    assert own.parent == shared
    assert own.name.startswith("run-")
    assert len(own.name) == len("run-") + 12
    assert list(shared.iterdir()) == [other]


def test_fixed_data_asks_no_server(tmp_path):
    """A comparison may give all its cells a server; those that need none are not kept waiting for it."""
    recipe = make_recipe(
        method__name="sft", data__offline="reference", rollouts__server=NOBODY, rollouts__drafts="coupled"
    )
    train(recipe, tmp_path / "run", console=quiet_console())
    assert "server_logp_gap_nats" not in records(tmp_path / "run", "train")[0]


def test_two_students_at_once_on_one_server_are_refused(tmp_path):
    table = {"methods": ["opd-r", "sft", "opd-f"], "workers": 2}
    sentence = rf"2 runs side by side would overwrite each other's weights on the server {NOBODY}\. Set compare\.workers = 1"
    with pytest.raises(ConfigError, match=sentence):
        comparison.compare(
            make_recipe(compare=table, rollouts__server=NOBODY), tmp_path / "c", console=quiet_console()
        )
    assert not (tmp_path / "c").exists()
    for methods, workers in ((["opd-r", "sft", "opd-f"], 1), (["opd-r", "sft"], 2)):
        recipe = make_recipe(compare={**table, "methods": methods}, rollouts__server=NOBODY)
        comparison._refuse_shared_server(comparison._jobs(recipe, tmp_path, ()), workers)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"method__name": "dagger"}, r"dagger has student and expert write one response token by token.*use gkd"),
        ({"rollouts__drafts": "coupled"}, r"rollouts\.drafts = 'coupled' draws by a rule of our own.*Use 'auto'"),
        (
            {"student__lora": {"rank": 2}, "train__mixed_precision": "bf16"},
            r"in train\.mixed_precision = 'bf16' most of a small change is rounded away.*--dtype float32",
        ),
        ({"method__rollout_temperature": 0.005}, r"temperature 0 or in \[0\.01, 2\].*= 0\.005"),
        ({"method__rollout_temperature": 2.5}, r"temperature 0 or in \[0\.01, 2\].*= 2\.5"),
        ({"warm_start": {"method": "dagger", "max_steps": 1}}, "dagger has student and expert write one response"),
        ({"rollouts__server_timeout_seconds": 0.0}, r"rollouts: server_timeout_seconds must be > 0"),
        ({"rollouts__server_tolerance_nats": -1.0}, r"rollouts: server_tolerance_nats must be > 0"),
    ],
)  # fmt: skip
def test_what_does_not_fit_a_server_is_refused_at_load(changes, sentence):
    with pytest.raises(ConfigError, match=sentence):
        make_recipe(rollouts__server=NOBODY, **changes)


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1:8000", "ftp://host:8000", "http://", "http://host:x", "http://host:8000/v1", "http://ho st", "unix:/run/s",
     "http://host:99999", "http://[::1", "http://host?a=b", "http://host#a", ""],
)  # fmt: skip
def test_an_address_is_scheme_host_and_port(address):
    with pytest.raises(ConfigError, match=r"rollouts: server must be http://host:port or https://host:port"):
        make_recipe(rollouts__server=address)


def test_addresses_that_are_taken():
    for address in (
        "http://127.0.0.1:8000",
        "http://node-7:80/",
        "https://[::1]:8443",
        "https://vllm.example.org",
    ):
        assert f'server = "{address}"' in resolved_recipe(make_recipe(rollouts__server=address))


def test_passwords_in_an_address_are_refused_and_not_repeated():
    with pytest.raises(ConfigError, match=rf"no user name or password.*{KEY_VARIABLE}") as caught:
        make_recipe(rollouts__server="http://me:hunter2@host:8000")
    assert "hunter2" not in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        make_recipe(rollouts__server="http://host:8000?key=hunter2")
    assert "hunter2" not in str(caught.value)


# --- doctor ---------------------------------------------------------------------------------------------------------------


def finding(**changes):
    (found,) = [f for f in examine(make_recipe(method__name="opd-r", **changes)) if f.check == "server"]
    return found


def test_doctor_on_a_server_that_is_well(tmp_path):
    with quiet_transformers():
        make_parts(make_recipe()).student.save_pretrained(tmp_path)
    with FakeVLLM(folder=tmp_path) as fake:
        found = finding(rollouts__server=fake.url)
        assert fake.reloads == []
    assert found.status == "ok"
    assert f"{fake.url} serves student" in found.found


def test_doctor_on_other_weights_says_that_they_will_be_replaced(start):
    with FakeVLLM(folder=start) as fake:
        found = finding(rollouts__server=fake.url)
    assert found.status == "warning"
    assert "gets the student's before the first response" in found.fix


@pytest.mark.parametrize(
    ("fault", "found", "fix"),
    [
        ({"names": ("a", "b")}, r"must serve one model.*serves 2 \(a, b\)", "Start it with that one alone."),
        ({"dev_mode": False}, "/reset_prefix_cache with HTTP 404", "VLLM_SERVER_DEV_MODE=1"),
        ({"max_model_len": 12}, "room for 12 tokens; a prompt and its response may have 13", "--max-model-len 13 or more"),
        ({"key": "k"}, "HTTP 401", KEY_VARIABLE),
    ],
)  # fmt: skip
def test_doctor_on_a_server_that_is_not(start, fault, found, fix):
    with FakeVLLM(folder=start, **fault) as fake:
        seen = finding(rollouts__server=fake.url)
    assert seen.status == "problem"
    assert re.search(found, seen.found), seen.found
    assert fix in seen.fix


def test_doctor_on_a_smaller_vocabulary_and_on_nobody(tmp_path):
    with quiet_transformers():
        make_parts(make_recipe()).student.save_pretrained(tmp_path)
    with FakeVLLM(folder=tmp_path) as fake:
        seen = finding(rollouts__server=fake.url, student__new__vocab_size=6)
    assert seen.status == "problem"
    assert "Token id is out of vocabulary" in seen.found
    seen = finding(rollouts__server=fake.url)
    assert seen.status == "problem"
    assert "does not answer GET /v1/models" in seen.found
    assert "Start it" in seen.fix
    checks = {f.check for f in examine(make_recipe(method__name="sft", rollouts__server=NOBODY))}
    assert "server" not in checks


def test_responses_of_uneven_length_through_the_whole_loop(tmp_path):
    """Own task, ends of two kinds, padding rows in the head: what is trained on is what was drawn, up to its end."""
    expert = LocalExpert(make_model(seed=60, vocab=12), 12, identity="sixty")
    with quiet_transformers():
        make_parts(
            make_recipe(student__new__vocab_size=15), task=Babble(), expert=expert
        ).student.save_pretrained(tmp_path)
    with FakeVLLM(folder=tmp_path) as fake:
        recipe = make_recipe(
            method__name="opd-pg", train__steps=3, student__new__vocab_size=15, rollouts__server=fake.url,
            rollouts__server_tolerance_nats=0.5,
        )  # fmt: skip
        s = make_setup(recipe, tmp_path, task=Babble(), expert=expert)
        written, real = [], s.sources.server.write

        def spy(*args, **kwargs):
            written.extend(real(*args, **kwargs))
            return written[-len(args[0]) :]

        s.sources.server.write = spy
        progress = Progress()
        run_rounds(s, progress, [])
    assert {r.finish for r in written} == {"eos", "length"}
    assert len({len(r.token_ids) for r in written}) > 3
    assert max(max(r.token_ids) for r in written) < 12
    assert any(max(a["prompt"]) < 12 and a["max_tokens"] < 7 for a in fake.asked if "seed" in a), (
        "ids of padding came"
    )
    assert progress.response_tokens == sum(len(r.token_ids) for r in written)
