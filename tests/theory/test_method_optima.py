"""The optima of the methods against plain Python: prefixes as tuples in a dictionary."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest

from understudy.theory.experiments import method_optima as experiment
from understudy.theory.method_optima import (
    CHOICES,
    Choice,
    World,
    distance,
    extend,
    from_offsets,
    greedy,
    prefix_weights,
    quality,
    solve,
    tied_forward_map,
    tied_offline,
    tied_reverse_map,
    to_offsets,
    untrained_share,
)
from understudy.theory.outcome import Row

DIGITS = np.array([[1, 2, 0, 2], [0, 1, 1, 2]])
V, H = 3, 4
Prefix = tuple[int, tuple[int, ...]]
"""Prompt and tokens."""


def world_of(**changes) -> World:
    return World(**{"digits_PH": DIGITS, "num_tokens": V, "eta": 0.2, **changes})


# --- the oracle: definitions in Python floats --------------------------------------------------------------------------


def kl(a, b) -> float:
    return math.fsum(x * math.log(x / y) for x, y in zip(a, b, strict=True) if x > 0)


def clean_chain(digits) -> list[int]:
    return [sum(digits[: t + 1]) % V for t in range(len(digits))]


def next_clean(digits, prefix) -> int:
    return ((prefix[-1] if prefix else 0) + int(digits[len(prefix)])) % V


def noisy_law(world: World, digits, prefix) -> list[float]:
    """By token."""
    is_right = list(prefix) == clean_chain(digits)[: len(prefix)]
    if world.is_absorbing and not is_right:
        return [1 / V] * V
    clean = next_clean(digits, prefix)
    if world.error == "uniform":
        return [1 - world.eta + world.eta / V if v == clean else world.eta / V for v in range(V)]
    return [1 - world.eta if v == clean else world.eta / (V - 1) for v in range(V)]


# --- worlds and fixed points ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", ["uniform", "other"])
@pytest.mark.parametrize("is_absorbing", [True, False])
def test_the_world_is_its_definition(error, is_absorbing):
    world = world_of(error=error, is_absorbing=is_absorbing)
    for t in range(H):
        law_PNV = world.expert_law(t)
        for p, digits in enumerate(DIGITS.tolist()):
            for n, prefix in enumerate(itertools.product(range(V), repeat=t)):
                assert law_PNV[p, n].tolist() == pytest.approx(noisy_law(world, digits, prefix), abs=1e-15)
                assert world.is_right(t)[p, n] == (list(prefix) == clean_chain(digits)[:t])
                assert world.clean_token(t)[p, n] == next_clean(digits, prefix)


def fixed_point(world: World, writer: str, loss: str, share: float, is_tied: bool):
    """All rows at once, again and again from a random start: prefixes by the student, then every row's closed form."""
    start = np.random.default_rng(8)
    prefixes = [
        (p, prefix) for p in range(2) for t in range(H) for prefix in itertools.product(range(V), repeat=t)
    ]
    student = {key: start.dirichlet([1.0] * V).tolist() for key in prefixes}
    mass: dict[Prefix, float] = {}
    for _ in range(H + 2):
        mass = {}
        for by_expert, part in ((True, 1 - share), (False, share)):
            reach: dict[Prefix, float] = {(p, ()): part for p in range(2)}
            for p, prefix in prefixes:
                here = reach[p, prefix]
                law = noisy_law(world, DIGITS[p], prefix) if by_expert else student[p, prefix]
                if writer == "greedy" and not by_expert:
                    law = [float(v == law.index(max(law))) for v in range(V)]
                for v in range(V):
                    reach[p, (*prefix, v)] = here * law[v]
                mass[p, prefix] = mass.get((p, prefix), 0.0) + here
        groups: dict = {}
        for p, prefix in prefixes:
            groups.setdefault(len(prefix) if is_tied else (p, prefix), []).append((p, prefix))
        for keys in groups.values():
            weights = [mass[key] if is_tied else 1.0 for key in keys]
            laws = []
            for p, prefix in keys:
                clean, law = next_clean(DIGITS[p], prefix), noisy_law(world, DIGITS[p], prefix)
                laws.append([law[(clean + k) % V] for k in range(V)])
            row = by_hand(loss, laws, weights, world.rate)
            for p, prefix in keys:
                clean = next_clean(DIGITS[p], prefix)
                student[p, prefix] = [row[(v - clean) % V] for v in range(V)]
    return student, mass


