"""A student on a server: the same tokens, the same law, the same ends as in the training process, and every fault told in words.

Against a server of our own that speaks the protocol (`fake_vllm`), not against vLLM.
"""

from __future__ import annotations

import copy
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from fake_vllm import FakeVLLM
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats
from test_sampler import Script, spell

from small import VOCAB, as_trajectories, make_model, make_prompts, respond
from understudy.errors import ConfigError, TrainingError
from understudy.models import add_lora, merged, merged_weights, quiet_transformers
from understudy.records import Prompt
from understudy.rollouts import server as server_module
from understudy.rollouts.sampler import Limits, sample
from understudy.rollouts.server import KEY_VARIABLE, Server
from understudy.rollouts.vllm import ServedStudent, arrival, token_logp
from understudy.schema import LoraConfig

LOGP_TOLERANCE_OF_A_SERVER = 1e-4


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(server_module, "WAITS_SECONDS", (0.0, 0.0))


@pytest.fixture(scope="module")
def started_from(tmp_path_factory):
    """What the server holds before anything is handed over: another student than any of the tests'."""
    folder = tmp_path_factory.mktemp("start")
    with quiet_transformers():
        make_model(seed=99).save_pretrained(folder)
    return folder


def served(fake: FakeVLLM, folder, **settings) -> ServedStudent:
    given = {
        "server": Server(url=fake.url, timeout_seconds=20.0),
        "folder": folder / "served",
        "vocab_size": VOCAB,
        "num_rows": VOCAB,
        "dtype": None,
        "tolerance_nats": 0.1,
        "probe": [p.token_ids for p in make_prompts((9, 12, 7, 11), seed=5)],
        "at_once": 8,
    }
    return ServedStudent(**{**given, **settings})


def names_of(prompts):
    return [(0, "rollout", 0, p.id, 0) for p in prompts]


def ask(student: ServedStudent, prompts, limits: Limits, temperature: float = 1.0):
    return student.write(prompts, names_of(prompts), limits=limits, temperature=temperature)


def moved(model, by: float = 0.3, seed: int = 1):
    """The same student after some training."""
    other, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in other.parameters():
            p += by * torch.randn(p.shape, generator=generator, dtype=p.dtype) * p.std()
    return other


# --- tokens, laws, ends ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_greedy_responses_are_our_own_token_for_token(family, tmp_path):
    """With the weights that went through the folder; ends included, log-probabilities within 1e-4."""
    model, start = make_model(family, seed=3), make_model(family, seed=98)
    with quiet_transformers():
        start.save_pretrained(tmp_path / "start")
    prompts = make_prompts((4, 2, 7, 5, 3, 6), seed=12)
    limits = Limits(max_new_tokens=9, eos_ids=frozenset({1, 2, 3, 4, 17}))
    with FakeVLLM(folder=tmp_path / "start") as fake:
        student = served(fake, tmp_path)
        student.update(model, 0)
        found = ask(student, prompts, limits, temperature=0.0)
    expected = respond(model, prompts, limits=limits, temperature=0.0)
    assert {r.finish for r in expected} == {"eos", "length"}
    for a, b in zip(found, expected, strict=True):
        assert (a.token_ids, a.finish, a.is_student) == (b.token_ids, b.finish, b.is_student)
        assert a.logp == pytest.approx(b.logp, abs=LOGP_TOLERANCE_OF_A_SERVER)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_draws_follow_the_enumerated_law(temperature, tmp_path):
    """1,500 first and second tokens over 6 ids: 36 outcomes with exact probabilities; chi-square, false alarm below 1e-6 for
    new names (the names are fixed). Fails if rows share a seed, a default of the server truncates, or temperature is left out."""
    model, n = make_model(seed=8, vocab=6), 1500
    with quiet_transformers():
        model.save_pretrained(tmp_path / "start")
    prompts = [Prompt(id=f"s{i}", token_ids=(1, 4, 2)) for i in range(n)]
    with FakeVLLM(folder=tmp_path / "start") as fake:
        student = served(fake, tmp_path, vocab_size=6, num_rows=6, probe=[])
        found = ask(student, prompts, Limits(max_new_tokens=2), temperature)
    continued = torch.tensor([(1, 4, 2, a) for a in range(6)])
    with torch.no_grad():
        logit = model(continued).logits.double()
    cold = (logit / temperature).log_softmax(-1)
    prob = (cold[0, 2][:, None] + cold[:, 3]).exp().flatten().numpy()
    count = np.bincount([6 * r.token_ids[0] + r.token_ids[1] for r in found], minlength=36)
    rare = n * prob < 5
    count, prob = [*count[~rare], count[rare].sum()], np.array([*prob[~rare], prob[rare].sum()])
    assert stats.chisquare(count, n * prob / prob.sum()).pvalue > 1e-6
    # The log-probabilities are those at temperature 1.
    whole = logit.log_softmax(-1)
    for r in found[:50]:
        a, b = r.token_ids
        assert r.logp == pytest.approx([whole[0, 2, a].item(), whole[a, 3, b].item()], abs=1e-4)


