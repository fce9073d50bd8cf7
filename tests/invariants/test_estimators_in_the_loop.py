"""The sampled losses through the whole path of labels: their mean gradient is that of the exact row.

The estimators themselves are checked elsewhere; here the random numbers, the draws and the gates are the trainer's.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from small import Babble, as_trajectories, in_float64, make_model, make_parts, make_recipe, make_setup, written

from understudy.experts.local import LocalExpert
from understudy.methods import METHODS, LossSettings
from understudy.records import Prompt
from understudy.rollouts.sampler import Response
from understudy.trainer.collate import collate
from understudy.trainer.loss import gate_of, label

CPU = torch.device("cpu")
VOCAB = 4
EXPERT = LocalExpert(make_model("gpt2", seed=71, vocab=VOCAB).double(), VOCAB)


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    recipe = make_recipe(student__new__family="gpt2", student__new__initializer_range=0.4)
    parts = in_float64(make_parts(recipe, task=Babble(vocab_size=VOCAB, eos_ids=frozenset({0})), expert=EXPERT))
    return make_setup(recipe, tmp_path_factory.mktemp("student"), replace(parts, expert=EXPERT))


def head_gradient(s, batch, method: str, estimator, seed: int):
    """Gradient of the mean loss a token with respect to the model's weights."""
    row = METHODS[method]
    objective = row.objective(estimator)
    gate_BT = gate_of(row, batch)
    labels = label(batch, gate_BT, objective, EXPERT, seed)
    s.student.zero_grad()
    weight_N = torch.ones(int(gate_BT.sum()))
    loss, _ = s.student(batch.token_BT, labels, objective.build(LossSettings()), weight_N)
    (loss / len(weight_N)).backward()
    return torch.cat([p.grad.flatten() for p in s.model.parameters()]).clone()


@pytest.mark.parametrize(
    ("method", "twin"), [("opd-f", "opd-f"), ("nail-f", "nail-f"), ("nail-r", "nail-r"), ("dagger", "dagger")]
)
def test_the_mean_over_draws_is_the_exact_gradient(student, method, twin):
    """400 seeds of labels at fixed prefixes. The error of the mean, in units of the spread that the draws
    themselves show, is a mean of squares near 1: below 2 for all. With some 30 effective directions a false alarm
    has a chance below 1e-3 for new seeds; these are fixed.

    Fails if labels are drawn at temperature other than 1, from the student instead of the expert, one position
    off, or if all positions share a random number with the rollout.
    """
    batch = collate(written(student, 4), CPU)
    exact = head_gradient(student, batch, twin, "exact", 0)
    draws = torch.stack([head_gradient(student, batch, method, "sampled", seed) for seed in range(400)])
    error = draws.mean(0) - exact
    spread = draws.std(0) / len(draws) ** 0.5
    ratio = error.square().sum() / spread.square().sum()
    assert ratio < 2
    assert exact.norm() > 5 * spread.norm(), "the gradient must stand out of the noise for this to mean anything"


def test_labels_of_a_seed_are_fixed_and_positions_are_independent(student):
    """Asked again, in another batch: the same labels. Across positions and trajectories: uncorrelated."""
    trajectories = written(student, 40)
    objective = METHODS["opd-f"].objective("sampled")

    def tokens(chosen):
        batch = collate(chosen, CPU)
        gate_BT = gate_of(METHODS["opd-f"], batch)
        found = label(batch, gate_BT, objective, EXPERT, 5).token_N
        assert found is not None
        return dict(zip((t.id for t in chosen), found.split([len(t.response_ids) for t in chosen]), strict=True))

    whole, part = tokens(trajectories), tokens(trajectories[7:3:-1])
    assert all(torch.equal(whole[i], part[i]) for i in part)
    later = tokens([replace(t, round=1) for t in trajectories])
    same = np.mean([a == b for x, y in zip(whole.values(), later.values(), strict=True) for a, b in zip(x, y, strict=True)])
    assert same < 0.9


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
