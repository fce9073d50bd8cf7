"""Rewards to advantages to the loss of a token: by hand, against loops in plain Python, against differences of values."""

from __future__ import annotations

import math
import random

import pytest
import torch

from understudy.objectives.chunked import loss_from_hidden, loss_from_logits
from understudy.objectives.laws import Head
from understudy.objectives.policy import clipped_policy_gradient, entropy_of, group_advantage, policy_loss
from understudy.objectives.rows import Rows
from understudy.objectives.weights import weigh_constant, weigh_sequences, weigh_tokens, weighing

SETTINGS = {"clip_low": 0.2, "clip_high": 0.3, "entropy": 0.07, "kl": 0.4}


def oracle(logits, token, old, advantage, reference, *, clip_low, clip_high, entropy, kl) -> float:
    """The loss of one token in Python floats."""
    top = max(logits)
    total = math.fsum(math.exp(x - top) for x in logits)
    logp = [x - top - math.log(total) for x in logits]
    ratio = math.exp(logp[token] - old)
    clipped = min(ratio, 1 + clip_high) if advantage >= 0 else max(ratio, 1 - clip_low)
    value = -advantage * clipped
    value += entropy * math.fsum(math.exp(x) * x for x in logp)
    if kl > 0:
        d = reference - logp[token]
        value += kl * (math.exp(d) - d - 1)
    return value


def case(seed: int, num_rows: int = 60, vocab: int = 5):
    """Rows whose ratios lie on all sides of both clips, with advantages of either sign and 0; none near a corner."""
    rng = random.Random(seed)
    logits = [[rng.gauss(0, 1.5) for _ in range(vocab)] for _ in range(num_rows)]
    token = [rng.randrange(vocab) for _ in range(num_rows)]
    logp = torch.tensor(logits, dtype=torch.float64).log_softmax(-1)
    own = [logp[i, t].item() for i, t in enumerate(token)]
    shift = [rng.choice([-0.6, -0.1, 0.0, 0.1, 0.6]) for _ in range(num_rows)]
    old = [o - s for o, s in zip(own, shift, strict=True)]
    advantage = [rng.choice([-1.3, 0.0, 0.8]) for _ in range(num_rows)]
    reference = [o + rng.gauss(0, 0.5) for o in own]
    return logits, token, old, advantage, reference


def tensors(token, old, advantage, reference) -> dict[str, torch.Tensor]:
    wide = {"old_logp_n": old, "advantage_n": advantage, "reference_logp_n": reference}
    return {
        "token_n": torch.tensor(token),
        **{k: torch.tensor(v, dtype=torch.float64) for k, v in wide.items()},
    }


@pytest.mark.parametrize(
    "settings",
    [SETTINGS, {**SETTINGS, "kl": 0.0}, {**SETTINGS, "entropy": 0.0}, {**SETTINGS, "clip_low": 1.0}],
)
def test_value_and_gradient_against_differences(settings):
    """The oracle's value at every row, and its central differences by every logit."""
    logits, *rest = case(1)
    x = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    found = clipped_policy_gradient(x.log_softmax(-1), Rows(**tensors(*rest)), **settings)
    given = list(zip(*rest, strict=True))
    expected = [oracle(row, *g, **settings) for row, g in zip(logits, given, strict=True)]
    assert found[:, 0].tolist() == pytest.approx(expected, rel=1e-10, abs=1e-12)
    found[:, 0].sum().backward()
    assert x.grad is not None
    h = 1e-5
    for i, row in enumerate(logits):
        for v in range(len(row)):
            up, down = ([*row[:v], row[v] + s, *row[v + 1 :]] for s in (h, -h))
            slope = (oracle(up, *given[i], **settings) - oracle(down, *given[i], **settings)) / (2 * h)
            assert x.grad[i, v].item() == pytest.approx(slope, rel=1e-6, abs=1e-8)