def by_hand(loss: str, laws, weights, rate: float) -> list[float]:
    total = math.fsum(weights)
    if loss == "reverse":
        row = [
            math.exp(math.fsum(w * math.log(q[k]) for q, w in zip(laws, weights, strict=True)) / total)
            for k in range(V)
        ]
        return [x / math.fsum(row) for x in row]
    row = [math.fsum(w * q[k] for q, w in zip(laws, weights, strict=True)) / total for k in range(V)]
    return [max(0.0, (x - rate / V) / (1 - rate)) for x in row] if loss == "known" else row


@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize(
    ("name", "writer", "loss", "share"),
    [
        ("kd", "sample", "forward", 0.0),
        ("opd-f", "sample", "forward", 1.0),
        ("opd-r", "sample", "reverse", 1.0),
        ("nail-r", "greedy", "reverse", 1.0),
        ("nail-known", "greedy", "known", 1.0),
        ("sft-known", "sample", "known", 0.0),
        ("mixed writers", "sample", "reverse", 0.3),
    ],
)
def test_the_fixed_point_by_iteration(name, writer, loss, share, is_tied):
    world = world_of(error="other")
    choice = CHOICES.get(name, Choice(writer="sequences", loss="reverse", student_share=share))
    optimum = solve(world, choice, is_tied=is_tied)
    student, mass = fixed_point(world, writer, loss, share, is_tied)
    for p in range(2):
        for t in range(H):
            for n, prefix in enumerate(itertools.product(range(V), repeat=t)):
                assert optimum.weights[t][p, n] == pytest.approx(mass[p, prefix], abs=1e-12)
                if mass[p, prefix] > 1e-12:
                    assert optimum.policy[t][p, n].tolist() == pytest.approx(student[p, prefix], abs=1e-11)
    again = prefix_weights(world, choice, optimum.policy)
    assert all(np.abs(a - b).max() < 1e-15 for a, b in zip(again, optimum.weights, strict=True))


def test_dagger_by_rounds():
    """One round is kd; two rounds by hand at position 3, where the pool's share of right prefixes first differs."""
    world = world_of()
    choice = replace(CHOICES["dagger"], decay=0.25)
    one = solve(world, replace(choice, rounds=1), is_tied=True).tied_HV
    both = solve(world, replace(choice, rounds=2), is_tied=True)
    two = both.tied_HV
    kd = solve(world, CHOICES["kd"], is_tied=True).tied_HV
    assert one is not None
    assert two is not None
    assert kd is not None
    assert np.abs(one - kd).max() < 1e-15
    a = 0.8 + 0.2 / 3
    p = a * a + (1 - a) / 3  # position 2 of kd, and of every round
    share = 0.5 * a * a + 0.5 * a * (0.25 * a + 0.75 * p)
    assert two[2, 0] == pytest.approx(share * a + (1 - share) / 3, abs=1e-15)
    assert both.weights[2][0] @ world.is_right(2)[0] == pytest.approx(share, abs=1e-15)
    assert [w.sum(-1).tolist() for w in both.weights] == [pytest.approx([1.0, 1.0], abs=1e-14)] * H
    with pytest.raises(ValueError, match="rounds must be at least 1, got 0"):
        solve(world, replace(choice, rounds=0), is_tied=True)


def test_offsets_by_hand():
    """Token 2 is clean: offsets 0, 1, 2 are the tokens 2, 0, 1."""
    law_PNV = from_offsets(np.array([0.5, 0.3, 0.2]), np.array([[2]]))
    assert law_PNV.tolist() == [[[0.3, 0.2, 0.5]]]
    assert to_offsets(law_PNV, np.array([[2]])).tolist() == [[[0.5, 0.3, 0.2]]]


def test_ties_go_to_the_lowest_token():
    assert greedy(np.array([[[0.4, 0.4, 0.2], [0.2, 0.4, 0.4]]])).tolist() == [[[1, 0, 0], [0, 1, 0]]]


