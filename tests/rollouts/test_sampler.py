"""The loop that draws tokens, driven by sources whose laws are known: ends, stops, frequencies, two writers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from small import LOGP_TOLERANCE, VOCAB, as_trajectories, make_model, make_prompts, respond
from understudy.experts.local import LocalExpert
from understudy.randomness import uniforms
from understudy.records import Prompt
from understudy.rollouts.hf import HFDecoder
from understudy.rollouts.mixture import expert_writes_sequence, expert_writes_tokens
from understudy.rollouts.sampler import Limits, sample
from understudy.trainer.collate import collate

LETTERS = "abcdefgh"
CPU = torch.device("cpu")


class Script:
    """Writes a given text for each prompt; checks that it is told what it wrote, by the rows that are left."""

    def __init__(self, texts: Sequence[Sequence[int]], vocab: int = 8) -> None:
        self.texts = [list(t) for t in texts]
        self.vocab = vocab
        self.at = 0
        self.rows_seen: list[int] = []

    def start(self, prompts: Sequence[Prompt]) -> Tensor:
        assert len(prompts) == len(self.texts)
        return self._law()

    def step(self, token_B: Tensor) -> Tensor:
        assert token_B.tolist() == [t[self.at] for t in self.texts]
        self.at += 1
        return self._law()

    room = None

    def keep(self, row_K: Tensor) -> None:
        self.texts = [self.texts[r] for r in row_K.tolist()]

    def _law(self) -> Tensor:
        self.rows_seen.append(len(self.texts))
        logp_BV = torch.full((len(self.texts), self.vocab), -math.inf)
        for b, text in enumerate(self.texts):
            logp_BV[b, text[min(self.at, len(text) - 1)]] = 0.0
        return logp_BV


class Fixed:
    """The same law at every position of every row."""

    def __init__(self, prob_V: Sequence[float]) -> None:
        self.logp_V = torch.tensor(prob_V, dtype=torch.float64).log()
        self.rows = 0

    def start(self, prompts: Sequence[Prompt]) -> Tensor:
        self.rows = len(prompts)
        return self.logp_V.expand(self.rows, -1)

    def step(self, token_B: Tensor) -> Tensor:
        return self.logp_V.expand(self.rows, -1)

    room = None

    def keep(self, row_K: Tensor) -> None:
        self.rows = len(row_K)


def ids(text: str) -> list[int]:
    return [LETTERS.index(c) for c in text]


def spell(token_ids: Sequence[int]) -> str:
    return "".join(LETTERS[t] for t in token_ids)


def play(texts: Sequence[str], **limits) -> list[tuple[str, str]]:
    """What comes of texts under limits: (text, why it ended)."""
    prompts = [Prompt(id=str(i), token_ids=(0,)) for i in range(len(texts))]
    settings = Limits(**{"max_new_tokens": 8, "decode": spell, **limits})
    responses = sample(
        prompts,
        limits=settings,
        uniform_BT=np.full((len(texts), settings.max_new_tokens), 0.5),
        student=Script([ids(t) for t in texts]),
        temperature=0.0,
    )
    return [(spell(r.token_ids), r.finish) for r in responses]


def test_the_token_that_ends_a_response_belongs_to_it():
    """Every end id ends a response, and is in it. Fails if only one id counts, or the end is cut off."""
    found = play(["abcdefgh", "bahhhhhh", "bbbghhhh"], eos_ids=frozenset(ids("ag")))
    assert found == [("a", "eos"), ("ba", "eos"), ("bbbg", "eos")]


def test_the_length_limit():
    """An end id as the very last token counts as an end, not as the limit."""
    found = play(["bcd", "bca", "bb"], eos_ids=frozenset(ids("a")), max_new_tokens=3)
    assert found == [("bcd", "length"), ("bca", "eos"), ("bbb", "length")]


def test_stop_strings_may_span_tokens():
    """Fails if a stop is looked for in single tokens, in one row only, or in a tail that is too short."""
    stops = {"stop_strings": ("bcd", "ee"), "max_new_tokens": 8}
    texts = ["aabcdhhh", "abcabceh", "hhhheehh", "eehhhhhh", "bcbcbcdh"]
    expected = [("aabcd", "stop"), ("abcabceh", "length"), ("hhhhee", "stop"), ("ee", "stop")]
    assert play(texts, **stops) == [*expected, ("bcbcbcd", "stop")]


def test_a_stop_in_the_middle_of_a_long_token_and_of_many_bytes():
    """A stop string of two characters that are four tokens of bytes: the tail is counted in bytes."""
    raw = "\u00e9\u00e8".encode()
    vocabulary = [bytes([b]) for b in raw] + [b"x", b"zz."]

    def decode(token_ids: Sequence[int]) -> str:
        return b"".join(vocabulary[t] for t in token_ids).decode(errors="replace")

    prompts = [Prompt(id=str(i), token_ids=(0,)) for i in range(2)]
    limits = Limits(max_new_tokens=7, stop_strings=("\u00e9\u00e8", "z."), decode=decode)
    scripts = [[4, 4, 0, 1, 2, 3, 4], [4, 5, 4, 4, 4, 4, 4]]
    found = sample(
        prompts, limits=limits, uniform_BT=np.zeros((2, 7)), student=Script(scripts), temperature=0.0
    )
    assert [(r.token_ids, r.finish) for r in found] == [((4, 4, 0, 1, 2, 3), "stop"), ((4, 5), "stop")]


def test_finished_rows_leave_the_batch():
    """The others go on unmoved, and nobody pays for those that are done."""
    texts = ["a", "bbbbbbbb", "a", "cca", "a", "cddddddd"]
    prompts = [Prompt(id=str(i), token_ids=(0,)) for i in range(len(texts))]
    script = Script([ids(t) for t in texts])
    responses = sample(
        prompts,
        limits=Limits(max_new_tokens=8, eos_ids=frozenset({0})),
        uniform_BT=np.zeros((6, 8)),
        student=script,
        temperature=0.0,
    )
    assert [spell(r.token_ids) for r in responses] == texts
    assert script.rows_seen == [6, 3, 3, 2, 2, 2, 2, 2]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_follow_the_law(temperature):
    """Chi-square of 6,000 first and 6,000 second tokens against softmax(log p / T); a false alarm below 1e-6
    for new names (the names are fixed). Fails if the temperature multiplies, or is left out."""
    prob_V = np.array([0.45, 0.3, 0.15, 0.1, 0.0])
    n = 6000
    prompts = [Prompt(id=str(i), token_ids=(0,)) for i in range(n)]
    responses = sample(
        prompts,
        limits=Limits(max_new_tokens=2),
        uniform_BT=uniforms([(p.id, "f") for p in prompts], 2),
        student=Fixed(prob_V.tolist()),
        temperature=temperature,
    )
    expected_V = prob_V ** (1 / temperature)
    expected_V *= n / expected_V.sum()
    for t in range(2):
        count_V = np.bincount([r.token_ids[t] for r in responses], minlength=5)
        assert count_V[4] == 0
        assert stats.chisquare(count_V[:4], expected_V[:4]).pvalue > 1e-6
    # and the log-probability is that at temperature 1
    for r in responses[:20]:
        assert r.logp == pytest.approx([math.log(prob_V[t]) for t in r.token_ids])


def test_frequencies_of_a_model_follow_its_enumerated_law():
    """Two tokens of a model over 6 ids: 36 outcomes with exact probabilities; chi-square, false alarm < 1e-6."""
    model, n = make_model(seed=8, vocab=6), 4000
    prompts = [Prompt(id=f"s{i}", token_ids=(1, 4, 2)) for i in range(n)]
    responses = respond(model, prompts, limits=Limits(max_new_tokens=2), vocab=6)
    continued = torch.tensor([(1, 4, 2, a) for a in range(6)])
    with torch.no_grad():
        logp = model(continued).logits.double().log_softmax(-1)
    prob = (logp[0, 2][:, None] + logp[:, 3]).exp().flatten().numpy()
    count = np.bincount([6 * r.token_ids[0] + r.token_ids[1] for r in responses], minlength=36)
    rare = n * prob < 5
    merged_count = [*count[~rare], count[rare].sum()]
    merged_prob = [*prob[~rare], prob[rare].sum()]
    assert stats.chisquare(merged_count, n * np.array(merged_prob) / np.sum(merged_prob)).pvalue > 1e-6


def test_greedy_does_not_look_at_the_random_numbers():
    prompts = [Prompt(id=str(i), token_ids=(0,)) for i in range(3)]
    for u in (0.0, 0.999):
        found = sample(
            prompts,
            limits=Limits(max_new_tokens=2),
            uniform_BT=np.full((3, 2), u),
            student=Fixed([0.2, 0.5, 0.3]),
            temperature=0.0,
        )
        assert all(r.token_ids == (1, 1) for r in found)


def test_two_writers_token_by_token():
    """Marks and log-probs belong to whoever wrote the token, and both have read all that was written.

    Fails if the other's log-prob is stored, if a writer is not told of the other's tokens, if the plan is read
    by slot after rows have left, or if the marks are swapped.
    """
    student, expert = make_model(seed=10), make_model("gpt2", seed=11)
    prompts = make_prompts((4, 2, 7, 5, 3, 3, 6, 2), seed=12)
    names = [("mix", p.id) for p in prompts]
    plan_BT = expert_writes_tokens(names, 0.5, 9)
    responses = sample(
        prompts,
        limits=Limits(max_new_tokens=9, eos_ids=frozenset({1, 2, 3})),
        uniform_BT=uniforms(names, 9),
        student=HFDecoder(student, vocab_size=VOCAB),
        expert=HFDecoder(expert, vocab_size=VOCAB),
        expert_writes_BT=plan_BT,
    )
    assert len({len(r.token_ids) for r in responses}) > 2
    for b, r in enumerate(responses):
        assert r.is_student == tuple(not x for x in plan_BT[b, : len(r.token_ids)])
    batch = collate(as_trajectories(prompts, responses), CPU)
    gate_BT = batch.is_response_BT
    laws = [LocalExpert(m, VOCAB).law(batch, gate_BT) for m in (expert, student)]
    token_N1 = batch.token_BT[gate_BT][:, None]
    by_expert_N, by_student_N = (x.logp(0, x.num_rows).gather(-1, token_N1)[:, 0] for x in laws)
    expected_N = torch.where(batch.is_student_BT[gate_BT], by_student_N, by_expert_N)
    stored_N = torch.tensor([x for r in responses for x in r.logp])
    torch.testing.assert_close(stored_N, expected_N, rtol=0, atol=LOGP_TOLERANCE)


def test_the_expert_keeps_its_own_law_when_the_student_is_cold():
    """Rollout temperature is the student's: a greedy student beside a drawing expert. n = 4000, five standard
    errors, false alarm 6e-7."""
    n = 4000
    prompts = [Prompt(id=str(i), token_ids=(0,)) for i in range(n)]
    responses = sample(
        prompts,
        limits=Limits(max_new_tokens=2),
        uniform_BT=uniforms([(p.id, "c") for p in prompts], 2),
        student=Fixed([0.4, 0.35, 0.25]),
        expert=Fixed([0.2, 0.3, 0.5]),
        temperature=0.0,
        expert_writes_BT=np.tile([True, False], (n, 1)),
    )
    assert all(r.is_student == (False, True) and r.token_ids[1] == 0 for r in responses)
    share = np.mean([r.token_ids[0] == 2 for r in responses])
    assert abs(share - 0.5) < 5 * 0.5 / n**0.5


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_plans_have_their_share_and_their_own_streams(share):
    """Six standard errors of 20,000 coins (false alarm 2e-9); none at all at the ends. Fails if the plan reads
    the stream of the tokens: the author would then be correlated with the token."""
    names = [("p", i) for i in range(2000)]
    plan_BT = expert_writes_tokens(names, share, 10)
    allowed = 6 * (share * (1 - share) / plan_BT.size) ** 0.5
    assert abs(plan_BT.mean() - share) <= allowed
    whole_B = expert_writes_sequence(names, share)
    assert abs(whole_B.mean() - share) <= 6 * (share * (1 - share) / len(names)) ** 0.5
    if 0 < share < 1:
        token_BT = uniforms(names, 10)
        assert abs(np.corrcoef(plan_BT.ravel(), token_BT.ravel())[0, 1]) < 6 / plan_BT.size**0.5


def test_nobody_to_answer():
    assert (
        sample([], limits=Limits(max_new_tokens=3), uniform_BT=np.zeros((0, 3)), student=Fixed([1.0])) == []
    )
