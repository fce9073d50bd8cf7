"""Correcting one prefix, against a loop of its own: dense losses, an AdamW written out, windows by argmax one token at a time."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from test_fork_looks import LIMITS, NO_END, make_pair, responses

from small import EXACT_TOLERANCE, VOCAB, flat_weights
from understudy.diagnostics.fork_probe import Looking
from understudy.diagnostics.local_correction import (
    ARMS,
    Correcting,
    Outcome,
    correct,
    summarise,
    window_loss,
)
from understudy.errors import TrainingError
from understudy.objectives.transport import entropic_plan, monotone_plan, token_cost
from understudy.rollouts.sampler import Response
from understudy.rollouts.windows import Spot

ARM = {arm.name: arm for arm in ARMS}
CORRECTING = Correcting(
    steps=4,
    looking=Looking(window_tokens=5),
    window_weight=0.7,
    betas=(0.8, 0.9),
    weight_decay=0.3,
    clip_norm=0.5,
)
RATE = 0.02


def dense_laws(model, prefix: Sequence[int], window: Sequence[int]):
    """Log-probabilities at every token of a window, [n, V], with a graph."""
    logits = model(torch.tensor([[*prefix, *window]])).logits[0]
    return logits[len(prefix) - 1 : -1].log_softmax(-1)


def costs(expert, student_ids: Sequence[int], expert_ids: Sequence[int]):
    table = expert.get_input_embeddings().weight
    return token_cost(torch.tensor([student_ids]), torch.tensor([expert_ids]), table)[0]


def assignment(cost_IJ):
    """The exact plan, [I, J], of windows of any lengths: every token as often as both need, then an assignment."""
    rows, columns = cost_IJ.shape
    whole = math.lcm(rows, columns)
    wide = cost_IJ.repeat_interleave(whole // rows, 0).repeat_interleave(whole // columns, 1)
    plan_IJ = torch.zeros(rows, columns, dtype=torch.float64)
    for i, j in zip(*linear_sum_assignment(wide.numpy()), strict=True):
        plan_IJ[i // (whole // rows), j // (whole // columns)] += 1 / whole
    return plan_IJ


def targets(plan_IJ, expert_ids: Sequence[int]) -> list[dict[int, float]]:
    laws = []
    for row in plan_IJ.tolist():
        law: dict[int, float] = {}
        for token, mass in zip(expert_ids, row, strict=True):
            if mass > 0:
                law[token] = law.get(token, 0.0) + mass / sum(row)
        laws.append(law)
    return laws


def listed(laws: Sequence[dict[int, float]], logp_nV):
    """Mean of KL(y || p) over positions."""
    terms = [y * (math.log(y) - logp_nV[i, v]) for i, law in enumerate(laws) for v, y in law.items()]
    return torch.stack(terms).sum() / len(laws)


def dense_loss(arm: str, student, law_of, expert, prefix, student_ids, expert_ids, *, weight: float):
    """Each arm in its own words."""

    def reverse_kl(window):
        p = dense_laws(student, prefix, window)
        q = law_of(prefix, window).detach()
        return (p.exp() * (p - q)).sum(-1).mean()

    def transported():
        laws = targets(assignment(costs(expert, student_ids, expert_ids)), expert_ids)
        return listed(laws, dense_laws(student, prefix, student_ids))

    if arm == "opd":
        return reverse_kl(student_ids)
    if arm == "near-future":
        return reverse_kl(student_ids) + weight * transported()
    if arm == "window-only":
        return transported()
    if arm == "sft":
        return -dense_laws(student, prefix, expert_ids)[range(len(expert_ids)), list(expert_ids)].mean()
    assert arm == "opd-expert-window"
    return reverse_kl(expert_ids)


def greedy(model, prefix: Sequence[int], count: int) -> tuple[int, ...]:
    ids = list(prefix)
    with torch.no_grad():
        for _ in range(count):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return tuple(ids[len(prefix) :])


def corrected(arm: str, pair, spot: Spot, c: Correcting):
    """The window after an arm's steps, from nothing but torch."""
    model, expert, prefix = copy.deepcopy(pair.student), pair.expert.model, spot.prefix_ids
    count = min(c.looking.window_tokens, pair.limits.max_new_tokens - spot.position)
    expert_ids = greedy(expert, prefix, count)
    params = list(model.parameters())
    first, second = ([torch.zeros_like(p) for p in params] for _ in range(2))
    for step in range(1, c.steps + 1):
        student_ids = greedy(model, prefix, count)
        loss = dense_loss(
            arm, model, lambda *of: dense_laws(expert, *of), expert, prefix, student_ids, expert_ids, weight=c.window_weight
        )  # fmt: skip
        grads = torch.autograd.grad(loss, params, allow_unused=True)
        grads = [torch.zeros_like(p) if g is None else g for p, g in zip(params, grads, strict=True)]
        norm = math.sqrt(sum(float((g**2).sum()) for g in grads))
        with torch.no_grad():
            for p, g, m, v in zip(params, grads, first, second, strict=True):
                g = g * min(1.0, c.clip_norm / (norm + 1e-6))
                m.mul_(c.betas[0]).add_(g, alpha=1 - c.betas[0])
                v.mul_(c.betas[1]).add_(g**2, alpha=1 - c.betas[1])
                p.mul_(1 - RATE * c.weight_decay)
                rise = m / (1 - c.betas[0] ** step)
                p.sub_(RATE * rise / ((v / (1 - c.betas[1] ** step)).sqrt() + 1e-8))
    student_ids = greedy(model, prefix, count)
    cost_IJ = costs(expert, student_ids, expert_ids)
    return student_ids, float((assignment(cost_IJ) * cost_IJ).sum())