# --- closed forms and qualities ---------------------------------------------------------------------------------------


def test_maps_by_hand():
    """V = 7, eta = 0.2: the first positions of the collapse, p(right) from 1 - 0.2 * 6/7."""
    a = 1 - 0.2 * 6 / 7
    assert tied_forward_map(a, 7, 5).round(2).tolist() == [0.83, 0.71, 0.55, 0.36, 0.22]
    assert tied_reverse_map(a, 7, 5).round(2).tolist() == [0.83, 0.73, 0.56, 0.34, 0.20]
    assert tied_offline(a, 7, 3, a)[2] == pytest.approx(a**3 + (1 - a**2) / 7, abs=1e-15)
    assert tied_reverse_map(1.0, 3, 1)[0] == pytest.approx(1 / (1 + 2e-10), abs=1e-16)


def test_quality_by_enumeration():
    """All responses of a random policy, one by one."""
    world, generator = world_of(), np.random.default_rng(9)
    policy = tuple(generator.dirichlet([1.0] * V, size=(2, V**t)) for t in range(H))
    found = quality(world, policy)
    chain, right, margins, kls, greedy_hits = np.zeros(H), np.zeros(H), np.full(H, np.inf), [], 0
    for p, digits in enumerate(DIGITS.tolist()):
        index, reached, clean = 0, 1.0, clean_chain(digits)
        for t, token in enumerate(clean):
            law = policy[t][p, index].tolist()
            reached *= law[token]
            right[t] += law[token] / 2
            chain[t] += reached / 2
            margins[t] = min(margins[t], law[token] - max(x for v, x in enumerate(law) if v != token))
            kls.append(kl(noisy_law(world, digits, clean[:t]), law))
            index = index * V + token
        index, written = 0, []
        for t in range(H):
            law = policy[t][p, index].tolist()
            written.append(law.index(max(law)))
            index = index * V + written[-1]
        greedy_hits += written == clean
    assert found.chain_H.tolist() == pytest.approx(chain.tolist(), abs=1e-15)
    assert found.right_H.tolist() == pytest.approx(right.tolist(), abs=1e-15)
    assert found.margin_H.tolist() == pytest.approx(margins.tolist(), abs=1e-15)
    assert found.noisy_kl_nats == pytest.approx(math.fsum(kls) / len(kls), abs=1e-14)
    assert found.greedy_accuracy == greedy_hits / 2
    assert found.success == found.chain_H[-1]
    clean_policy = tuple(np.eye(V)[world.clean_token(t)] for t in range(H))
    assert quality(world, clean_policy).greedy_accuracy == 1.0


def test_distances_and_what_greedy_prefixes_leave_untrained():
    world = world_of(is_absorbing=False)
    optimum = solve(world, CHOICES["nail-f"], is_tied=False)
    a = 0.8 + 0.2 / 3
    assert distance(world, optimum, "noisy", where="trained") < 1e-15
    assert distance(world, optimum, "clean", where="right") == pytest.approx(1 - a, abs=1e-15)
    # Off the greedy path the rows are as they began; the noisy law is `a` away from them in one token.
    everywhere = replace(optimum, weights=tuple(np.ones_like(w) for w in optimum.weights))
    assert distance(world, everywhere, "noisy", where="trained") == pytest.approx(a - 1 / 3, abs=1e-15)
    assert untrained_share(world, optimum) == pytest.approx(1 - a**3, abs=1e-15)
    assert untrained_share(world, solve(world, CHOICES["opd-f"], is_tied=False)) == 0.0


def test_a_point_mass_is_one_exactly():
    """Otherwise the poisoned prefixes would count as trained, with a probability of 1e-17."""
    for name in ("opd-known", "nail-known"):
        weights = solve(world_of(), CHOICES[name], is_tied=False).weights
        assert {float(x) for w in weights for x in w.ravel()} == {0.0, 1.0}


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"digits in 0\.\.2"):
        world_of(digits_PH=np.array([[3]]))
    with pytest.raises(ValueError, match=r"eta must be in \[0, 1\), got 1"):
        world_of(eta=1.0)
    with pytest.raises(ValueError, match=r"rate below 1, got 1\.05"):
        solve(world_of(eta=0.7, error="other"), CHOICES["nail-known"], is_tied=True)


