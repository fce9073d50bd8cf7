"""The sampled losses through the whole path of labels: their mean gradient is that of the exact row.

The estimators themselves are checked elsewhere; here the random numbers, the draws and the gates are the trainer's.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from small import (
    Babble,
    as_trajectories,
    in_float64,
    make_model,
    make_parts,
    make_recipe,
    make_setup,
    written,
)
from understudy.experts.local import LocalExpert
from understudy.methods import METHODS, LossSettings
from understudy.objectives.laws import DenseLaw
from understudy.randomness import uniforms
from understudy.records import Prompt
from understudy.rollouts.sampler import Response
from understudy.trainer.collate import collate
from understudy.trainer.loss import Term, gate_of, label

CPU = torch.device("cpu")
VOCAB = 4
EXPERT = LocalExpert(make_model("gpt2", seed=71, vocab=VOCAB).double(), VOCAB)


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    recipe = make_recipe(student__new__family="gpt2", student__new__initializer_range=0.4)
    parts = in_float64(
        make_parts(recipe, task=Babble(vocab_size=VOCAB, eos_ids=frozenset({0})), expert=EXPERT)
    )
    return make_setup(recipe, tmp_path_factory.mktemp("student"), replace(parts, expert=EXPERT))


def head_gradient(s, batch, method: str, estimator, seed: int):
    """Gradient of the mean loss a token with respect to the model's weights."""
    row = METHODS[method]
    objective = row.objective(estimator)
    gate_BT = gate_of(row, batch)
    labels = label(batch, gate_BT, objective, EXPERT, seed)
    s.student.zero_grad()
    weight_N = torch.ones(int(gate_BT.sum()))
    ((loss, _),) = s.student(batch.token_BT, [Term(labels, objective.build(LossSettings()), weight_N)])
    (loss / len(weight_N)).backward()
    return torch.cat([p.grad.flatten() for p in s.model.parameters()]).clone()


@pytest.mark.parametrize("method", ["opd-f", "nail-r"])
def test_the_mean_over_draws_is_the_exact_gradient(student, method):
    """200 seeds of labels at fixed prefixes. The error of the mean, in units of the spread that the draws
    themselves show, is a mean of squares near 1: below 2 for all. With some 30 effective directions a false alarm
    has a chance below 1e-3 for new seeds; these are fixed.

    Fails if labels are drawn at temperature other than 1, from the student instead of the expert, one position
    off, or if all positions share a random number with the rollout.
    """
    batch = collate(written(student, 4), CPU)
    exact = head_gradient(student, batch, method, "exact", 0)
    draws = torch.stack([head_gradient(student, batch, method, "sampled", seed) for seed in range(200)])
    error = draws.mean(0) - exact
    spread = draws.std(0) / len(draws) ** 0.5
    ratio = error.square().sum() / spread.square().sum()
    assert ratio < 2
    assert exact.norm() > 5 * spread.norm(), (
        "the gradient must stand out of the noise for this to mean anything"
    )


def test_labels_of_a_seed_are_fixed(student):
    """Asked again, in another batch and order: the same labels. Fails if they are drawn by place."""
    trajectories = written(student, 40)
    objective = METHODS["opd-f"].objective("sampled")

    def tokens(chosen):
        batch = collate(chosen, CPU)
        gate_BT = gate_of(METHODS["opd-f"], batch)
        found = label(batch, gate_BT, objective, EXPERT, 5).token_N
        assert found is not None
        return dict(
            zip((t.id for t in chosen), found.split([len(t.response_ids) for t in chosen]), strict=True)
        )

    whole, part = tokens(trajectories), tokens(trajectories[7:3:-1])
    assert all(torch.equal(whole[i], part[i]) for i in part)


class Coin:
    """The same law everywhere, so that labels show nothing but their random numbers."""

    identity = "coin"
    vocab_size = 2

    def law(self, batch, gate_BT):
        return DenseLaw(torch.full((int(gate_BT.sum()), 2), 0.5).log())

    def decoder(self):
        raise NotImplementedError


def test_labels_at_different_positions_rounds_and_samples_are_independent(student):
    """Agreement of 600 pairs of fair coins within five standard errors of 1/2 (false alarm 6e-7 a comparison).

    Fails if a trajectory, a round, a sample or the rollout itself shares its random numbers with the labels.
    """
    prompts = [Prompt(id=f"c{i}", token_ids=(1,)) for i in range(100)]
    responses = [Response((2,) * 7, (True,) * 7, (0.0,) * 7, "length")] * 100
    trajectories = as_trajectories(prompts, responses)
    objective = METHODS["opd-f"].objective("sampled")

    def coins(seed: int = 5, **changes):
        batch = collate([replace(t, **changes) for t in trajectories], CPU)
        found = label(batch, batch.is_response_BT, objective, Coin(), seed).token_N
        assert found is not None
        return found.reshape(100, 7).numpy()

    names = [(5, "rollout", 0, p.id, 0) for p in prompts]
    first = coins()
    others = (coins(6), coins(round=1), coins(sample_index=1), (uniforms(names, 7) >= 0.5).astype(int))
    pairs = [
        (first[:, 1:], first[:, :-1]),
        *((first[:, 1:], o[:, 1:]) for o in others),
        (first[1:, 1:], first[:-1, 1:]),
    ]
    for a, b in pairs:
        assert abs((a == b).mean() - 0.5) < 5 * 0.5 / a.size**0.5


def test_the_policy_gradient_over_all_responses_is_the_exact_reverse_kl(student):
    """One-token responses, V = 4: the sum over every response of p(response) times the gradient of `opd-pg` is the
    gradient of `opd-r` at that prefix. Exact, no draws.

    Fails if the log-ratio has the other sign, is not detached, or stands at another position than the token.
    """
    prompts = [Prompt(id=f"e{i}", token_ids=ids) for i, ids in enumerate([(1, 2), (3, 0, 1)])]

    def batch_of(token: int):
        responses = [Response((token,), (True,), (0.0,), "length")] * len(prompts)
        return collate(as_trajectories(prompts, responses), CPU)

    for i, p in enumerate(prompts):
        with torch.no_grad():
            prob_V = student.model(torch.tensor([p.token_ids])).logits[0, -1].softmax(-1)
        total, exact = 0.0, None
        for token in range(VOCAB):
            one = replace_rows(batch_of(token), i)
            total = total + prob_V[token] * head_gradient(student, one, "opd-pg", "sampled", 0)
            exact = head_gradient(student, one, "opd-r", "exact", 0)
        assert isinstance(total, torch.Tensor)
        assert exact is not None
        torch.testing.assert_close(total, exact, rtol=0, atol=1e-10)
        assert exact.norm() > 1e-2


def replace_rows(batch, row: int):
    return collate([batch.trajectories[row]], CPU)