def test_every_arm_ends_where_a_loop_of_its_own_does():
    """Two prefixes, five arms: windows token by token, and distances; the arms part.

    Fails if a window is not written anew, an arm trains along the other's window, state or weights are carried over from arm to
    arm, or a mean is a sum.
    """
    pair = make_pair(limits=NO_END)
    before = flat_weights(pair.student)
    made = responses(pair)
    ends = set()
    for spot in (Spot(trajectory=made[i], position=k) for i, k in ((0, 3), (1, 11))):
        found = correct(pair, spot, rate=RATE, correcting=CORRECTING)
        count = min(5, 14 - spot.position)
        assert found.expert_ids == greedy(pair.expert.model, spot.prefix_ids, count)
        assert found.student_ids == greedy(pair.student, spot.prefix_ids, count)
        cost_IJ = costs(pair.expert.model, found.student_ids, found.expert_ids)
        assert found.before == pytest.approx(float((assignment(cost_IJ) * cost_IJ).sum()), abs=1e-7)
        assert set(found.after) == set(found.after_ids) == set(found.seconds) == set(ARM)
        for arm in ARM:
            ids, distance = corrected(arm, pair, spot, CORRECTING)
            assert found.after_ids[arm] == ids, arm
            assert found.after[arm] == pytest.approx(distance, abs=1e-7), arm
        ends.add(tuple(found.after_ids.values()))
        assert torch.equal(flat_weights(pair.student), before)
        assert all(p.grad is None for p in pair.student.parameters())
    assert any(len(set(of)) >= 4 for of in ends), "the arms must not all say the same"