def test_the_same_names_ask_for_the_same_seeds(started_from, tmp_path):
    """One seed a row, the same in another run, another in another round."""
    prompts = make_prompts((3, 3, 3), seed=2)
    with FakeVLLM(folder=started_from) as fake:
        student = served(fake, tmp_path)
        first, again = (ask(student, prompts, Limits(max_new_tokens=3)) for _ in range(2))
        later = [(0, "rollout", 1, p.id, 0) for p in prompts]
        student.write(prompts, later, limits=Limits(max_new_tokens=3), temperature=1.0)
        seeds = {tuple(a["prompt"]): [] for a in fake.asked}
        for a in fake.asked:
            seeds[tuple(a["prompt"])].append(a["seed"])
    assert [r.token_ids for r in first] == [r.token_ids for r in again]
    for one, two, three in seeds.values():
        assert one == two != three
        assert 0 <= one < 2**53
    assert len({x for row in seeds.values() for x in row}) == 6


letters = st.lists(st.integers(0, 7), min_size=6, max_size=6)


@pytest.mark.parametrize("kind", ["as asked", "never stops", "ends of its own", "cuts short", "padding"])
@settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(letters, min_size=1, max_size=3),
    st.sets(st.integers(0, 7), max_size=2),
    st.lists(st.text("abcdefgh", min_size=1, max_size=3), max_size=2),
    st.integers(1, 6),
)
def test_ends_are_our_samplers_whatever_the_server_does(
    started_from, tmp_path, kind, texts, eos, stops, count
):
    """Random streams of tokens under random end ids, stop strings and length limits: what is recorded is what our own sampler
    records, token by token, of the same stream. Fails if the server's ends are taken for ours, if a response is not gone on
    with where the server stopped early, or if ids of padding are kept."""
    limits = Limits(
        max_new_tokens=count,
        eos_ids=frozenset(eos),
        stop_strings=tuple(stops),
        decode=spell if stops else None,
    )
    prompts = [Prompt(id=str(i), token_ids=(i,)) for i in range(len(texts))]
    expected = sample(
        prompts,
        limits=limits,
        uniform_BT=np.zeros((len(texts), count)),
        student=Script(texts),
        temperature=0.0,
    )

    def script(prefix, num):
        at = len(prefix) - 1
        if kind == "padding" and num == 1:
            return 10, -3.0
        return texts[prefix[0]][min(at, 5)], 0.0

    # It has end ids of its own files, too, which nobody asked for.
    told = {10: "?", **dict(enumerate("abcdefgh"))}
    with FakeVLLM(
        folder=started_from,
        script=script,
        decode=lambda ids: "".join(map(told.get, ids)),
        own_eos=frozenset({2, 5}),
    ) as fake:
        fake.ignores_stops = kind == "never stops"
        fake.always_ends = frozenset({0, 3, 6}) if kind == "ends of its own" else frozenset()
        fake.cap = 1 if kind == "cuts short" else None
        found = ask(served(fake, tmp_path, vocab_size=8, num_rows=12, probe=[]), prompts, limits)
    assert found == expected


def test_what_is_asked_of_the_server(started_from, tmp_path):
    """Our ends and no others, the whole law stated, and room for what is left of the response."""
    limits = Limits(max_new_tokens=5, eos_ids=frozenset({7, 2}), stop_strings=("bb",), decode=spell)
    with FakeVLLM(folder=started_from, decode=spell, cap=2, script=lambda prefix, num: (0, -1.0)) as fake:
        (found,) = ask(served(fake, tmp_path), [Prompt(id="p", token_ids=(5, 6))], limits, 0.7)
        one, two, three = fake.asked
    assert found.token_ids == (0,) * 5
    assert found.logp == (-1.0,) * 5
    assert [a["max_tokens"] for a in fake.asked] == [5, 3, 1]
    assert (one["prompt"], two["prompt"], three["prompt"]) == ([5, 6], [5, 6, 0, 0], [5, 6, 0, 0, 0, 0])
    assert len({a["seed"] for a in fake.asked}) == 3
    assert (one["stop_token_ids"], one["stop"], one["ignore_eos"]) == ([2, 7], ["bb"], True)
    assert (one["temperature"], one["top_k"], one["top_p"], one["repetition_penalty"]) == (0.7, 0, 1.0, 1.0)


