"""Windows from many places of many responses are what a model says that is asked for each of them alone, token by token."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from small import FAMILIES, LOGP_TOLERANCE, VOCAB, make_model, make_prompts
from understudy.errors import DataError
from understudy.experts.expert import OracleExpert
from understudy.experts.local import LocalExpert
from understudy.experts.noisy import Absorbing, Additive, NoisyExpert
from understudy.randomness import uniforms
from understudy.records import Prompt, Trajectory
from understudy.rollouts import hf
from understudy.rollouts.hf import HFDecoder
from understudy.rollouts.sampler import Brancher, Decoder, Limits
from understudy.rollouts.windows import Spot, padded, rollout_windows, write_windows
from understudy.tasks.modular_addition import ModularAddition

LIMITS = Limits(max_new_tokens=16, eos_ids=frozenset({3, 11}))
LENGTHS = (4, 9, 1, 6)
SIZES = (12, 7, 16, 10)
POSITIONS = ((0, 3, 4, 11), (6,), (15, 2), (9, 5, 1))


def spell(token_ids: Sequence[int]) -> str:
    return "".join(chr(ord("a") + t) for t in token_ids)


def trajectories(prompts: Sequence[Prompt], sizes: Sequence[int], vocab: int = VOCAB) -> list[Trajectory]:
    """Responses of random tokens that neither end nor stop anything: it does not matter who said them."""
    rng = np.random.default_rng(5)
    harmless = [v for v in range(vocab) if v not in LIMITS.eos_ids]
    return [
        Trajectory(
            prompt=p,
            sample_index=i % 2,
            response_ids=tuple(rng.choice(harmless, size).tolist()),
            is_student=(True,) * size,
            logp=tuple(-0.1 * (i + k) for k in range(size)),
            temperature=1.0,
            finish="stop",
            round=7,
            student_version=0,
        )
        for i, (p, size) in enumerate(zip(prompts, sizes, strict=True))
    ]


def spots_of(prompts: Sequence[Prompt], vocab: int = VOCAB) -> list[Spot]:
    """Of all trajectories in turn, so that neighbours in the list are seldom of one trajectory."""
    made = [
        Spot(trajectory=t, position=k)
        for t, places in zip(trajectories(prompts, SIZES, vocab), POSITIONS, strict=True)
        for k in places
    ]
    return [made[i] for i in (3, 6, 0, 9, 4, 1, 7, 5, 2, 8)]


Law = Callable[[Prompt, list[int]], list[float]]
"""(prompt, response so far) -> log-probabilities, computed from nothing."""


def law_of(model) -> Law:
    def law(prompt: Prompt, said: list[int]) -> list[float]:
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt.token_ids, *said]])).logits[0, -1, :VOCAB]
        return logits.double().log_softmax(-1).tolist()

    return law


def said_alone(
    law: Law, spot: Spot, number_t: Sequence[float], temperature: float, limits: Limits
) -> tuple[list[int], list[float], str]:
    """The definition: one window, one token after another, all rules written out."""
    said, logps = list(spot.trajectory.response_ids[: spot.position]), []
    added: list[int] = []
    while True:
        logp = law(spot.trajectory.prompt, said)
        if temperature == 0:
            token = max(range(len(logp)), key=lambda v: logp[v])
        else:
            mass = [math.exp((x - max(logp)) / temperature) for x in logp]
            goal, token = number_t[len(added)] * math.fsum(mass), 0
            while math.fsum(mass[: token + 1]) <= goal:
                token += 1
        said.append(token)
        added.append(token)
        logps.append(logp[token])
        if token in limits.eos_ids:
            return added, logps, "eos"
        if limits.decode and any(limits.decode(said).endswith(s) for s in limits.stop_strings):
            return added, logps, "stop"
        if len(said) == limits.max_new_tokens or len(added) == len(number_t):
            return added, logps, "length"


def check(law: Law, writer, spots, *, who: Any = "student", temperature=0.0, limits=LIMITS, size=6, **how):
    """All windows at once against each alone; returns them."""
    found = write_windows(
        spots,
        who=who,
        writer=writer,
        limits=limits,
        window_tokens=size,
        temperature=temperature,
        seed=3,
        **how,
    )
    for spot, window in zip(spots, found, strict=True):
        t = spot.trajectory
        name = (3, "window", who, t.round, t.prompt.id, t.sample_index, spot.position)
        number_t = uniforms([name], size)[0]
        token_ids, logp, finish = said_alone(law, spot, number_t, temperature, limits)
        assert list(window.token_ids) == token_ids
        assert window.finish == finish
        assert window.logp == pytest.approx(logp, abs=LOGP_TOLERANCE)
        assert set(window.is_student) == {who == "student"}
    return found


class Led:
    """The same decoder without its gift of branching."""

    room = None

    def __init__(self, inner: Decoder) -> None:
        self.start, self.step, self.keep = inner.start, inner.step, inner.keep


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("temperature", [0.0, 1.0, 0.6])
@pytest.mark.parametrize("least", [256, 1])
def test_windows_are_those_of_the_prefix_alone(monkeypatch, family, temperature, least):
    """Rows of different lengths, several places in each, texts read at once and in pieces; ends by id, by the limit of the
    response and by a full window.

    Fails if a row is filled from another text, from one token more or less, or sees what its text goes on with; if numbers
    go by the slot; if the limit is that of the window alone.
    """
    monkeypatch.setattr(hf, "MIN_PIECE_TOKENS_CPU", least)
    model, spots = make_model(family, seed=1), spots_of(make_prompts(LENGTHS, seed=1))
    writer = lambda: HFDecoder(model, vocab_size=VOCAB)  # noqa: E731
    found = check(law_of(model), writer, spots, temperature=temperature)
    assert len({w.token_ids for w in found}) > 5
    assert any(len(w.token_ids) == 6 for w in found)
    assert len(found[7].token_ids) == 1, "the last place of a full response leaves room for one token"
    if temperature == 1.0:
        assert any(w.finish == "eos" for w in found)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("batch_size", [1, 3, 4, 100])
def test_neither_batches_nor_order_nor_the_way_of_reading_matter(temperature, batch_size):
    model, spots = make_model("llama", seed=2).double(), spots_of(make_prompts(LENGTHS, seed=1))

    def written(spots, writer, **how):
        rest = {"who": "expert", "limits": LIMITS, "window_tokens": 6, "seed": 3, "temperature": temperature}
        return write_windows(spots, writer=writer, **rest, **how)

    def plain() -> HFDecoder:
        return HFDecoder(model, vocab_size=VOCAB)

    whole = written(spots, plain)
    assert written(spots, plain, batch_size=batch_size) == [
        replace(w, logp=pytest.approx(w.logp, abs=1e-9)) for w in whole
    ]
    led = written(spots, lambda: Led(plain()), batch_size=batch_size)
    assert not isinstance(Led(plain()), Brancher)
    assert [w.token_ids for w in led] == [w.token_ids for w in whole]
    turned = written(spots[::-1], plain, batch_size=batch_size)
    assert [w.token_ids for w in turned[::-1]] == [w.token_ids for w in whole]


def test_who_writes_and_which_sample_have_streams_of_their_own():
    model, spots = make_model("llama", seed=2), spots_of(make_prompts(LENGTHS, seed=1))
    other = [replace(s, trajectory=replace(s.trajectory, sample_index=5)) for s in spots]
    later = [replace(s, trajectory=replace(s.trajectory, round=8)) for s in spots]
    found = [
        [
            w.token_ids
            for w in check(
                law_of(model),
                lambda: HFDecoder(model, vocab_size=VOCAB),
                chosen,
                who=who,
                temperature=1.0,
            )
        ]
        for chosen, who in ((spots, "student"), (spots, "expert"), (other, "student"), (later, "student"))
    ]
    for i, a in enumerate(found):
        for b in found[:i]:
            assert sum(x == y for x, y in zip(a, b, strict=True)) <= 3


def test_a_stop_string_may_begin_before_the_window():
    """The response up to the spot counts, as it does in a rollout; but a window is only what came after it.

    Fails if stops are looked for in the window alone, or too far back.
    """
    model, (prompt,) = make_model("llama", seed=1), make_prompts((4,), seed=1)
    (t,) = trajectories([prompt], (12,))
    writer = lambda: HFDecoder(model, vocab_size=VOCAB)  # noqa: E731
    spot = Spot(trajectory=t, position=5)
    (free,) = check(law_of(model), writer, [spot])
    begins = spell([t.response_ids[4], free.token_ids[0]])
    inside = spell(free.token_ids[1:3])
    for stop, size in ((begins, 1), (inside, 3), (spell(t.response_ids[2:4]), 6)):
        limits = replace(LIMITS, stop_strings=("~~", stop), decode=spell)
        (found,) = check(law_of(model), writer, [spot], limits=limits)
        assert found.token_ids == free.token_ids[:size]
        assert found.finish == ("stop" if size < 6 else free.finish)


@pytest.mark.parametrize("batch_size", [None, 4])
def test_a_trajectory_is_read_once_a_batch(monkeypatch, batch_size):
    """Up to its last spot and no further, whatever the number of spots; then one token a window at a time.

    Fails if the prefix of every spot is read, or a trajectory's end that nobody asked about.
    """
    monkeypatch.setattr(hf, "MIN_PIECE_TOKENS_CPU", 1)
    model, spots = make_model("llama", seed=1), spots_of(make_prompts(LENGTHS, seed=1))
    read: list[tuple[int, int]] = []
    model.get_input_embeddings().register_forward_hook(
        lambda _, given, __: read.append(tuple(given[0].shape))
    )
    write_windows(
        spots,
        who="student",
        writer=lambda: HFDecoder(model, vocab_size=VOCAB),
        limits=replace(LIMITS, eos_ids=frozenset()),
        window_tokens=6,
        temperature=0.0,
        seed=0,
        batch_size=batch_size,
    )
    texts = [(rows, columns) for rows, columns in read if columns > 1]
    longest = [n + max(places) for n, places in zip(LENGTHS, POSITIONS, strict=True)]
    if batch_size is None:
        assert sum(rows for rows, _ in texts) == len(longest)
        assert max(columns for _, columns in texts) == max(longest)
        assert sum(rows for rows, columns in read if columns == 1) <= len(spots) * 5
    else:
        # A batch may cut a trajectory in two.
        assert sum(rows for rows, _ in texts) <= len(longest) + 2


def test_an_expert_that_adds_noise_branches_too():
    """(1 - eta) p + eta uniform at every token: the law is the noise's, and the trajectory is read once."""
    model, spots = make_model("llama", seed=1), spots_of(make_prompts(LENGTHS, seed=1))
    expert = NoisyExpert(LocalExpert(model, VOCAB), Additive(0.4, None))
    assert isinstance(expert.decoder(), Brancher)
    clean = law_of(model)

    def law(prompt: Prompt, said: list[int]) -> list[float]:
        return [math.log(0.6 * math.exp(x) + 0.4 / VOCAB) for x in clean(prompt, said)]

    for temperature in (0.0, 1.0):
        check(law, expert.decoder, spots, who="expert", temperature=temperature)