@pytest.mark.parametrize("arm", ARM)
def test_loss_and_gradient_where_lengths_differ_and_the_expert_is_noisy(arm):
    """Windows of 6 and 4 tokens, one of them twice in the expert's; q -> 0.7 q + 0.3 / V. Value and every gradient."""
    pair = make_pair(noise=0.3)
    expert = pair.expert.clean.model
    spot = Spot(trajectory=responses(pair)[1], position=2)
    student_ids, expert_ids = (5, 8, 1, 20, 13, 3), (9, 5, 9, 17)
    windows = [Response(ids, (), (), "length") for ids in (student_ids, expert_ids)]

    def law_of(prefix, window):
        clean = dense_laws(expert, prefix, window)
        return (0.7 * clean.exp() + 0.3 / VOCAB).log()

    ours = window_loss(pair, spot, *windows, ARM[arm], CORRECTING)
    ours.backward()
    found = [p.grad for p in pair.student.parameters()]
    theirs = dense_loss(
        arm, pair.student, law_of, expert, spot.prefix_ids, student_ids, expert_ids, weight=CORRECTING.window_weight
    )  # fmt: skip
    assert ours.item() == pytest.approx(theirs.item(), abs=EXACT_TOLERANCE)
    grads = torch.autograd.grad(theirs, list(pair.student.parameters()))
    for got, expected in zip(found, grads, strict=True):
        # The norms of this family compute in float32 whatever they are given.
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("plan", "chosen"), [("monotone", "plan"), ("entropic", "plan"), ("entropic", "heaviest")]
)
def test_other_plans_and_targets_reach_the_loss(plan, chosen):
    pair = make_pair()
    spot = Spot(trajectory=responses(pair)[1], position=2)
    student_ids, expert_ids = (5, 8, 1, 20, 13, 3), (9, 5, 9, 17)
    windows = [Response(ids, (), (), "length") for ids in (student_ids, expert_ids)]
    correcting = replace(CORRECTING, plan=plan, regularisation=0.2, targets=chosen)
    cost_BIJ = costs(pair.expert.model, student_ids, expert_ids)[None]
    plan_BIJ = (
        monotone_plan(cost_BIJ)
        if plan == "monotone"
        else entropic_plan(cost_BIJ, regularisation=0.2).plan_BIJ
    )
    laws = targets(plan_BIJ[0], expert_ids)
    assert any(len(law) > 1 for law in laws)
    if chosen == "heaviest":
        laws = [{max(law, key=law.__getitem__): 1.0} for law in laws]
    expected = listed(laws, dense_laws(pair.student, spot.prefix_ids, student_ids))
    found = window_loss(pair, spot, *windows, ARM["window-only"], correcting)
    assert found.item() == pytest.approx(expected.item(), abs=EXACT_TOLERANCE)


def test_distances_are_the_exact_plans_whatever_the_targets_are_made_of():
    """The same student windows before, hence the same distance before."""
    pair = make_pair()
    spot = Spot(trajectory=responses(pair)[1], position=1)
    found = {
        plan: correct(
            pair, spot, rate=RATE, correcting=replace(CORRECTING, plan=plan, steps=1), arms=ARMS[:1]
        )
        for plan in ("exact", "monotone", "entropic")
    }
    assert len({f.before for f in found.values()}) == 1
    assert len({f.after["opd"] for f in found.values()}) == 1


def test_a_student_that_is_its_expert_stays_at_distance_0():
    pair = make_pair(limits=LIMITS, expert_seed=1)
    spot = Spot(trajectory=responses(pair)[1], position=2)
    found = correct(pair, spot, rate=1e-4, correcting=CORRECTING)
    assert found.student_ids == found.expert_ids
    assert found.before == 0
    assert found.after == dict.fromkeys(ARM, 0.0)


def test_a_loss_that_blows_up_is_one_sentence_and_leaves_the_student_as_it_was():
    pair = make_pair()
    before = flat_weights(pair.student)
    spot = Spot(trajectory=responses(pair)[1], position=2)
    with pytest.raises(
        TrainingError,
        match=r"opd, step 2 on p1#0@0 before token 2: the loss is nan.*Lower the rate \(1e\+200\)",
    ):
        correct(pair, spot, rate=1e200, correcting=CORRECTING)
    assert torch.equal(flat_weights(pair.student), before)
    assert all(p.grad is None for p in pair.student.parameters())


def test_what_is_frozen_stays_and_a_training_mode_does_not_matter():
    pair = make_pair()
    for module in pair.student.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    spot = Spot(trajectory=responses(pair)[1], position=2)
    whole = correct(pair, spot, rate=RATE, correcting=CORRECTING, arms=ARMS[:1])
    pair.student.train()
    assert replace(
        correct(pair, spot, rate=RATE, correcting=CORRECTING, arms=ARMS[:1]), seconds={}
    ) == replace(whole, seconds={})
    assert pair.student.training
    for parameter in pair.student.parameters():
        parameter.requires_grad_(False)
    pair.student.get_output_embeddings().weight.requires_grad_(True)
    part = correct(pair, spot, rate=RATE, correcting=CORRECTING, arms=ARMS[3:4])
    assert part.student_ids == whole.student_ids


