"""What a probe measures, against definitions written out: losses over dense laws, tokens chosen by sorting, windows token by
token, distances over all permutations."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from small import EXACT_TOLERANCE, VOCAB, as_trajectories, make_model, make_prompts, respond
from understudy.diagnostics.fork_probe import (
    Looking,
    Pair,
    check_embedding,
    choose_tokens,
    look_ahead,
    token_losses,
    windows_of,
)
from understudy.errors import ConfigError, DataError
from understudy.experts.expert import OracleExpert
from understudy.experts.local import LocalExpert
from understudy.experts.noisy import Additive, NoisyExpert
from understudy.objectives.divergences import EXPERT_PROB_FLOOR
from understudy.randomness import uniforms
from understudy.rollouts.sampler import Limits
from understudy.rollouts.windows import Spot
from understudy.tasks.modular_addition import ModularAddition

LIMITS = Limits(max_new_tokens=14, eos_ids=frozenset({3, 11}))
NO_END = replace(LIMITS, eos_ids=frozenset())


def make_pair(
    *, limits: Limits = LIMITS, batch_size: int = 4, expert_seed: int = 2, noise: float = 0.0
) -> Pair:
    expert = LocalExpert(make_model("llama", seed=expert_seed).double().requires_grad_(False), VOCAB)
    return Pair(
        student=make_model("llama", seed=1).double(),
        expert=NoisyExpert(expert, Additive(noise, None)) if noise else expert,
        vocab_size=VOCAB,
        limits=limits,
        seed=3,
        batch_size=batch_size,
    )


def responses(pair: Pair, lengths: Sequence[int] = (4, 9, 1, 6, 3, 5, 2)):
    prompts = make_prompts(lengths, seed=1)
    return as_trajectories(prompts, respond(pair.student, prompts, limits=pair.limits))


def law(model, ids: Sequence[int]) -> list[float]:
    """Log-probabilities of the next token, from nothing."""
    with torch.no_grad():
        return model(torch.tensor([list(ids)])).logits[0, -1].log_softmax(-1).tolist()


def test_losses_are_sums_over_the_whole_vocabulary():
    pair = make_pair(noise=0.3)
    made = responses(pair)
    assert len({len(t.response_ids) for t in made}) > 2
    found = token_losses(pair, made)
    clean = pair.expert.clean.model
    for t, row in zip(made, found, strict=True):
        for at, value in enumerate(row):
            prefix = (*t.prompt.token_ids, *t.response_ids[:at])
            p, q = law(pair.student, prefix), law(clean, prefix)
            q = [math.log(0.7 * math.exp(x) + 0.3 / VOCAB) for x in q]
            expected = math.fsum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True))
            assert value == pytest.approx(expected, abs=EXACT_TOLERANCE)
    for batch_size in (1, 3, 100):
        again = token_losses(replace(pair, batch_size=batch_size), made)
        for row, other in zip(found, again, strict=True):
            assert other == pytest.approx(row, abs=EXACT_TOLERANCE)


def test_a_forbidden_token_costs_much_and_not_infinitely():
    """An exact law allows one token; the student spreads over five. p sum (log p - log floor) over the others."""
    task = ModularAddition(modulus=5, length=4, seed=1)
    oracle = task.oracle()
    vocab = oracle.vocab_size
    student = make_model("llama", vocab=vocab).double()
    limits = Limits(max_new_tokens=4)
    expert = OracleExpert(oracle, "sum")
    pair = Pair(student=student, expert=expert, vocab_size=vocab, limits=limits, seed=0, batch_size=9)
    prompts = task.prompts("train", 0, 3)
    made = as_trajectories(prompts, respond(student, prompts, limits=limits, vocab=vocab))
    for t, row in zip(made, token_losses(pair, made), strict=True):
        for at, value in enumerate(row):
            said = t.response_ids[:at]
            q = oracle.logp_BTV([t.prompt], [said])[0, -1].tolist()
            p = law(student, (*t.prompt.token_ids, *said))
            expected = math.fsum(
                math.exp(a) * (a - max(b, math.log(EXPERT_PROB_FLOOR))) for a, b in zip(p, q, strict=True)
            )
            assert value == pytest.approx(expected, rel=1e-6)
            assert value > 5


def stated(losses, group, quantile, spacing=1):
    """Members of a group by the definition: (trajectory, position)."""
    found = set()
    for b, row in enumerate(losses):
        order, top = sorted(row), len(row) - 1
        high = order[math.ceil(round(quantile * top, 6))]
        low = order[math.floor(round((1 - quantile) * top, 6))]
        is_high = {t for t, x in enumerate(row) if x >= high and x > 0}
        kept = []
        for t in sorted(is_high, key=lambda t: (-row[t], t)):
            if all(abs(t - other) >= spacing for other in kept):
                kept.append(t)
        chosen = {
            "high": kept,
            "low": [t for t, x in enumerate(row) if x <= low and t not in kept],
            "random": range(len(row)),
        }[group]
        found |= {(b, t) for t in chosen}
    return found


def named(chosen, made):
    place = {t.id: b for b, t in enumerate(made)}
    return [(place[c.spot.trajectory.id], c.spot.position) for c in chosen]


@pytest.mark.parametrize("quantile", [0.9775, 0.7, 0.0])
@pytest.mark.parametrize("spacing", [1, 3])
def test_groups_are_as_stated(quantile, spacing):
    """Members, spread over responses, the right losses; more of a group begin with fewer; the seed decides.

    Losses of 0 stand in the last two responses: never high.
    """
    pair = make_pair(limits=NO_END)
    made = responses(pair)
    losses = [*token_losses(pair, made)[:-2], [0.0] * 14, [0.0] * 13 + [0.5]]
    most = {group: len(stated(losses, group, quantile, spacing)) for group in ("high", "random", "low")}
    how = {"quantile": quantile, "spacing": spacing}
    for group, count in most.items():
        everything = choose_tokens(made, losses, per_group=count, seed=5, groups=(group,), **how)[group]
        places = named(everything, made)
        assert set(places) == stated(losses, group, quantile, spacing)
        assert len(places) == count
        for chosen, (b, t) in zip(everything, places, strict=True):
            assert chosen.loss_nats == losses[b][t]
        few = choose_tokens(made, losses, per_group=count // 2 + 1, seed=5, groups=(group,), **how)[group]
        assert few == everything[: count // 2 + 1]
        other = choose_tokens(made, losses, per_group=count, seed=6, groups=(group,), **how)[group]
        assert set(named(other, made)) == set(places)
        assert named(other, made) != places
        if group != "random":
            for n in range(1, count + 1):
                # Whoever has two of them must not come twice before everybody has come once.
                taken = Counter(b for b, _ in places[:n])
                left = Counter(b for b, _ in places[n:])
                assert all(taken[b] >= max(taken.values()) - 1 for b in left)
        with pytest.raises(
            DataError, match=f"{count + 1} {group} tokens are wanted, and 7 responses have {count}"
        ):
            choose_tokens(made, losses, per_group=count + 1, seed=5, groups=(group,), **how)


def test_random_tokens_are_uniform_over_tokens_not_over_responses():
    """A response of 13 tokens and one of 1: the short one's token is the first of two with probability 1/14 a draw.

    Of 600 seeds it is among the first two in 86 on average (2/14); at 1/2 a response it would be in 450. Outside 50 .. 130
    has probability 1e-6.
    """
    pair = make_pair(limits=NO_END)
    long, short = responses(pair, (4, 3))
    short = replace(short, response_ids=short.response_ids[:1], is_student=(True,), logp=(0.0,))
    losses = [[0.1] * len(long.response_ids), [0.1]]
    hits = 0
    for seed in range(600):
        chosen = choose_tokens(
            [long, short], losses, per_group=2, quantile=0.5, seed=seed, groups=("random",)
        )
        hits += any(c.spot.trajectory is short for c in chosen["random"])
    assert 50 <= hits <= 130


def said_alone(
    model, spot: Spot, number_t: Sequence[float], temperature: float, limits: Limits
) -> tuple[int, ...]:
    """A window by the definition, one token after another."""
    said, added = list(spot.said_ids), []
    while True:
        logp = law(model, (*spot.trajectory.prompt.token_ids, *said))
        if temperature == 0:
            token = max(range(VOCAB), key=lambda v: logp[v])
        else:
            mass = [math.exp((x - max(logp)) / temperature) for x in logp]
            token, goal = 0, number_t[len(added)] * math.fsum(mass)
            while math.fsum(mass[: token + 1]) <= goal:
                token += 1
        said.append(token)
        added.append(token)
        if token in limits.eos_ids or len(said) == limits.max_new_tokens or len(added) == len(number_t):
            return tuple(added)


def brute_distance(a: Sequence[Sequence[float]], b: Sequence[Sequence[float]]) -> float:
    """The cheapest plan between two windows of vectors: every token as often as both lengths need, all permutations."""

    def cost(x, y):
        norm = math.sqrt(math.fsum(u * u for u in x)) * math.sqrt(math.fsum(v * v for v in y))
        return 1 - math.fsum(u * v for u, v in zip(x, y, strict=True)) / norm

    whole = math.lcm(len(a), len(b))
    rows = [x for x in a for _ in range(whole // len(a))]
    columns = [y for y in b for _ in range(whole // len(b))]
    table = [[cost(x, y) for y in columns] for x in rows]
    return min(
        math.fsum(table[i][j] for i, j in enumerate(order)) / whole
        for order in itertools.permutations(range(whole))
    )


def vectors_of(pair: Pair, embedding: str, spot: Spot, window: Sequence[int]) -> list[list[float]]:
    expert = pair.expert.model
    if embedding == "expert-hidden":
        ids = torch.tensor([[*spot.prefix_ids, *window]])
        with torch.no_grad():
            hidden = expert.model(input_ids=ids).last_hidden_state[0]
        return hidden[len(spot.prefix_ids) :].tolist()
    table = (pair.student if embedding == "student" else expert).get_input_embeddings().weight
    return [table[token].tolist() for token in window]


@pytest.mark.parametrize("embedding", ["expert", "student", "expert-hidden"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_windows_and_distances_are_those_of_each_place_alone(embedding, temperature):
    """Fails if who writes is exchanged, if a window begins behind its token, or if vectors are another model's."""
    pair = make_pair()
    made = responses(pair, (4, 9, 1, 6, 3))
    spots = [Spot(trajectory=t, position=k) for t in made for k in range(0, len(t.response_ids), 2)]
    assert len(spots) >= 8
    looking = Looking(window_tokens=5, temperature=temperature, embedding=embedding)
    found, seconds = look_ahead(pair, spots, looking)
    assert set(seconds) == {"student windows", "expert windows", "transport"}
    lengths = set()
    for spot, ahead in zip(spots, found, strict=True):
        for who, model, window in (
            ("student", pair.student, ahead.student),
            ("expert", pair.expert.model, ahead.expert),
        ):
            t = spot.trajectory
            name = (3, "window", who, t.round, t.prompt.id, t.sample_index, spot.position)
            assert window.token_ids == said_alone(model, spot, uniforms([name], 5)[0], temperature, LIMITS), (
                who
            )
        a, b = (vectors_of(pair, embedding, spot, w.token_ids) for w in (ahead.student, ahead.expert))
        lengths.add((len(a), len(b)))
        if math.lcm(len(a), len(b)) <= 6:
            assert ahead.distance == pytest.approx(brute_distance(a, b), abs=1e-6)
    assert len(lengths) > 2
    assert any(ahead.distance > 0.1 for ahead in found)
    one_by_one = [look_ahead(pair, [spot], looking)[0][0] for spot in spots]
    assert [ahead.distance for ahead in one_by_one] == pytest.approx([a.distance for a in found], abs=1e-8)
    assert [ahead.student.token_ids for ahead in one_by_one] == [a.student.token_ids for a in found]