def test_a_server_that_always_stops_is_refused(started_from, tmp_path):
    limits = Limits(max_new_tokens=30)
    with FakeVLLM(folder=started_from, cap=1) as fake:
        sentence = r"stopped the response to prompt p0 16 times in 16 tokens.*--generation-config vllm"
        with pytest.raises(TrainingError, match=sentence):
            ask(served(fake, tmp_path), make_prompts((3,)), limits)


# --- weights --------------------------------------------------------------------------------------------------------------


def test_each_update_is_there_and_leaves_nothing(started_from, tmp_path):
    """Responses after each update are the new student's; the folder is gone; no path came twice."""
    prompts, limits = make_prompts((4, 3, 5), seed=3), Limits(max_new_tokens=6)
    with FakeVLLM(folder=started_from) as fake:
        student = served(fake, tmp_path)
        for version in range(3):
            model = moved(make_model(seed=1), seed=version)
            student.update(model, version)
            own = respond(model, prompts, limits=limits, temperature=0.0)
            assert [r.token_ids for r in ask(student, prompts, limits, 0.0)] == [r.token_ids for r in own]
            assert student.gap(model, as_trajectories(prompts, ask(student, prompts, limits))) < 1e-5
            assert not (tmp_path / "served").exists()
        assert len(set(fake.reloads)) == 3
        assert all(re.search(r"served/step-00000\d-[0-9a-f]{8}$", path) for path in fake.reloads)


@pytest.mark.parametrize("lost", ["reset", "salt"])
def test_cached_prefixes_of_old_weights_are_not_used(started_from, tmp_path, lost):
    """The cache is reset, and requests of one call share prefixes among each other alone: either makes up for the other."""
    prompts, limits = make_prompts((4, 3, 5), seed=3), Limits(max_new_tokens=6)
    with FakeVLLM(folder=started_from, resets=lost != "reset", salts=lost != "salt") as fake:
        student = served(fake, tmp_path)
        for version in range(2):
            model = moved(make_model(seed=1), seed=version)
            student.update(model, version)
            own = respond(model, prompts, limits=limits, temperature=0.0)
            assert [r.token_ids for r in ask(student, prompts, limits, 0.0)] == [r.token_ids for r in own]


def test_old_cached_prefixes_are_seen_in_the_gap(started_from, tmp_path):
    prompts, limits = make_prompts((4, 3, 5), seed=3), Limits(max_new_tokens=6)
    with FakeVLLM(folder=started_from, resets=False, salts=False) as fake:
        student = served(fake, tmp_path)
        for version in range(2):
            model = moved(make_model(seed=1), seed=version)
            student.update(model, version)
            trajectories = as_trajectories(prompts, ask(student, prompts, limits))
            if version == 0:
                assert student.gap(model, trajectories) < 1e-5
        with pytest.raises(
            TrainingError, match=r"differ by .* nats a token on 18 tokens that it has just drawn"
        ):
            student.gap(model, trajectories)


def test_a_server_with_other_weights_is_refused(started_from, tmp_path):
    """A reload that reads the wrong folder, noticed at once: the student is another one."""
    with FakeVLLM(folder=started_from, is_stale=True) as fake:
        with pytest.raises(TrainingError, match=r"differ by .* nats a token on 35 tokens of training texts"):
            served(fake, tmp_path).update(make_model(seed=1), 0)
        assert not (tmp_path / "served").exists()


@pytest.mark.parametrize(("by", "num_steps"), [(6e-4, 1), (5e-5, 4)])
def test_a_stale_server_is_told_by_a_change_that_did_not_arrive(tmp_path, by, num_steps):
    """The server began with this very student and keeps re-reading that folder: the difference stays far below the tolerance,
    and still one change of some thousandths of a nat tells, or four of a third of a thousandth together."""
    model = make_model(seed=1)
    with quiet_transformers():
        model.save_pretrained(tmp_path / "start")
    with FakeVLLM(folder=tmp_path / "start", is_stale=True) as fake:
        student = served(fake, tmp_path)
        student.update(model, 0)
        for version in range(1, num_steps + 1):
            model = moved(model, by=by, seed=7)
            theirs, ours = student.probe_logp(model, "student")
            assert 1e-4 < np.abs(theirs - ours).mean() < 0.01
            if version < num_steps:
                student.update(model, version)
        sentence = r"computes with old ones.* the server's by 0, and not with them"
        with pytest.raises(TrainingError, match=sentence):
            student.update(model, num_steps)


