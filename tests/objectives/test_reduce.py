"""The only sum: selection by weight, one denominator, zero with a graph."""

from __future__ import annotations

import math

import pytest
import torch
from objective_oracles import leaf_grad

from understudy.objectives.reduce import token_mean, weighted_sum
from understudy.objectives.weights import uniform_weight


def values(*numbers):
    return torch.tensor(numbers, requires_grad=True)


def test_by_hand():
    value = values(1.0, 2.0, 4.0)
    total = weighted_sum(value, torch.tensor([1.0, 0.5, -2.0]))
    assert total.item() == -6.0
    total.backward()
    assert leaf_grad(value).tolist() == [1.0, 0.5, -2.0]


def test_weight_zero_selects_out_what_is_not_a_number():
    value = values(1.0, math.inf, math.nan, -math.inf)
    total = token_mean(value, torch.tensor([2.0, 0.0, 0.0, 0.0]), denominator=4)
    assert total.item() == 0.5
    total.backward()
    assert leaf_grad(value).tolist() == [0.5, 0.0, 0.0, 0.0]


def test_a_weighted_infinity_is_not_hidden():
    assert weighted_sum(values(1.0, math.inf), torch.ones(2)).item() == math.inf


def test_a_split_batch_has_the_same_loss_and_gradient():
    whole, parts = values(1.0, 2.0, 3.0, 4.0, 5.0), values(1.0, 2.0, 3.0, 4.0, 5.0)
    weight = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0])
    token_mean(whole, weight, denominator=4).backward()
    split = [token_mean(parts[s], weight[s], denominator=4) for s in (slice(0, 1), slice(1, 3), slice(3, 5))]
    total = split[0] + split[1] + split[2]
    total.backward()
    assert total.item() == pytest.approx(12 / 4)
    assert leaf_grad(parts).tolist() == leaf_grad(whole).tolist()


@pytest.mark.parametrize("denominator", [0, 4])
def test_nothing_to_train_on_is_zero_with_a_graph(denominator):
    for value in (values(), values(math.nan, 1.0)):
        loss = token_mean(value, torch.zeros(len(value)), denominator=denominator)
        assert loss.item() == 0
        loss.backward()
        assert leaf_grad(value).tolist() == [0.0] * len(value)


@pytest.mark.parametrize("denominator", [0, -1, math.nan])
def test_a_denominator_that_was_not_counted(denominator):
    with pytest.raises(ValueError, match="denominator must be > 0 where something is trained"):
        token_mean(values(1.0), torch.ones(1), denominator=denominator)


def test_shapes_must_fit():
    with pytest.raises(ValueError, match=r"value_N \(2,\).*weight_N \(1,\)"):
        weighted_sum(values(1.0, 2.0), torch.ones(1))


def test_no_gradient_reaches_the_weight():
    weight = torch.ones(1, requires_grad=True)
    weighted_sum(values(2.0), weight).backward()
    assert weight.grad is None


def test_half_precision_weights_do_not_narrow_the_sum():
    assert weighted_sum(values(2.0), torch.ones(1, dtype=torch.bfloat16)).dtype == torch.float32


def test_uniform_weight():
    weight = uniform_weight(torch.tensor([True, False, True]))
    assert weight.tolist() == [1.0, 0.0, 1.0]
    assert weight.dtype == torch.float32