# --- the experiment ---------------------------------------------------------------------------------------------------

SMALL = experiment.Settings(num_tokens=4, horizon=5, num_prompts=3, eta=0.3, dagger_rounds=4)


def row_named(outcome, start: str) -> Row:
    (row,) = [row for row in outcome.rows if row.claim.startswith(start)]
    return row


def test_the_experiment_says_what_it_should():
    shares: list[float] = []
    outcome = experiment.run(1, shares.append, SMALL)
    assert [row.claim for row in outcome.rows if row.holds != "yes"] == []
    assert all(len(row.claim) < 80 for row in outcome.rows)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert len(shares) > 10
    record = json.loads(json.dumps(outcome.as_record()))
    assert record["rows"] == outcome.as_record()["rows"]
    assert record["settings"] == outcome.settings
    again, other = experiment.run(1, settings=SMALL), experiment.run(2, settings=SMALL)
    assert [row.measured for row in again.rows] == [row.measured for row in outcome.rows]
    assert other.is_as_expected
    with pytest.raises(ValueError, match="three positions"):
        experiment.run(settings=replace(SMALL, horizon=2))


def test_the_inequalities_of_the_experiment_could_fail():
    """The orders are strict from the third position on: the other way round they would not hold."""
    world = world_of()
    right = {
        name: tied[:, 0]
        for name in ("kd", "dagger", "opd-f")
        if (tied := solve(world, CHOICES[name], is_tied=True).tied_HV) is not None
    }
    assert (right["kd"][2:] > right["dagger"][2:] + 1e-3).all()
    assert (right["dagger"][2:] > right["opd-f"][2:] + 1e-3).all()
    # ... and half the growth of a slip, or that of another vocabulary, is out of the tolerance of its row.
    row = row_named(experiment.run(settings=SMALL), "Tied opd-known: a slip")
    assert row.tolerance < 1e-3 * row.bound
    assert row.bound == pytest.approx(1.75**4 - 1, abs=1e-12)


@pytest.mark.parametrize(("writer", "meant"), [("student", [0.6, 0.1, 0.3]), ("greedy", [1.0, 0.0, 0.0])])
def test_a_slip_is_a_uniform_token_in_what_the_student_writes(writer, meant):
    policy = tuple(np.tile([0.6, 0.1, 0.3], (len(DIGITS), V**t, 1)) for t in range(2))
    weights = prefix_weights(world_of(), Choice(writer=writer, loss="forward", slip=0.3), policy)
    expected = [0.7 * p + 0.1 for p in meant]
    assert weights[1][0].tolist() == pytest.approx(expected, abs=1e-15)


def test_slips_grow_linearly_on_greedy_prefixes_and_geometrically_on_sampled_ones():
    rows = experiment.run(settings=SMALL)
    greedy_row = row_named(rows, "Tied nail-known: the same slip")
    sampled_row = row_named(rows, "Tied opd-known: a slip")
    # V = 4, H = 5: four tokens written before the last position, each wrong with probability 3/4 s.
    assert greedy_row.bound == 3.0
    assert greedy_row.measured == pytest.approx(3.0, abs=1e-4)
    assert sampled_row.measured == pytest.approx(1.75**4 - 1, rel=1e-4)
    panel = experiment.run(settings=SMALL).panels[-1]
    shares = {line.label: np.array(line.y) / SMALL.slip for line in panel.lines}
    assert shares["tied nail-known"] == pytest.approx(np.array([0.75, 1.5, 2.25, 3.0]), abs=1e-4)
    assert shares["tied opd-known"] == pytest.approx(1.75 ** np.arange(1, 5) - 1, rel=1e-4)


def test_extend_keeps_the_order_of_prefixes():
    weight_PN = np.array([[0.25, 0.75]])
    law_PNV = np.array([[[0.5, 0.5], [0.2, 0.8]]])
    assert extend(weight_PN, law_PNV)[0].tolist() == pytest.approx([0.125, 0.125, 0.15, 0.6])
