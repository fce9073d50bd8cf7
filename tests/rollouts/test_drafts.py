"""Drafts save work and change nothing: the same tokens, and the student's own distribution."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from small import VOCAB, make_model, make_prompts
from understudy.randomness import uniforms
from understudy.records import Prompt
from understudy.rollouts.drafts import agreement
from understudy.rollouts.hf import HFDecoder
from understudy.rollouts.sampler import Follower, Limits, Response, sample, sample_all

LETTERS = "abcdefgh"


class Table:
    """A law for every prefix, made of nothing but the prefix; it can be shown drafts and counts what it is asked."""

    def __init__(self, vocab: int, seed: int = 0, sharpness: float = 1.5) -> None:
        self.vocab, self.seed, self.sharpness = vocab, seed, sharpness
        self.rows: list[tuple[int, ...]] = []
        self.steps = 0
        self.read: list[tuple[int, ...]] = []
        self.laws: dict[tuple[int, ...], Tensor] = {}

    def law(self, prefix: tuple[int, ...]) -> Tensor:
        if prefix not in self.laws:
            logits = np.random.default_rng([self.seed, len(prefix), *prefix]).normal(size=self.vocab)
            self.laws[prefix] = torch.from_numpy(self.sharpness * logits).log_softmax(-1)
        return self.laws[prefix]

    def start(self, prompts: Sequence[Prompt]) -> Tensor:
        self.rows = [p.token_ids for p in prompts]
        return torch.stack([self.law(r) for r in self.rows])

    def step(self, token_B: Tensor) -> Tensor:
        self.steps += 1
        self.rows = [(*r, t) for r, t in zip(self.rows, token_B.tolist(), strict=True)]
        return torch.stack([self.law(r) for r in self.rows])

    room = None

    def keep(self, row_K: Tensor) -> None:
        self.rows = [self.rows[r] for r in row_K.tolist()]

    def follow(self, prompts, drafts, choose):
        self.read = [tuple(d) for d in drafts]
        size = max(map(len, self.read)) + 1
        token_BT, logp_BT = torch.full((len(prompts), size), -7), torch.full((len(prompts), size), math.nan)
        accepted = []
        for b, (prompt, draft) in enumerate(zip(prompts, self.read, strict=True)):
            for t in range(len(draft) + 1):
                law_1V = self.law((*prompt.token_ids, *draft[:t]))[None]
                token_BT[b, t] = choose(law_1V, torch.tensor([b]), torch.tensor([t]))[0]
                logp_BT[b, t] = law_1V[0, token_BT[b, t]]
            accepted.append(agreement(draft, token_BT[b].tolist()))
        self.rows = [(*p.token_ids, *d[:n]) for p, d, n in zip(prompts, self.read, accepted, strict=True)]
        return torch.tensor(accepted), token_BT, logp_BT


def same(found: Sequence[Response], expected: Sequence[Response], tolerance: float = 1e-6) -> None:
    for a, b in zip(found, expected, strict=True):
        assert (a.token_ids, a.finish, a.is_student) == (b.token_ids, b.finish, b.is_student)
        assert a.logp == pytest.approx(b.logp, abs=tolerance)


def spoilt(responses: Sequence[Response], vocab: int, rng: np.random.Generator) -> list[tuple[int, ...]]:
    """Every kind of draft: right, wrong at one place, cut short, empty, longer than the response."""
    drafts = []
    for b, r in enumerate(responses):
        ids = list(r.token_ids)
        if b % 5 in (1, 4):
            at = int(rng.integers(len(ids)))
            ids[at] = (ids[at] + 1 + int(rng.integers(vocab - 1))) % vocab
        if b % 5 == 2:
            ids = ids[: int(rng.integers(len(ids) + 1))]
        if b % 5 == 3:
            ids += rng.integers(0, vocab, 4).tolist()
        drafts.append(() if b % 10 == 9 else tuple(ids))
    return drafts


# --- the same tokens -----------------------------------------------------------------------------------------------------


def spell(token_ids: Sequence[int]) -> str:
    return "".join(LETTERS[t] for t in token_ids)


LIMITS = {
    "length": Limits(max_new_tokens=7),
    "one token": Limits(max_new_tokens=1),
    "ends": Limits(max_new_tokens=7, eos_ids=frozenset({0, 3})),
    "stops": Limits(max_new_tokens=7, stop_strings=("bc", "dd", "a"), decode=spell),
    "both": Limits(max_new_tokens=7, eos_ids=frozenset({2}), stop_strings=("bc", "dd"), decode=spell),
}


@pytest.mark.parametrize(
    ("temperature", "is_coupled"), [(0.0, False), (0.7, False), (1.0, False), (0.7, True)]
)
@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS)
def test_a_draft_changes_no_token(limits, temperature, is_coupled):
    """150 responses with drafts of every kind, ends and stops inside what is accepted: tokens, ends, log-probs.

    Fails if a random number is read at another place, a token behind a wrong one is accepted, what follows an end is
    written, an end at the same token as a stop is called a stop, or rows are mixed up when some have left.
    """
    prompts = make_prompts([1 + i % 3 for i in range(150)], vocab=4)
    uniform_BT = uniforms([(p.id,) for p in prompts], limits.max_new_tokens)

    def answers(drafts=()):
        decoder = Table(4)
        given = {"limits": limits, "uniform_BT": uniform_BT, "student": decoder, "temperature": temperature}
        return sample(prompts, drafts=drafts, is_coupled=is_coupled, **given), decoder

    plain, _ = answers()
    drafts = spoilt(plain, 4, np.random.default_rng(1))
    found, decoder = answers(drafts)
    same(found, plain)
    assert decoder.read, "the drafts were not looked at"
    whole, decoder = answers([r.token_ids for r in plain])
    same(whole, plain)
    assert decoder.steps == 0, "a draft that is right leaves nothing to decode"


def test_each_prompt_has_its_own_draft_and_numbers():
    """In batches sorted by length: drafts that are right leave nothing to decode; greedy beside a drawing expert."""
    prompts = make_prompts([1 + (5 * i) % 7 for i in range(40)], vocab=4)
    names, limits = [(p.id,) for p in prompts], Limits(max_new_tokens=5)
    plain = sample_all(prompts, names, limits=limits, student=lambda: Table(4))
    made: list[Table] = []

    def student() -> Table:
        made.append(Table(4))
        return made[-1]

    drafts = [r.token_ids for r in plain]
    same(sample_all(prompts, names, limits=limits, batch_size=9, student=student, drafts=drafts), plain)
    assert [t.steps for t in made] == [0] * 5
    mixed = {"student": Table(4, seed=1), "expert": Table(4, seed=2), "temperature": 0.0}
    plan_BT = np.tile([True, False, True, True, False], (40, 1))
    whole = sample(prompts, limits=limits, uniform_BT=uniforms(names, 5), expert_writes_BT=plan_BT, **mixed)
    found = sample_all(
        prompts,
        names,
        limits=limits,
        student=lambda: mixed["student"],
        expert=lambda: mixed["expert"],
        temperature=0.0,
        expert_writes_BT=plan_BT,
    )
    same(found, whole)


def test_only_what_something_may_follow_is_read():
    """The token that ends a draft and whatever stands behind it, and the last that fits, need no place."""
    prompts = make_prompts([2] * 4, vocab=4)
    decoder = Table(4)
    limits = Limits(max_new_tokens=4, eos_ids=frozenset({3}))
    drafts = [(0, 1, 3, 2), (0, 1, 2, 0, 1), (), (3,)]
    sample(prompts, limits=limits, uniform_BT=np.full((4, 4), 0.5), student=decoder, drafts=drafts)
    assert decoder.read == [(0, 1), (0, 1, 2), (), ()]


def test_two_writers_and_decoders_that_cannot_follow_ignore_drafts():
    class Plain:
        room = None

        def __init__(self) -> None:
            table = Table(4)
            self.start, self.step, self.keep = table.start, table.step, table.keep

    assert not isinstance(Plain(), Follower)
    prompts = make_prompts([2] * 6, vocab=4)
    limits, uniform_BT = Limits(max_new_tokens=5), uniforms([(p.id,) for p in prompts], 5)
    given = {"limits": limits, "uniform_BT": uniform_BT}
    drafts = [(1, 1, 1)] * 6
    same(
        sample(prompts, student=Plain(), drafts=drafts, **given),
        sample(prompts, student=Plain(), **given),
    )
    plan_BT = np.tile([True, False, True, False, True], (6, 1))
    student, expert = Table(4, seed=1), Table(4, seed=2)
    mixed = sample(prompts, student=student, expert=expert, expert_writes_BT=plan_BT, drafts=drafts, **given)
    assert not student.read
    assert not expert.read
    alone = sample(prompts, expert=Table(4, seed=2), drafts=drafts, **given)
    assert not any(any(r.is_student) for r in alone)
    assert [r.is_student for r in mixed] == [(False, True, False, True, False)] * 6


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_thousands_of_drafts_of_a_model(dtype, temperature):
    """2,000 responses of a transformers model, batches sorted by length, rows leaving at all times: the same tokens.

    In double precision all of them. In single precision a law read along a draft differs from a stepped one by
    rounding, some 1e-6: responses may part only where the choice hung on less than 1e-4 of probability.
    """
    model = make_model(seed=4).to(dtype)
    prompts = make_prompts([1 + i % 7 for i in range(2000)], seed=5)
    names = [(p.id,) for p in prompts]
    limits = Limits(max_new_tokens=10, eos_ids=frozenset({3, 5, 11}))

    def answers(drafts=()):
        return sample_all(
            prompts,
            names,
            limits=limits,
            batch_size=700,
            student=lambda: HFDecoder(model, vocab_size=VOCAB),
            temperature=temperature,
            drafts=drafts,
        )

    plain = answers()
    found = answers(spoilt(plain, VOCAB, np.random.default_rng(2)))
    apart = [i for i, (a, b) in enumerate(zip(found, plain, strict=True)) if a.token_ids != b.token_ids]
    if dtype is torch.float64:
        assert not apart
        same(found, plain, tolerance=1e-12)
    for i in apart:
        at = agreement(found[i].token_ids, plain[i].token_ids)
        prefix = torch.tensor([prompts[i].token_ids + plain[i].token_ids[:at]])
        with torch.no_grad():
            prob_V = model(prefix).logits[0, -1].double().softmax(-1)
        top = prob_V.topk(2).values
        u = uniforms([names[i]], limits.max_new_tokens)[0, at]
        margin = top[0] - top[1] if temperature == 0 else (prob_V.cumsum(0) - u).abs().min()
        assert margin < 1e-4
    assert len(apart) <= 2


# --- the same distribution -----------------------------------------------------------------------------------------------


def outcomes(responses: Sequence[Response]) -> np.ndarray:
    return np.bincount([9 * a + 3 * b + c for a, b, c in (r.token_ids for r in responses)], minlength=27)


@pytest.mark.parametrize(("draft", "is_coupled"), [((0, 0, 0), False), ((1, 2), False), ((1, 2), True)])
def test_the_distribution_is_the_students(draft, is_coupled):
    """V = 3, three tokens, one draft for all: the 27 outcomes against the enumerated law, and against as many plain
    responses with other numbers; chi-square of 2,000 each, false alarm below 1e-6 for new names (they are fixed).

    Fails if a draft token is accepted with any probability but its own, or replaced by anything but the residual.
    """
    n, table = 2000, Table(3, seed=3, sharpness=0.5)
    prompts = [Prompt(id=str(i), token_ids=(1,)) for i in range(n)]
    limits = Limits(max_new_tokens=3)

    def drawn(what, drafts=()):
        numbers = uniforms([(what, p.id) for p in prompts], 3)
        return sample(
            prompts, limits=limits, uniform_BT=numbers, student=table, drafts=drafts, is_coupled=is_coupled
        )

    count = outcomes(drawn("drafted", [draft] * n))
    logp = [
        sum(float(table.law((1, *s[:t]))[s[t]]) for t in range(3))
        for s in itertools.product(range(3), repeat=3)
    ]
    expected = n * np.exp(logp)
    assert expected.min() > 5
    assert stats.chisquare(count, expected).pvalue > 1e-6
    plain = outcomes(drawn("plain"))
    assert stats.chi2_contingency(np.array([count, plain])).pvalue > 1e-6
    kept = count.reshape(3, 3, 3)[tuple(draft)].sum() / n
    exact = math.exp(sum(float(table.law((1, *draft[:t]))[draft[t]]) for t in range(len(draft))))
    assert abs(kept - exact) < 6 * math.sqrt(exact * (1 - exact) / n)