@pytest.mark.parametrize("embedding", ["expert", "expert-hidden"])
def test_a_student_that_is_its_expert(embedding):
    """No loss, the same windows, distance 0; and no high-loss tokens to speak of."""
    pair = make_pair(expert_seed=1)
    made = responses(pair)
    losses = token_losses(pair, made)
    assert max(abs(x) for row in losses for x in row) < 1e-12
    spots = [Spot(trajectory=t, position=0) for t in made]
    found, _ = look_ahead(pair, spots, Looking(window_tokens=6, embedding=embedding))
    assert [a.distance for a in found] == [0.0] * len(made)
    assert [a.student.token_ids for a in found] == [a.expert.token_ids for a in found]
    with pytest.raises(DataError, match="1 high tokens are wanted, and 7 responses have 0"):
        choose_tokens(made, [[0.0] * len(row) for row in losses], per_group=1, quantile=0.9, seed=0)


def test_vectors_that_nobody_has():
    oracle = OracleExpert(ModularAddition(modulus=5, length=4, seed=1).oracle(), "sum")
    for embedding in ("expert", "expert-hidden"):
        with pytest.raises(ConfigError, match=r"\(sum\) is no language model.*--embedding student"):
            check_embedding(oracle, embedding)
    check_embedding(oracle, "student")
    check_embedding(make_pair(noise=0.1).expert, "expert")


def test_the_students_mode_is_given_back():
    pair = make_pair()
    pair.student.train()
    token_losses(pair, responses(pair))
    spot = Spot(trajectory=responses(pair)[0], position=1)
    windows_of(pair, "student", [spot], Looking(window_tokens=2))
    assert pair.student.training