def outcomes(*rows) -> list[Outcome]:
    """(seed, prompt, before, opd, near-future)."""
    return [Outcome(seed=s, prompt=p, before=b, after={"opd": o, "near-future": n}) for s, p, b, o, n in rows]


ROWS = (
    (0, "a", 0.5, 0.4, 0.1),
    (0, "a", 0.6, 0.2, 0.2),
    (0, "b", 0.4, 0.4, 0.3),
    (1, "a", 0.8, 0.3, 0.0),
    (1, "b", 0.3, 0.5, 0.1),
    (1, "c", 0.4, 0.0, 0.0),
)


def test_a_summary_by_hand():
    """Changes of opd: -0.1, -0.4, 0, -0.5, 0.2, -0.4, mean -0.2; sums by prompt a -1.0 (3), b 0.2 (2), c -0.4 (1).

    Residuals from mean * count: a -0.4, b 0.6, c -0.2; squares 0.56; sd sqrt(3/2 * 0.56) / 6; t(2) = 4.302653.
    """
    found = summarise(outcomes(*ROWS))
    assert (found.num_prefixes, found.num_prompts) == (6, 3)
    assert found.before.value == pytest.approx(0.5)
    assert found.before_by_seed == pytest.approx({0: 0.5, 1: 0.5})
    assert found.quartiles == pytest.approx((0.4, 0.45, 0.575))
    opd, near = found.arms
    assert (opd.name, opd.change.n) == ("opd", 3)
    assert opd.after.value == pytest.approx(0.3)
    half = 4.302653 * math.sqrt(1.5 * 0.56) / 6
    assert (opd.change.value, opd.change.low, opd.change.high) == pytest.approx(
        (-0.2, -0.2 - half, -0.2 + half), abs=1e-6
    )
    assert opd.verdict == "cannot tell"
    assert opd.by_seed == pytest.approx({0: 1 / 3, 1: 0.8 / 3})
    # Seeds' mean changes -1/6 and -7/30: mean -0.2, sd 1/30 * sqrt(2), t(1) = 12.7062.
    half = 12.7062047 * (1 / 30) * math.sqrt(2) / math.sqrt(2)
    assert (opd.over_seeds.value, opd.over_seeds.low) == pytest.approx((-0.2, -0.2 - half), abs=1e-6)
    assert near.against_opd.value == pytest.approx(-1.1 / 6)
    assert (opd.against_opd.value, opd.against_opd.low) == (0, None)
    record = found.as_record()
    assert record["arms"][1]["against_opd"] == near.against_opd.to_json()
    assert record["arms"][0]["by_seed"] == {"0": opd.by_seed[0], "1": opd.by_seed[1]}


def test_prefixes_of_one_prompt_are_not_more_prompts():
    """Every row three times: the same intervals. One seed: none over seeds. A verdict where the interval leaves 0 out."""
    once, thrice = summarise(outcomes(*ROWS)), summarise(outcomes(*ROWS * 3))
    assert thrice.arms[1].change == replace(
        once.arms[1].change,
        value=pytest.approx(once.arms[1].change.value),
        low=pytest.approx(once.arms[1].change.low),
        high=pytest.approx(once.arms[1].change.high),
    )
    assert summarise(outcomes(*ROWS[:3])).arms[0].over_seeds.low is None
    clear = summarise(outcomes(*((0, str(i), 0.9, 0.5 + i / 100, 0.8 + i / 50) for i in range(9))))
    assert (clear.arms[0].verdict, clear.arms[1].verdict_against_opd) == ("lower", "higher")
    with pytest.raises(ValueError, match="needs outcomes"):
        summarise([])