def test_noise_that_looks_at_the_prefix_sees_all_of_it():
    """Once a token of the response was not the clean argmax, every law is uniform: here from the first token on at most spots,
    nowhere at those of a trajectory that the clean expert wrote.

    Fails if an expert with a memory is started behind the prefix, as if it had never seen it.
    """
    model, prompts = make_model("llama", seed=1), make_prompts(LENGTHS, seed=1)
    expert = NoisyExpert(LocalExpert(model, VOCAB), Absorbing(Additive(0.1, None)))
    assert not isinstance(expert.decoder(), Brancher)
    clean = law_of(model)

    def law(prompt: Prompt, said: list[int]) -> list[float]:
        for k, token in enumerate(said):
            laws = clean(prompt, said[:k])
            if token != max(range(VOCAB), key=lambda v: laws[v]):
                return [-math.log(VOCAB)] * VOCAB
        return [math.log(0.9 * math.exp(x) + 0.1 / VOCAB) for x in clean(prompt, said)]

    spots = spots_of(prompts)
    greedy: list[int] = []
    for _ in range(8):
        logp = clean(prompts[0], greedy)
        greedy.append(max(range(VOCAB), key=lambda v: logp[v]))
    true = replace(
        spots[0].trajectory, prompt=replace(prompts[0], id="true"), response_ids=tuple(greedy) + (1,) * 4
    )
    spots += [Spot(trajectory=true, position=5), Spot(trajectory=true, position=10)]
    check(law, expert.decoder, spots, who="expert", temperature=1.0, batch_size=5)