def test_small_changes_that_arrive_are_let_through(tmp_path):
    """The twin of the test above: twelve changes of that size, each of which is there."""
    model = make_model(seed=1)
    with quiet_transformers():
        model.save_pretrained(tmp_path / "start")
    with FakeVLLM(folder=tmp_path / "start") as fake:
        student = served(fake, tmp_path)
        for version in range(12):
            student.update(model, version)
            model = moved(model, by=1e-4 if version % 2 else 6e-4, seed=7)


@pytest.mark.parametrize(
    ("came", "noise", "size", "verdict"),
    [
        (1.0, 0.0, 0.01, "arrived"),
        (0.0, 0.0, 0.01, "stale"),
        (0.6, 0.0, 0.01, "arrived"),
        (0.4, 0.0, 0.01, "stale"),
        (1.0, 0.02, 0.05, "arrived"),
        (0.0, 0.02, 0.05, "stale"),
        (1.0, 0.2, 0.005, "cannot tell"),
        (0.0, 0.2, 0.005, "cannot tell"),
        (0.0, 0.0, 9e-4, "cannot tell"),
        (0.0, 0.0, 0.0, "cannot tell"),
    ],
)
def test_whether_a_change_arrived(came, noise, size, verdict):
    """With N = 500 tokens the error is noise / (size sqrt(N)): 0.018 where noise is 0.4 of the change, 1.8 where it is 40."""
    rng = np.random.default_rng(4)
    change = rng.standard_normal(500)
    change *= size / max(np.sqrt(np.mean(change**2)), 1e-300)
    found = came * change + noise * rng.standard_normal(500)
    assert arrival(found, change, noise_nats=0.0) == verdict
    assert arrival(found[:15], change[:15], noise_nats=0.0) == "cannot tell"


def test_a_change_within_the_noise_of_half_precision_is_not_called_old():
    """Other weights are rounded otherwise: what moves on both sides has then little to do with the change."""
    rng = np.random.default_rng(5)
    change, ours, theirs = (size * rng.standard_normal(4000) for size in (4e-4, 6e-3, 6e-3))
    assert arrival(change + theirs, change + ours, noise_nats=0.0) == "stale"
    assert arrival(change + theirs, change + ours, noise_nats=6e-3) == "cannot tell"
    # Old numbers to the last bit are old weights all the same, and a change beyond the noise is judged.
    assert arrival(np.zeros(4000), change + ours, noise_nats=6e-3) == "stale"
    assert arrival(50 * change + theirs, 50 * change + ours, noise_nats=6e-3) == "arrived"
    assert arrival(theirs, 50 * change + ours, noise_nats=6e-3) == "stale"


def test_adapters_are_folded_in_without_a_second_model(tmp_path):
    """The weights equal those of peft's own merge, by name and value, and the model is untouched to the last bit."""
    torch.manual_seed(0)
    for family, modules in (("llama", ("q_proj", "down_proj")), ("gpt2", ("c_attn",))):
        model = add_lora(
            make_model(family, seed=2), LoraConfig(rank=2, alpha=8.0, target_modules=modules), seed=0
        )
        with torch.no_grad():
            for name, p in model.named_parameters():
                if "lora_B" in name:
                    p += torch.randn(p.shape)
        before = {name: p.clone() for name, p in model.state_dict().items()}
        expected, plain = merged(model).state_dict(), make_model(family, seed=2).state_dict()
        found = merged_weights(model)
        assert found.keys() == expected.keys()
        for name, weight in expected.items():
            torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-6)
        assert any((found[name] - weight).abs().max() > 0.1 for name, weight in plain.items())
        assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())


