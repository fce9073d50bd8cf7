"""Sampled-token losses: their mean value and mean gradient are those of the exact divergence.

The mean is taken twice: exactly, by summing over every token of a small vocabulary, and over draws.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from objective_oracles import (
    INF,
    assert_close,
    forward,
    forward_grad,
    leaf_grad,
    reverse,
    reverse_grad,
    softmax,
)

from understudy.objectives import estimators
from understudy.objectives.estimators import (
    EXPERT_PROB_FLOOR,
    auxiliary_token_reverse_kl,
    draw_by_scan,
    floored,
    inverse_cdf,
    policy_gradient_reverse_kl,
    single_label_forward_kl,
)
from understudy.objectives.rows import Rows

rows_of_logits = st.integers(3, 5).flatmap(
    lambda v: st.tuples(*[st.lists(st.floats(-8, 8), min_size=v, max_size=v)] * 2)
)


def by_token(loss, student_row, expert_logp):
    """Value and gradient of a loss at every possible token: [V] and [V, V]."""
    vocab_size = len(student_row)
    student = torch.tensor([student_row] * vocab_size, dtype=torch.float64, requires_grad=True)
    rows = Rows(expert_logp_nV=expert_logp.expand(vocab_size, -1), token_n=torch.arange(vocab_size))
    value = loss(student.log_softmax(-1), rows)
    return value.detach(), torch.autograd.grad(value.sum(), student)[0]


def expectation(weights, value, grad):
    law = torch.tensor(weights, dtype=torch.float64)
    return (law @ value).item(), (law @ grad).tolist()


@settings(deadline=None, max_examples=40)
@given(rows_of_logits)
def test_single_label_is_forward_kl_on_average(pair):
    student_row, expert_row = pair
    p, q = softmax(student_row), softmax(expert_row)
    expert = torch.tensor(expert_row, dtype=torch.float64).log_softmax(-1)
    value, grad = expectation(q, *by_token(single_label_forward_kl, student_row, expert))
    entropy = -math.fsum(x * math.log(x) for x in q)
    assert value == pytest.approx(forward(p, q) + entropy, rel=1e-9)
    assert grad == pytest.approx(forward_grad(p, q), rel=1e-9, abs=1e-12)


@settings(deadline=None, max_examples=40)
@given(rows_of_logits)
def test_policy_gradient_is_reverse_kl_on_average(pair):
    student_row, expert_row = pair
    p, q = softmax(student_row), softmax(expert_row)
    expert = torch.tensor(expert_row, dtype=torch.float64).log_softmax(-1)
    value, grad = expectation(p, *by_token(policy_gradient_reverse_kl, student_row, expert))
    assert value == pytest.approx(reverse(p, q), rel=1e-9, abs=1e-12)
    assert grad == pytest.approx(reverse_grad(p, q), rel=1e-9, abs=1e-12)


def test_policy_gradient_by_hand():
    student = torch.tensor([[0.25, 0.75]], dtype=torch.float64).log().requires_grad_()
    rows = Rows(expert_logp_nV=torch.tensor([[0.5, 0.5]]).double().log(), token_n=torch.tensor([0]))
    value = policy_gradient_reverse_kl(student.log_softmax(-1), rows)
    assert value.item() == pytest.approx(math.log(0.5))
    value.sum().backward()
    # log(1/2) * (1 - 1/4, -3/4): a token the expert likes better is made likelier by descent.
    assert leaf_grad(student)[0].tolist() == pytest.approx([math.log(0.5) * 0.75, -math.log(0.5) * 0.75])


def test_policy_gradient_with_a_forbidden_token_uses_the_floor():
    expert = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64).log()
    student_row = [0.3, -0.2, 0.1]
    p, q = softmax(student_row), [0.5, 0.5, EXPERT_PROB_FLOOR]
    value, grad = expectation(p, *by_token(policy_gradient_reverse_kl, student_row, expert))
    assert EXPERT_PROB_FLOOR == 1e-10
    assert value == pytest.approx(reverse(p, q), rel=1e-12)
    assert grad == pytest.approx(reverse_grad(p, q), rel=1e-12)
    assert floored(expert).exp().tolist() == pytest.approx(q)


def test_the_floor_can_be_set():
    rows = Rows(expert_logp_nV=torch.tensor([[0.0, -INF]]), token_n=torch.tensor([1]))
    student = torch.tensor([[0.5, 0.5]]).log()
    value = policy_gradient_reverse_kl(student, rows, floor_prob=1e-4)
    assert value.item() == pytest.approx(math.log(0.5) - math.log(1e-4), rel=1e-6)
    for floor in (0.0, -1.0, 1.5):
        with pytest.raises(ValueError, match=r"floor_prob must be in \(0, 1\]"):
            policy_gradient_reverse_kl(student, rows, floor_prob=floor)


@pytest.mark.parametrize("loss", [policy_gradient_reverse_kl, auxiliary_token_reverse_kl])
def test_no_gradient_reaches_the_expert(loss):
    expert = torch.tensor([[1.0, 0.0, 2.0]], requires_grad=True)
    student = torch.zeros(1, 3, requires_grad=True)
    rows = Rows(
        expert_logp_nV=expert.log_softmax(-1), token_n=torch.tensor([2]), uniform_n=torch.tensor([0.9])
    )
    loss(student.log_softmax(-1), rows).sum().backward()
    assert student.grad is not None
    assert expert.grad is None


def test_auxiliary_token_is_reverse_kl_on_average():
    """Evenly spaced uniform numbers draw each token exactly in proportion to p."""
    p, q = [0.125, 0.5, 0.25, 0.125], [0.4, 0.3, 0.2, 0.1]
    n = 8
    student = torch.tensor([p] * n, dtype=torch.float64).log().requires_grad_()
    expert = torch.tensor([q] * n, dtype=torch.float64).log()
    uniform = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    # The rollout's token is another one; it must not be looked at.
    rows = Rows(expert_logp_nV=expert, uniform_n=uniform, token_n=torch.zeros(n, dtype=torch.long))
    value = auxiliary_token_reverse_kl(student.log_softmax(-1), rows)
    assert value.mean().item() == pytest.approx(reverse(p, q), rel=1e-12)
    (value.sum() / n).backward()
    assert leaf_grad(student).sum(0).tolist() == pytest.approx(reverse_grad(p, q), rel=1e-12)


@pytest.mark.parametrize("name", ["forward", "policy", "auxiliary"])
def test_mean_over_draws(name):
    """Each entry of the mean gradient of 40 000 draws is within 5 standard errors of the exact one.

    Chance of failing: 4 entries and one value, two-sided 5 sigma, 5 * 6e-7 = 3e-6 a case; the seed is fixed.
    """
    num_draws = 40_000
    generator = torch.Generator().manual_seed(17)
    student_row, expert_row = [0.5, -1.0, 1.5, 0.0], [1.0, 0.5, -1.0, 0.2]
    p, q = softmax(student_row), softmax(expert_row)
    student = torch.tensor([student_row] * num_draws, dtype=torch.float64, requires_grad=True)
    expert = torch.tensor([expert_row], dtype=torch.float64).log_softmax(-1).expand(num_draws, -1)
    uniform = torch.rand(num_draws, generator=generator, dtype=torch.float64)
    logp = student.log_softmax(-1)
    if name == "forward":
        value = single_label_forward_kl(logp, Rows(token_n=inverse_cdf(expert, uniform)))
        mean, grad = forward(p, q) - math.fsum(x * math.log(x) for x in q), forward_grad(p, q)
    else:
        mean, grad = reverse(p, q), reverse_grad(p, q)
        if name == "policy":
            rows = Rows(expert_logp_nV=expert, token_n=inverse_cdf(logp, uniform))
            value = policy_gradient_reverse_kl(logp, rows)
        else:
            value = auxiliary_token_reverse_kl(logp, Rows(expert_logp_nV=expert, uniform_n=uniform))
    value.sum().backward()
    sample = torch.cat([leaf_grad(student), value.detach()[:, None]], dim=1)
    standard_error = sample.std(dim=0) / math.sqrt(num_draws)
    z = (sample.mean(dim=0) - torch.tensor([*grad, mean], dtype=torch.float64)) / standard_error
    assert z.abs().max() < 5


@pytest.mark.parametrize(
    ("probabilities", "uniform", "token"),
    [
        ([0.25, 0.5, 0.25], 0.0, 0),
        ([0.25, 0.5, 0.25], 0.2499, 0),
        ([0.25, 0.5, 0.25], 0.25, 1),  # half-open intervals: [0.25, 0.75) is token 1
        ([0.25, 0.5, 0.25], 0.75, 2),
        ([0.0, 0.0, 1.0, 0.0, 0.0], 0.0, 2),
        ([0.0, 0.0, 1.0, 0.0, 0.0], math.nextafter(1, 0), 2),
        ([0.0, 0.0, 1.0, 0.0, 0.0], 1.0, 2),  # a uniform number rounded up to 1
        ([0.5, 0.0, 0.5], 0.5, 2),
        ([0.5, 0.0, 0.5], math.nextafter(0.5, 0), 0),
        ([0.1] * 10, math.nextafter(1, 0), 9),  # the sum in floating point is not 1
        ([1.0, 2.0, 1.0], 0.24, 0),  # not normalised: compared with the row's own total
        ([1.0, 2.0, 1.0], 0.9, 2),
    ],
)
def test_inverse_cdf_by_hand(probabilities, uniform, token):
    logp = torch.tensor([probabilities], dtype=torch.float64).log()
    drawn = inverse_cdf(logp, torch.tensor([uniform], dtype=torch.float64))
    assert drawn.tolist() == [token]
    assert drawn.dtype == torch.int64


def test_inverse_cdf_reaches_tokens_too_rare_for_float32():
    logp = torch.tensor([[1.0, 1e-9]], dtype=torch.float32).log()
    uniform = torch.tensor([1 - 5e-10], dtype=torch.float64)
    assert inverse_cdf(logp, uniform).tolist() == [1]


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.sampled_from([-INF, -700.0, -40.0, -5.0, 0.0, 3.0]), min_size=1, max_size=8).filter(
        lambda row: max(row) > -INF
    ),
    st.one_of(st.floats(0, 1), st.sampled_from([0.0, 1e-300, math.nextafter(1, 0), 1 - 2**-24])),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_inverse_cdf_never_draws_the_impossible(row, uniform, dtype):
    logp = torch.tensor([row], dtype=torch.float64).log_softmax(-1)
    token = inverse_cdf(logp, torch.tensor([uniform]).to(dtype)).item()
    assert row[token] > -INF


def test_inverse_cdf_has_the_frequencies_of_the_law():
    """Counts of 20 000 draws, chi-squared with 3 degrees of freedom; P(chi2 > 30) = 1.4e-6, seed fixed."""
    p = [0.05, 0.6, 0.15, 0.0, 0.2]
    n = 20_000
    logp = torch.tensor([p], dtype=torch.float32).log().expand(n, -1)
    token = inverse_cdf(logp, torch.rand(n, generator=torch.Generator().manual_seed(5)))
    counts = token.bincount(minlength=5).tolist()
    assert counts[3] == 0
    assert sum((c - n * x) ** 2 / (n * x) for c, x in zip(counts, p, strict=True) if x > 0) < 30


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("rows", "vocab", "tile"), [(7, 1, 3), (50, 40, 100), (9, 3000, 1 << 18), (0, 5, 4)])
def test_inverse_cdf_by_bisection_is_its_definition(monkeypatch, rows, vocab, tile, dtype):
    """Bit for bit the tokens of the sums compared one by one, impossible tokens and numbers at the edge among them.

    Fails if a tile takes another's numbers, or bisection ends one place off where a sum equals its target.
    """
    monkeypatch.setattr(estimators, "_TILE", tile)
    generator = torch.Generator().manual_seed(3)
    logits = (3 * torch.randn(rows, vocab, generator=generator, dtype=dtype)).round()
    logits[torch.rand(rows, vocab, generator=generator) < 0.3] = -INF
    logits[:, vocab // 2] = 0
    logp = logits.log_softmax(-1)
    edges = torch.tensor([0.0, 1.0, math.nextafter(1, 0), 0.5, 0.25], dtype=torch.float64)
    uniform = torch.rand(rows, generator=generator, dtype=torch.float64)
    uniform[: len(edges)] = edges[:rows]
    before = logp.clone()
    drawn = inverse_cdf(logp, uniform)
    assert drawn.tolist() == draw_by_scan(logp.double().exp(), uniform).tolist()
    assert logp.equal(before), "the law is read, not consumed"


def test_inverse_cdf_where_a_sum_is_hit_exactly():
    """The first token beyond the number, not the one whose sum reaches it."""
    logp = torch.full((40, 40), 0.5, dtype=torch.float64).log()
    uniform = torch.arange(40, dtype=torch.float64) / 40
    assert draw_by_scan(logp.exp(), uniform).tolist() == list(range(40))
    assert inverse_cdf(logp, uniform).tolist() == list(range(40))


def test_inverse_cdf_has_no_graph():
    logits = torch.zeros(2, 3, requires_grad=True)
    assert not inverse_cdf(logits.log_softmax(-1), torch.tensor([0.1, 0.9])).requires_grad


@pytest.mark.parametrize(
    ("loss", "rows", "name"),
    [
        (single_label_forward_kl, Rows(), "token_n"),
        (policy_gradient_reverse_kl, Rows(expert_logp_nV=torch.zeros(1, 2)), "token_n"),
        (policy_gradient_reverse_kl, Rows(token_n=torch.zeros(1, dtype=torch.long)), "expert_logp_nV"),
        (auxiliary_token_reverse_kl, Rows(expert_logp_nV=torch.zeros(1, 2)), "uniform_n"),
    ],
)
def test_a_missing_input_is_named(loss, rows, name):
    with pytest.raises(ValueError, match=rf"rows\.{name}"):
        loss(torch.zeros(1, 2).log_softmax(-1), rows)


def test_bfloat16_experts_do_not_narrow_the_value():
    student = torch.tensor([[0.2, 0.8]]).log()
    rows = Rows(expert_logp_nV=torch.tensor([[0.5, 0.5]]).log(), token_n=torch.tensor([1]))
    value = policy_gradient_reverse_kl(student, rows)
    assert value.dtype == torch.float32
    assert_close(value, torch.tensor([math.log(0.8 / 0.5)]), torch.float32)