def test_a_task_that_knows_its_own_prompts():
    """An oracle reads a prompt for what it is: it must be given the prompt, not a prefix in its place."""
    task = ModularAddition(modulus=5, length=8, seed=1)
    oracle = task.oracle()
    prompts = task.prompts("train", 0, 3)
    responses = [list(p.reference_ids or ())[:8] for p in prompts]
    wrong = [[*responses[0][:2], (responses[0][2] + 1) % 5, *responses[0][3:]], *responses[1:]]
    made = [
        replace(t, response_ids=tuple(ids))
        for t, ids in zip(trajectories(prompts, (8, 8, 8), 5), wrong, strict=True)
    ]
    spots = [Spot(trajectory=t, position=k) for k in (5, 0, 3) for t in made]

    def law(prompt: Prompt, said: list[int]) -> list[float]:
        return oracle.logp_BTV([prompt], [said])[0, -1].tolist()

    limits = Limits(max_new_tokens=8)
    writer = OracleExpert(oracle, "oracle").decoder
    found = check(law, writer, spots, who="expert", limits=limits, size=4)
    assert found[1].token_ids == made[1].response_ids[5:8]
    assert found[0].token_ids != found[1].token_ids


def test_a_text_beyond_the_context_is_one_sentence():
    model, (prompt,) = make_model("gpt2", seed=1), make_prompts((60,), seed=1)
    (t,) = trajectories([prompt], (16,))
    with pytest.raises(DataError, match="does not fit the model's context of 64 positions"):
        check(law_of(model), lambda: HFDecoder(model, vocab_size=VOCAB), [Spot(trajectory=t, position=5)])


def test_windows_of_the_rollout_itself():
    """Its next tokens, the one at the spot first, as they were said."""
    (t,) = trajectories(make_prompts((4,)), (10,))
    long, short = rollout_windows([Spot(trajectory=t, position=3), Spot(trajectory=t, position=7)], 4)
    assert (long.token_ids, long.logp, long.finish) == (t.response_ids[3:7], t.logp[3:7], "length")
    assert (short.token_ids, short.is_student, short.finish) == (t.response_ids[7:], (True,) * 3, "stop")


def test_padding_by_position():
    token_BT, is_real_BT = padded([(0, 5), (7, 0, 0), (4,)], torch.device("cpu"))
    assert token_BT.tolist() == [[0, 5, 0], [7, 0, 0], [4, 0, 0]]
    assert is_real_BT.tolist() == [[True, True, False], [True, True, True], [True, False, False]]
    empty: tuple[Tensor, Tensor] = padded([], torch.device("cpu"))
    assert [x.shape[0] for x in empty] == [0, 0]


def test_no_spots_no_windows():
    model = make_model("llama")
    found = check(law_of(model), lambda: HFDecoder(model, vocab_size=VOCAB), [])
    assert found == []