def test_a_student_with_adapters_is_served(started_from, tmp_path):
    lora = LoraConfig(rank=2, target_modules=("q_proj", "v_proj"))
    model = add_lora(make_model(seed=2), lora, seed=0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p += torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
    prompts, limits = make_prompts((4, 3, 5), seed=3), Limits(max_new_tokens=6)
    with FakeVLLM(folder=started_from) as fake:
        student = served(fake, tmp_path, tolerance_nats=1e-4)
        student.update(model, 0)
        found = as_trajectories(prompts, ask(student, prompts, limits))
        assert student.gap(model, found) < 1e-5
        with pytest.raises(TrainingError, match="differ by"):
            student.gap(make_model(seed=2), found)  # without its adapters it is another student


def test_weights_go_in_the_precision_that_is_asked_for():
    model = make_model("gpt2", seed=4)  # its head is its embedding
    found = merged_weights(model, torch.bfloat16)
    for name, weight in model.state_dict().items():
        assert torch.equal(found[name], weight.bfloat16())
    assert found["lm_head.weight"] is found["transformer.wte.weight"]


# --- the student's own log-probabilities ----------------------------------------------------------------------------------


@pytest.mark.parametrize("cells", [1, 40, 8192])
def test_token_logp_is_the_models(monkeypatch, cells):
    """Rows of all lengths in batches of all sizes, against the model's own logits cut to the vocabulary."""
    monkeypatch.setattr("understudy.rollouts.vllm._CELLS", cells)
    monkeypatch.setattr("understudy.rollouts.vllm._TILE", 4)
    model = make_model("gemma3", seed=4)
    rows = [(p.token_ids, 1 + i % 3) for i, p in enumerate(make_prompts((9, 4, 12, 5, 9, 4), vocab=20))]
    found = token_logp(model, 20, rows)
    for (ids, first), logp_N in zip(rows, found, strict=True):
        with torch.no_grad():
            law = model(torch.tensor([ids])).logits[0, :, :20].double().log_softmax(-1)
        expected = [law[t - 1, ids[t]].item() for t in range(first, len(ids))]
        assert logp_N.tolist() == pytest.approx(expected, abs=2e-5)


def test_the_gap_by_hand(monkeypatch, started_from, tmp_path):
    """Mean absolute difference over the tokens of every k-th response, so that at most so many tokens are read again; what the
    expert wrote is left out."""
    model, prompts = make_model(seed=1), make_prompts((4,) * 8, seed=3)
    responses = respond(model, prompts, limits=Limits(max_new_tokens=6))
    shifted = [
        replace(t, logp=tuple(x + (0.05 if i % 2 else -0.03) for x in t.logp))
        for i, t in enumerate(as_trajectories(prompts, responses))
    ]
    by_expert = [replace(t, is_student=(False,) * 6, logp=(-50.0,) * 6) for t in shifted[:2]]
    with FakeVLLM(folder=started_from) as fake:
        student = served(fake, tmp_path)
    assert student.gap(model, [*by_expert, *shifted]) == pytest.approx(0.04, abs=1e-5)
    assert student.gap(model, by_expert) is None
    monkeypatch.setattr("understudy.rollouts.vllm.CHECKED_TOKENS", 40)  # of 80: every second response
    assert student.gap(model, shifted) == pytest.approx(0.03, abs=1e-5)
    with pytest.raises(TrainingError, match=r"differ by 0\.03 nats a token on 24 tokens"):
        replace(student, tolerance_nats=0.029).gap(model, shifted)


# --- faults ---------------------------------------------------------------------------------------------------------------

FAULTS = {
    "drop": r"does not answer POST /v1/completions \(.*tried 3 times\)\. Start it, and go on with --resume",
    "500": r"answered POST /v1/completions with HTTP 500: EngineCore encountered an issue\. Its log says more",
    "503": r"answered POST /v1/completions with HTTP 503",
    "garbage": r"no JSON object: <html>It works!</html>\. Is it vLLM 0\.15 or newer\?",
    "no-ids": r"gave no token_ids, which return_token_ids asks for: it is too old\. Use vLLM 0\.15 or newer",
    "two": r"answered /v1/completions with 2 choices where one was asked for",
    "none": r"answered /v1/completions with no choices where one was asked for",
    "nan": r"no finite log-probability for each of \d tokens",
    "short": r"no finite log-probability for each of \d tokens",
    "outside": r"gave token id 24, and the student has 24 output rows\. Start it with the student's own checkpoint",
    "no-end": r"ended a response at token 3 and left that token out: its last one is 2\. Use vLLM 0\.15",
    "abort": r"broke off a response \(finish_reason = abort\)\. Let nobody else pause or stop it",
    "slow": r"gave no answer to POST /v1/completions within 0\.2 seconds\. Raise rollouts\.server_timeout_seconds",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_one_clear_sentence(started_from, tmp_path, fault):
    """One row of six meets it; nothing is returned."""
    prompts = make_prompts((4, 2, 7, 5, 3, 6), seed=12)
    limits = Limits(max_new_tokens=6, eos_ids=frozenset({3}))
    with FakeVLLM(folder=started_from, script=lambda prefix, num: (1 + num % 3, -0.5)) as fake:
        fake.slow_seconds = 0.5
        fake.fault = lambda path, asked: fault if asked.get("prompt") == list(prompts[4].token_ids) else None
        student = served(fake, tmp_path)
        student.server = replace(student.server, timeout_seconds=0.2 if fault == "slow" else 20.0)
        with pytest.raises(TrainingError, match=FAULTS[fault]) as caught:
            ask(student, prompts, limits)
        assert fake.url in str(caught.value)
        assert "\n" not in str(caught.value)
        assert str(caught.value)[-1] in ".?"


def test_what_passes_is_tried_again(started_from, tmp_path):
    """Two dropped connections and a busy server: the third answer counts, and is the one that was asked for."""
    prompts, limits = make_prompts((4, 2, 7), seed=12), Limits(max_new_tokens=6)
    with FakeVLLM(folder=started_from) as fake:
        expected = ask(served(fake, tmp_path), prompts, limits)
        for faults in (["drop", "drop"], ["503", "drop"]):
            left = {p.token_ids: list(faults) for p in prompts}

            def fault(path, asked, left=left):
                waiting = left.get(tuple(asked.get("prompt", ())))
                return waiting.pop() if waiting else None

            fake.fault = fault
            assert ask(served(fake, tmp_path), prompts, limits) == expected
            assert not any(left.values())


def test_faults_of_a_handover(started_from, tmp_path, monkeypatch):
    model = make_model(seed=1)
    with FakeVLLM(folder=started_from, dev_mode=False) as fake:
        with pytest.raises(
            TrainingError, match=r"/collective_rpc with HTTP 404\. Start it with VLLM_SERVER_DEV_MODE=1"
        ):
            served(fake, tmp_path).update(model, 0)
        assert not (tmp_path / "served").exists()
    two = FakeVLLM(folder=started_from, names=("a", "b"))
    sentence = r"must serve one model, the student's; it serves 2 \(a, b\)"
    with two as fake, pytest.raises(TrainingError, match=sentence):
        served(fake, tmp_path).update(model, 0)
    with FakeVLLM(folder=started_from) as fake:
        sentence = r"/collective_rpc with HTTP 500: size mismatch\. Is it vLLM 0\.15 or newer, does it serve the student's"
        with pytest.raises(TrainingError, match=sentence):
            served(fake, tmp_path).update(make_model("gpt2"), 0)
        (tmp_path / "file").write_text("")
        with pytest.raises(
            TrainingError, match=r"could not write the weights for the server to .*file/served"
        ):
            served(fake, tmp_path / "file").update(model, 0)
        monkeypatch.setattr(fake, "fault", lambda path, asked: "500" if "prompt_logprobs" in asked else None)
        with pytest.raises(TrainingError, match="HTTP 500"):
            served(fake, tmp_path).update(model, 0)
    with pytest.raises(TrainingError, match=r"does not answer GET /v1/models \(ConnectionRefusedError"):
        served(fake, tmp_path).update(model, 0)


def test_the_key_is_sent_and_never_told(started_from, tmp_path, monkeypatch):
    prompts, limits = make_prompts((4, 2), seed=12), Limits(max_new_tokens=3)
    with FakeVLLM(folder=started_from, key="s3cret-key") as fake:
        student = served(fake, tmp_path)
        monkeypatch.delenv(KEY_VARIABLE, raising=False)
        with pytest.raises(
            TrainingError, match=rf"HTTP 401\. Put its key into the environment variable {KEY_VARIABLE}"
        ):
            ask(student, prompts, limits)
        monkeypatch.setenv(KEY_VARIABLE, "s3cret-key")
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")  # nobody is there, and nobody is asked
        assert len(ask(student, prompts, limits)) == 2
        monkeypatch.setenv(KEY_VARIABLE, "other-key")
        with pytest.raises(TrainingError) as caught:
            ask(student, prompts, limits)
        assert "other-key" not in str(caught.value)
        monkeypatch.setenv(KEY_VARIABLE, "line\nbreak")
        with pytest.raises(ConfigError, match="must be printable ASCII without spaces") as refused:
            ask(student, prompts, limits)
        assert "break" not in str(refused.value)