def test_at_ratio_one_it_is_reinforce():
    """- A grad log p(token), in closed form: - A ([v == token] - p(v))."""
    logits, token, _, advantage, reference = case(2)
    x = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    own = [x.log_softmax(-1)[i, t].item() for i, t in enumerate(token)]
    rows = Rows(**tensors(token, own, advantage, reference))
    clipped_policy_gradient(x.log_softmax(-1), rows, clip_low=0.2, clip_high=0.2, entropy=0.0, kl=0.0)[
        :, 0
    ].sum().backward()
    a = torch.tensor(advantage, dtype=torch.float64)[:, None]
    expected = -a * (torch.nn.functional.one_hot(torch.tensor(token), 5) - x.detach().softmax(-1))
    torch.testing.assert_close(x.grad, expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize(
    ("log_ratio", "advantage", "is_clipped"),
    [
        (0.6, 1.0, True),
        (0.6, -1.0, False),
        (-0.6, 1.0, False),
        (-0.6, -1.0, True),
        (0.1, 1.0, False),
        (-0.1, -1.0, False),
        (0.22, 1.0, False),
        (0.28, 1.0, True),
        (-0.22, -1.0, False),
        (-0.24, -1.0, True),
    ],
)
def test_the_regions_of_the_clip(log_ratio, advantage, is_clipped):
    """ln 1.3 = 0.262 and ln 0.79 = -0.236: clipped only beyond them and only in the direction of the advantage."""
    x = torch.tensor([[0.3, -0.2, 0.1]], dtype=torch.float64, requires_grad=True)
    logp = x.log_softmax(-1)
    rows = Rows(
        token_n=torch.tensor([1]),
        old_logp_n=logp[:, 1].detach() - log_ratio,
        advantage_n=torch.tensor([advantage]),
    )
    found = clipped_policy_gradient(logp, rows, clip_low=0.21, clip_high=0.3, entropy=0.0, kl=0.0)
    assert found[0, 1].item() == float(is_clipped)
    found[0, 0].backward()
    assert x.grad is not None
    assert (x.grad.abs().max().item() == 0) == is_clipped


@pytest.mark.parametrize("log_ratio", [100.0, -200.0])
@pytest.mark.parametrize("advantage", [1.0, 0.0, -1.0])
def test_a_ratio_that_overflows(log_ratio, advantage):
    """In float32, where exp(100) is inf: value and gradient of the clip, or of nothing; where it counts, infinite and no NaN."""
    x = torch.tensor([[0.3, -0.2, 0.1]], requires_grad=True)
    logp = x.log_softmax(-1)
    rows = Rows(
        token_n=torch.tensor([1]),
        old_logp_n=logp[:, 1].detach() - log_ratio,
        advantage_n=torch.tensor([advantage]),
    )
    value = clipped_policy_gradient(logp, rows, clip_low=0.2, clip_high=0.3, entropy=0.0, kl=0.0)[0, 0]
    value.backward()
    assert x.grad is not None
    if advantage < 0 and log_ratio > 0:
        assert value.item() == math.inf
        return
    expected = {1.0: -1.3, 0.0: 0.0, -1.0: 0.8}[advantage]
    expected = 0.0 if log_ratio < 0 and advantage > 0 else expected
    assert value.item() == pytest.approx(expected, rel=1e-6)
    assert x.grad.tolist() == [[0.0, 0.0, 0.0]]


def test_k3_and_entropy_are_reported_as_they_are():
    logits, token, old, advantage, reference = case(3, num_rows=7)
    logp = torch.tensor(logits, dtype=torch.float64).log_softmax(-1)
    found = clipped_policy_gradient(logp, Rows(**tensors(token, old, advantage, reference)), **SETTINGS)
    for i, row in enumerate(logp.tolist()):
        d = reference[i] - row[token[i]]
        assert found[i, 3].item() == pytest.approx(math.exp(d) - 1 - d, rel=1e-12)
        assert found[i, 2].item() == pytest.approx(-sum(math.exp(z) * z for z in row), rel=1e-12)
    names = {kl: policy_loss(clip_low=0.2, clip_high=0.2, entropy=0, kl=kl).names for kl in (0.0, 0.1)}
    assert names == {
        0.0: ("clip_rate", "entropy_nats"),
        0.1: ("clip_rate", "entropy_nats", "kl_to_reference"),
    }


def test_the_mean_of_k3_over_the_student_is_the_kl_and_its_gradient_the_other_one():
    """By enumeration of the token: sum_v p(v) k3(v) = KL(p || ref); sum_v p(v) grad k3(v) = p - ref."""
    p_logits = torch.tensor([[0.3, -1.0, 0.6, 0.1]], dtype=torch.float64)
    reference = torch.tensor([[-0.2, 0.4, 0.0, 0.9]], dtype=torch.float64).log_softmax(-1)
    x = p_logits.repeat(4, 1).requires_grad_()
    logp = x.log_softmax(-1)
    prob = logp[0].detach().exp()
    rows = Rows(
        token_n=torch.arange(4),
        old_logp_n=logp.diagonal().detach(),
        advantage_n=torch.zeros(4),
        reference_logp_n=reference[0],
    )
    found = clipped_policy_gradient(logp, rows, clip_low=0.2, clip_high=0.2, entropy=0.0, kl=1.0)
    kl = (prob * (logp[0] - reference[0])).sum().item()
    assert (prob @ found[:, 3]).item() == pytest.approx(kl, rel=1e-12)
    (prob * found[:, 0]).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad.sum(0), prob - reference[0].exp(), rtol=1e-10, atol=1e-13)


def test_entropy_of_a_law_with_forbidden_tokens():
    x = torch.tensor([[0.0, 0.0, -torch.inf]], dtype=torch.float64, requires_grad=True)
    found = entropy_of(x.log_softmax(-1))
    assert found.item() == pytest.approx(math.log(2), rel=1e-12)
    found.backward()
    assert x.grad is not None
    assert x.grad.abs().max() < 1e-15


