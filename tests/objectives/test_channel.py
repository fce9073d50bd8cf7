"""The known noise channel: as a law, in its gradient, and through a loss."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from objective_oracles import INF, forward, leaf_grad, softmax

from understudy.objectives.channel import NoiseChannel, through_channel
from understudy.objectives.divergences import against_expert, forward_kl_from_logp
from understudy.objectives.estimators import single_label_forward_kl
from understudy.objectives.rows import Rows

NU = [0.5, 0.25, 0.25, 0.0]


@given(
    eta=st.floats(0, 0.999),
    logits=st.lists(st.floats(-30, 30), min_size=4, max_size=4),
    upstream=st.lists(st.floats(-2, 2), min_size=4, max_size=4),
)
@settings(deadline=None, max_examples=60)
def test_value_and_gradient(eta, logits, upstream):
    p = softmax(logits)
    logp = torch.tensor([logits], dtype=torch.float64).log_softmax(-1).requires_grad_()
    pushed = NoiseChannel(eta, torch.tensor(NU)).push(logp)
    noisy = [(1 - eta) * a + eta * b for a, b in zip(p, NU, strict=True)]
    assert pushed[0].exp().tolist() == pytest.approx(noisy, rel=1e-12, abs=0)
    assert pushed.exp().sum().item() == pytest.approx(1, abs=1e-12)
    (pushed[0] * torch.tensor(upstream, dtype=torch.float64)).sum().backward()
    expected = [u * (1 - eta) * a / c for u, a, c in zip(upstream, p, noisy, strict=True)]
    assert leaf_grad(logp)[0].tolist() == pytest.approx(expected, rel=1e-12, abs=1e-300)


def test_forbidden_tokens():
    # Token 1 only by noise, token 2 only by the law, token 3 by neither.
    logits = torch.tensor([[0.0, -INF, math.log(3), -INF]], dtype=torch.float64, requires_grad=True)
    pushed = NoiseChannel(0.2, torch.tensor([0.5, 0.5, 0.0, 0.0])).push(logits.log_softmax(-1))
    assert pushed[0].exp().tolist() == pytest.approx([0.8 / 4 + 0.1, 0.1, 0.6, 0.0], rel=1e-12)
    assert pushed[0, 3] == -INF
    pushed[0, :3].sum().backward()
    assert torch.isfinite(leaf_grad(logits)).all()
    assert leaf_grad(logits)[0, 3] == 0


def test_a_forbidden_token_leaves_the_gradient_of_a_loss_finite():
    logits = torch.tensor([[0.0, 1.0, -INF]], requires_grad=True)
    channel = NoiseChannel(0.3, torch.tensor([0.5, 0.5, 0.0]))
    expert = torch.tensor([[0.5, 0.5, 0.0]]).log()
    through_channel(against_expert(forward_kl_from_logp), channel)(
        logits.log_softmax(-1), Rows(expert_logp_nV=expert)
    ).sum().backward()
    assert torch.isfinite(leaf_grad(logits)).all()
    assert leaf_grad(logits).abs().sum() > 0.01


def test_no_noise_changes_nothing():
    logp = torch.tensor([[0.0, 1.0, -INF]], dtype=torch.float64).log_softmax(-1)
    assert torch.equal(NoiseChannel(0.0, torch.tensor([0.0, 0.5, 0.5])).push(logp), logp)


def test_dtype_stays():
    channel = NoiseChannel(0.1, torch.full((3,), 1 / 3))
    assert channel.push(torch.zeros(2, 3).log_softmax(-1)).dtype == torch.float32
    assert channel.push(torch.zeros(2, 3).double().log_softmax(-1)).dtype == torch.float64


def test_wrong_token_by_hand():
    # With probability 0.2 one of the 3 other allowed tokens; token 4 is never a label.
    channel = NoiseChannel.wrong_token(0.2, [0, 1, 2, 3], vocab_size=5)
    p = torch.tensor([0.7, 0.3, 0.0, 0.0, 0.0], dtype=torch.float64)
    by_hand = [0.8 * a + 0.2 * (1 - a) / 3 for a in (0.7, 0.3, 0.0, 0.0)]
    assert channel.push(p.log()).exp().tolist() == pytest.approx([*by_hand, 0.0], rel=1e-12)
    assert channel.eta == pytest.approx(0.2 * 4 / 3)


def test_the_optimum_of_the_noised_loss_is_the_clean_law():
    clean = [0.9, 0.05, 0.05]
    channel = NoiseChannel.wrong_token(0.3, [0, 1, 2], vocab_size=3)
    noisy = [0.7 * a + 0.3 * (1 - a) / 2 for a in clean]
    loss = through_channel(against_expert(forward_kl_from_logp), channel)
    student = torch.tensor([clean], dtype=torch.float64).log().requires_grad_()
    rows = Rows(expert_logp_nV=torch.tensor([noisy], dtype=torch.float64).log())
    value = loss(student.log_softmax(-1), rows)
    value.sum().backward()
    assert value.item() == pytest.approx(0, abs=1e-15)
    assert leaf_grad(student).abs().max() < 1e-15
    # Elsewhere it is the KL between the noisy laws, not between the clean ones.
    other = torch.tensor([[0.2, 0.3, 0.5]], dtype=torch.float64).log()
    pushed = [0.7 * a + 0.3 * (1 - a) / 2 for a in (0.2, 0.3, 0.5)]
    assert loss(other, rows).item() == pytest.approx(forward(pushed, noisy), rel=1e-12)


def test_noise_aware_cross_entropy():
    channel = NoiseChannel.wrong_token(0.2, [0, 1, 2], vocab_size=4)
    student = torch.tensor([[0.6, 0.3, 0.1, 0.0]], dtype=torch.float64).log()
    value = through_channel(single_label_forward_kl, channel)(student, Rows(token_n=torch.tensor([1])))
    # -log((1 - eta) p + eta (1 - p) / (K - 1)), K = 3
    assert value.item() == pytest.approx(-math.log(0.8 * 0.3 + 0.2 * 0.7 / 2), rel=1e-12)


@pytest.mark.parametrize("eta", [-0.1, 1.0, 1.5, math.nan])
def test_eta_out_of_range(eta):
    with pytest.raises(ValueError, match=r"eta must be in \[0, 1\)"):
        NoiseChannel(eta, torch.tensor([0.5, 0.5]))


@pytest.mark.parametrize(
    ("nu", "match"),
    [
        ([0.5, 0.4], "sum 0.9"),
        ([1.5, -0.5], "least -0.5"),
        ([math.nan, 1.0], "sum nan"),
        ([[0.5, 0.5]], r"shape \(1, 2\)"),
    ],
)
def test_nu_must_be_a_law(nu, match):
    with pytest.raises(ValueError, match=match):
        NoiseChannel(0.1, torch.tensor(nu))


@pytest.mark.parametrize("eta", [-0.1, 0.75, 0.9, 1.0])
def test_wrong_token_stops_where_labels_say_nothing(eta):
    with pytest.raises(ValueError, match=r"eta must be in \[0, 0.75\) for 4 allowed tokens"):
        NoiseChannel.wrong_token(eta, [0, 1, 2, 3], vocab_size=4)


@pytest.mark.parametrize("ids", [[], [0], [0, 0], [0, 4], [-1, 0]])
def test_wrong_token_needs_two_tokens_of_the_vocabulary(ids):
    with pytest.raises(ValueError, match=r"2 or more distinct ids in 0\.\.3"):
        NoiseChannel.wrong_token(0.1, ids, vocab_size=4)


def test_another_vocabulary():
    with pytest.raises(ValueError, match="over 2 tokens, the law over 3"):
        NoiseChannel(0.1, torch.tensor([0.5, 0.5])).push(torch.zeros(1, 3))