def test_tiles_and_logits_agree_and_report_alike():
    """Value, gradient by hidden state and head, and the reports, walked in tiles of 7 rows with some left out."""
    _, token, old, advantage, reference = case(4)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(60, 6, generator=generator, dtype=torch.float64).requires_grad_()
    weight = torch.randn(5, 6, generator=generator, dtype=torch.float64).requires_grad_()
    given = {k: v for k, v in tensors(token, old, advantage, reference).items() if k != "token_n"}
    weight_N = torch.rand(60, generator=generator) * (torch.arange(60) % 4 > 0)
    token_N = torch.tensor(token)
    loss = policy_loss(**SETTINGS)
    results = []
    for rows_per_tile in (7, 0):
        hidden.grad = weight.grad = None
        common = {"weight_N": weight_N, "law": None, "token_N": token_N, "given_N": given}
        if rows_per_tile:
            total, value_N = loss_from_hidden(loss, hidden, Head(weight), rows_per_tile=7, **common)
        else:
            total, value_N = loss_from_logits(loss, hidden @ weight.T, **common)
        total.backward()
        assert hidden.grad is not None
        assert weight.grad is not None
        results.append((total.detach(), value_N, hidden.grad.clone(), weight.grad.clone()))
    assert results[0][1].shape == (60, 4)
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    common = {"weight_N": weight_N, "law": None, "token_N": token_N}
    short = {**given, "advantage_n": given["advantage_n"][1:]}
    with pytest.raises(
        ValueError, match=r"advantage_n must hold one entry a row, shape \(60,\), got \(59,\)"
    ):
        loss_from_hidden(loss, hidden, Head(weight), given_N=short, **common)
    del given["reference_logp_n"]
    with pytest.raises(ValueError, match=r"needs rows\.reference_logp_n"):
        loss_from_hidden(loss, hidden, Head(weight), given_N=given, **common)


# --- advantages -------------------------------------------------------------------------------------------------------


def test_advantages_by_hand():
    """Rewards 1, 0, 0, 1: mean 1/2, std with 3 in its denominator sqrt(1/3)."""
    reward = torch.tensor([[1.0, 0.0, 0.0, 1.0]])
    scale = 1 / (math.sqrt(1 / 3) + 1e-4)
    half = [0.5, -0.5, -0.5, 0.5]
    assert group_advantage(reward, "grpo")[0].tolist() == pytest.approx([h * scale for h in half], rel=1e-12)
    assert group_advantage(reward, "dr-grpo")[0].tolist() == pytest.approx(half, rel=1e-12)
    # Leaving one out: 1 - 1/3 and 0 - 2/3.
    assert group_advantage(reward, "rloo")[0].tolist() == pytest.approx(
        [2 / 3, -2 / 3, -2 / 3, 2 / 3], rel=1e-12
    )


def test_each_group_is_judged_by_itself():
    reward = torch.tensor([[0.0, 1.0], [10.0, 10.5]])
    assert group_advantage(reward, "dr-grpo").tolist() == [[-0.5, 0.5], [-0.25, 0.25]]


@pytest.mark.parametrize("rule", ["grpo", "rloo", "dr-grpo"])
def test_a_group_of_equal_rewards_teaches_exactly_nothing(rule):
    """0.1 three times has a mean of 0.10000000000000002 by some sums; divided by 1e-4 that would be a gradient."""
    reward = torch.full((1, 3), 0.1, dtype=torch.float64)
    assert group_advantage(reward, rule).tolist() == [[0.0, 0.0, 0.0]]


def test_rewards_that_cannot_be_compared():
    with pytest.raises(ValueError, match="at least two responses"):
        group_advantage(torch.zeros(3, 1), "grpo")
    with pytest.raises(ValueError, match="must be finite"):
        group_advantage(torch.tensor([[0.0, math.nan]]), "grpo")
    with pytest.raises(ValueError, match="grpo, rloo or dr-grpo, got 'ppo'"):
        group_advantage(torch.zeros(1, 2), "ppo")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="clip_low in"):
        policy_loss(clip_low=1.5, clip_high=0.2, entropy=0, kl=0)


# --- weights ----------------------------------------------------------------------------------------------------------

GATE = torch.tensor([[0, 1, 1, 1], [0, 0, 1, 0], [0, 0, 0, 0]]).bool()
VALUE = torch.tensor([3.0, 6.0, 9.0, 100.0])


def normalised(weights) -> float:
    return ((weights.weight_N * VALUE).sum() / weights.amount).item()


def test_normalisations_by_hand():
    """Lengths 3, 1 and none. Token: 118/4. Sequence: (6 + 100)/2. Constant with ten tokens: 118/20."""
    assert normalised(weigh_tokens(GATE)) == 29.5
    assert normalised(weigh_sequences(GATE, max_tokens=10)) == pytest.approx(53.0, rel=1e-6)
    assert normalised(weigh_constant(GATE, max_tokens=10)) == pytest.approx(5.9, rel=1e-6)


@pytest.mark.parametrize("norm", ["token", "sequence", "constant"])
def test_splitting_by_rows_splits_weights_and_denominator(norm):
    weigh = weighing(norm, max_tokens=10)
    whole, parts = weigh(GATE), [weigh(GATE[:1]), weigh(GATE[1:])]
    assert torch.cat([p.weight_N for p in parts]).tolist() == whole.weight_N.tolist()
    assert sum(p.amount for p in parts) == whole.amount > 0
    nothing = weigh(GATE[2:])
    assert (len(nothing.weight_N), nothing.amount) == (0, 0)
