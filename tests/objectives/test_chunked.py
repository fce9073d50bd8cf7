"""Hidden states x heads -> loss: every path of the one quantity, and what must not happen on the way."""

from __future__ import annotations

import math

import pytest
import torch
from chunked_cases import (
    HEADS,
    LOSSES,
    PATHS,
    D,
    N,
    V,
    exact_logits,
    expected_results,
    inputs_of,
    make_head,
    make_rows,
    randn,
    run,
    uniforms_inside,
)
from objective_oracles import INF, TOLERANCES, assert_close, leaf_grad
from torch.utils._python_dispatch import TorchDispatchMode

from understudy.objectives.chunked import default_rows_per_tile, loss_from_hidden, loss_from_logits
from understudy.objectives.estimators import single_label_forward_kl
from understudy.objectives.laws import DenseLaw, Head, HeadLaw


@pytest.mark.parametrize("path", list(PATHS))
@pytest.mark.parametrize("dtype", list(TOLERANCES), ids=str)
@pytest.mark.parametrize("head_name", list(HEADS))
@pytest.mark.parametrize("loss_name", list(LOSSES))
def test_every_path_gives_the_closed_form(path, dtype, head_name, loss_name):
    hidden = randn(N, D, seed=3).mul(0.5).to(dtype).requires_grad_()
    head = make_head(dtype, **HEADS[head_name])
    expert_logp = randn(N, V, seed=5).log_softmax(-1)
    law = DenseLaw(expert_logp if dtype == torch.float64 else expert_logp.float())
    rows, upstream = make_rows(), 3.0
    rows["uniform_N"] = uniforms_inside(exact_logits(hidden, head)[0].tolist())
    loss, value = run(path, loss_name, hidden, head, law, rows)
    grads = torch.autograd.grad(upstream * loss, inputs_of(hidden, head))
    expected_loss, expected_value, expected_grads = expected_results(
        loss_name, hidden, head, law.logp_NV, rows, upstream
    )
    assert loss.dtype == value.dtype == torch.promote_types(dtype, torch.float32)
    assert_close(loss, expected_loss, dtype)
    assert_close(value, expected_value, dtype)
    for grad, expected, given in zip(grads, expected_grads, inputs_of(hidden, head), strict=True):
        assert grad.dtype == given.dtype
        assert_close(grad, expected, dtype)


@pytest.mark.parametrize("dtype", list(TOLERANCES), ids=str)
def test_the_law_of_an_expert_head(dtype):
    """A law made from hidden states tile by tile is the law held whole."""
    hidden, expert_hidden = (randn(N, D, seed=s).to(dtype) for s in (3, 7))
    head, expert_head = make_head(dtype), make_head(dtype, **HEADS["all"], seed=11)
    whole = expert_head.logits(expert_hidden).detach()
    dense = DenseLaw(whole.to(torch.promote_types(dtype, torch.float32)).log_softmax(-1))
    rows = make_rows()
    tiles, _ = run("tile-3", "reverse", hidden, head, HeadLaw(expert_hidden, expert_head), rows)
    expected, _ = run("dense", "reverse", hidden, head, dense, rows)
    assert_close(tiles, expected, dtype)
    tiles.backward()
    assert expert_head.weight_VD.grad is None


@pytest.mark.parametrize("path", ["dense", "tile-3", "autograd-3"])
def test_student_equal_to_expert_gives_nothing(path):
    hidden = randn(N, D, seed=3).float().requires_grad_()
    head = make_head(torch.float32, **HEADS["all"])
    law = HeadLaw(hidden.detach(), head)
    for loss_name in ("forward", "reverse", "jsd"):
        loss, value = run(path, loss_name, hidden, head, law, make_rows())
        grads = torch.autograd.grad(loss, inputs_of(hidden, head))
        assert value.abs().max() < 1e-6
        assert all(grad.abs().max() < 2e-6 for grad in grads)


@pytest.mark.parametrize("path", ["dense", "tile-3", "autograd-3"])
def test_tied_embeddings_add_both_gradients(path):
    """The embedding feeds the hidden states and is the head; its gradient is the sum, as in a dense model."""
    embedding = randn(V, D, seed=2).requires_grad_()
    token = torch.tensor([0, 5, 2, 2, 1, 3, 4])
    law, rows = DenseLaw(randn(N, V, seed=5).log_softmax(-1)), make_rows()
    hidden = torch.tanh(embedding[token])
    loss, _ = run(path, "forward", hidden, Head(embedding), law, rows)
    (grad,) = torch.autograd.grad(loss, embedding)
    _, _, (by_hidden, by_head) = expected_results("forward", hidden, Head(embedding), law.logp_NV, rows, 1.0)
    by_embedding = torch.zeros(V, D, dtype=torch.float64)
    by_embedding.index_add_(0, token, by_hidden * (1 - hidden.detach() ** 2))
    assert_close(grad, by_embedding + by_head, torch.float64)


@pytest.mark.parametrize("path", ["dense", "tile-3", "autograd-3"])
def test_rows_of_weight_zero_may_hold_anything(path):
    """Infinite values, NaN hidden states: the loss and every gradient are those of the other rows alone."""
    hidden = randn(N, D, seed=3)
    hidden[2] = math.nan
    expert_logp = randn(N, V, seed=5).log_softmax(-1)
    expert_logp[4, 1] = -INF  # an infinite reverse KL, whose gradient is NaN
    rows = make_rows()
    rows["weight_N"] = torch.tensor([1.0, 0.5, 0.0, 2.0, 0.0, 0.25, 1.0])
    kept = torch.tensor([0, 1, 3, 5, 6])
    head = make_head(torch.float64, **HEADS["bias"])
    hidden.requires_grad_()
    if path == "dense":
        # The matrix product of a dense model would spread NaN by itself, so only finite hidden states here.
        hidden = hidden.detach().nan_to_num(0.5).requires_grad_()
    loss, value = run(path, "reverse", hidden, head, DenseLaw(expert_logp), rows)
    grads = torch.autograd.grad(loss, inputs_of(hidden, head))
    assert value[4] == INF
    expected_loss, _, expected = expected_results(
        "reverse",
        hidden[kept],
        head,
        expert_logp[kept],
        {name: tensor[kept] for name, tensor in rows.items()},
        1.0,
    )
    assert_close(loss, expected_loss, torch.float64)
    assert_close(grads[0][kept], expected[0], torch.float64)
    assert grads[0][[2, 4]].abs().sum() == 0
    assert_close(grads[1], expected[1], torch.float64)
    assert_close(grads[2], expected[2], torch.float64)


@pytest.mark.parametrize("path", ["dense", "tile-3", "autograd-3"])
@pytest.mark.parametrize("num_rows", [0, N])
def test_nothing_to_train_on_is_zero_with_a_graph(path, num_rows):
    hidden = torch.randn(num_rows, D, requires_grad=True)
    head = make_head(torch.float32, **HEADS["all"])
    law = DenseLaw(torch.zeros(num_rows, V).log_softmax(-1))
    rows = {name: tensor[:num_rows] for name, tensor in make_rows().items()}
    rows["weight_N"] = torch.zeros(num_rows)
    loss, value = run(path, "forward", hidden, head, law, rows)
    assert loss.item() == 0
    assert value.shape == (num_rows,)
    grads = torch.autograd.grad(loss, inputs_of(hidden, head))
    assert all(grad.abs().sum() == 0 for grad in grads)


PRODUCTS = {getattr(torch.ops.aten, name) for name in ("mm", "addmm", "addmm_", "matmul", "linear", "bmm")}


class Recorder(TorchDispatchMode):
    """Notes every matrix product and the size of the largest tensor made."""

    def __init__(self):
        super().__init__()
        self.products: list[str] = []
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in PRODUCTS:
            self.products.append(str(func))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
        return result


def wide_case(*, has_bias=False, num_rows=60, vocab_size=50, width=2, dtype=torch.float32):
    hidden = randn(num_rows, width, seed=1).to(dtype).requires_grad_()
    weight = randn(vocab_size, width, seed=2).to(dtype).requires_grad_()
    bias = torch.zeros(vocab_size, dtype=dtype, requires_grad=True) if has_bias else None
    expert = HeadLaw(
        randn(num_rows, width, seed=3).to(dtype), Head(randn(vocab_size, width, seed=4).to(dtype))
    )
    return hidden, Head(weight, bias), expert, torch.ones(num_rows)


@pytest.mark.parametrize("loss_name", ["forward", "reverse", "jsd"])
def test_the_whole_matrix_of_logits_never_exists(loss_name):
    hidden, head, law, weight = wide_case()
    tile = 4
    with Recorder() as seen:
        loss, _ = loss_from_hidden(
            LOSSES[loss_name][0], hidden, head, weight_N=weight, law=law, rows_per_tile=tile
        )
        loss.backward()
    # One tile; the head itself has 100 entries and the hidden states 120, N x V would be 3000.
    assert seen.largest == tile * 50
    assert hidden.grad is not None


@pytest.mark.parametrize(
    ("frozen", "per_tile"), [((), 3), (("weight",), 2), (("hidden",), 2), (("hidden", "weight"), 1)]
)
@pytest.mark.parametrize("has_bias", [False, True])
def test_three_products_a_tile_and_none_in_backward(frozen, per_tile, has_bias):
    hidden, head, law, weight = wide_case(has_bias=has_bias)
    law = DenseLaw(law.logp(0, 60))  # its own products are the expert's
    hidden.requires_grad_("hidden" not in frozen)
    head.weight_VD.requires_grad_("weight" not in frozen)
    with Recorder() as forward_pass:
        loss, _ = loss_from_hidden(
            LOSSES["forward"][0], hidden, head, weight_N=weight, law=law, rows_per_tile=10
        )
    assert len(forward_pass.products) == 6 * per_tile
    if loss.requires_grad:
        with Recorder() as backward_pass:
            loss.backward()
        assert backward_pass.products == []
    assert (hidden.grad is None) == ("hidden" in frozen)
    assert (head.weight_VD.grad is None) == ("weight" in frozen)


def test_no_grad_does_no_gradient_work():
    hidden, head, law, weight = wide_case()
    law = DenseLaw(law.logp(0, 60))
    expected, expected_value = loss_from_hidden(LOSSES["reverse"][0], hidden, head, weight_N=weight, law=law)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context, Recorder() as seen:
            loss, value = loss_from_hidden(
                LOSSES["reverse"][0], hidden, head, weight_N=weight, law=law, rows_per_tile=10
            )
        assert not loss.requires_grad
        assert len(seen.products) == 6
        assert_close(loss, expected.detach(), torch.float32)
        assert_close(value, expected_value, torch.float32)


def test_the_value_has_no_graph():
    hidden, head, law, weight = wide_case()
    for value in (
        loss_from_hidden(LOSSES["forward"][0], hidden, head, weight_N=weight, law=law)[1],
        loss_from_logits(LOSSES["forward"][0], head.logits(hidden), weight_N=weight, law=law)[1],
    ):
        assert not value.requires_grad


def test_head_gradients_are_summed_in_float32():
    """600 equal rows of bfloat16, one a tile: a bfloat16 sum would stop growing at 256 times one row."""
    num_rows = 600
    hidden = torch.ones(num_rows, 1, dtype=torch.bfloat16)
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    bias = torch.zeros(2, dtype=torch.bfloat16, requires_grad=True)
    token = torch.zeros(num_rows, dtype=torch.long)
    loss, _ = loss_from_hidden(
        single_label_forward_kl,
        hidden,
        Head(weight, bias),
        weight_N=torch.ones(num_rows),
        law=None,
        token_N=token,
        rows_per_tile=1,
    )
    loss.backward()
    # p - [v == token] = -1/2, +1/2 at each row; 300 is 300 in bfloat16 to within one rounding.
    assert leaf_grad(weight).flatten().tolist() == pytest.approx([-300, 300], rel=4e-3)
    assert leaf_grad(bias).tolist() == pytest.approx([-300, 300], rel=4e-3)


def test_autocast_matches_bfloat16_operands_and_leaves_no_frozen_copy_behind():
    hidden, head, law, weight = wide_case()
    law = DenseLaw(law.logp(0, 60))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, value = loss_from_hidden(
            LOSSES["forward"][0], hidden, head, weight_N=weight, law=law, rows_per_tile=7
        )
        # The same head again under the same autocast: a cached cast without a graph would lose this gradient.
        assert torch.nn.functional.linear(hidden, head.weight_VD).requires_grad
        again = torch.nn.functional.linear(hidden.detach(), head.weight_VD).float().sum()
    assert loss.dtype == torch.float32
    # The products of the very same bfloat16 operands, not rounded to bfloat16 themselves.
    logits = hidden.bfloat16().float() @ head.weight_VD.bfloat16().float().T
    dense, dense_value = loss_from_logits(LOSSES["forward"][0], logits, weight_N=weight, law=law)
    assert_close(value, dense_value, torch.float32)
    assert torch.autograd.grad(again, head.weight_VD)[0].abs().sum() > 0
    for grad, expected in zip(
        torch.autograd.grad(loss, inputs_of(hidden, head)),
        torch.autograd.grad(dense, inputs_of(hidden, head)),
        strict=True,
    ):
        assert grad.dtype == torch.float32
        assert_close(grad, expected, torch.bfloat16)


def test_an_expert_that_shares_the_head_costs_no_later_gradient_under_autocast():
    """A law made under autocast would leave a cast of the shared weight, without a graph, in its cache."""
    hidden, head, _, weight = wide_case()
    law = HeadLaw(hidden.detach() + 0.1, head)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, value = loss_from_hidden(LOSSES["forward"][0], hidden, head, weight_N=weight, law=law)
        later = torch.nn.functional.linear(hidden.detach(), head.weight_VD).float().sum()
    assert later.requires_grad
    # The law itself is in float32, as outside of autocast; only the student's operands are rounded.
    logits = hidden.bfloat16().float() @ head.weight_VD.bfloat16().float().T
    _, expected = loss_from_logits(LOSSES["forward"][0], logits, weight_N=weight, law=law)
    assert_close(value, expected, torch.float32)


def test_float64_stays_float64_under_autocast():
    hidden, head, law, weight = wide_case(dtype=torch.float64)
    law = DenseLaw(law.logp(0, 60))
    expected, _ = loss_from_hidden(LOSSES["forward"][0], hidden, head, weight_N=weight, law=law)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = loss_from_hidden(LOSSES["forward"][0], hidden, head, weight_N=weight, law=law)
    assert torch.equal(loss, expected)


def test_micro_batches_add_up():
    """Two calls, one denominator: accumulated gradients are those of one call."""
    hidden, head, law, weight = wide_case()
    logp = law.logp(0, 60)
    row_loss = LOSSES["forward"][0]
    whole, _ = loss_from_hidden(row_loss, hidden, head, weight_N=weight, law=DenseLaw(logp))
    expected = torch.autograd.grad(whole / 60, inputs_of(hidden, head))
    for part in (slice(0, 13), slice(13, 60)):
        loss, _ = loss_from_hidden(
            row_loss, hidden[part], head, weight_N=weight[part], law=DenseLaw(logp[part])
        )
        (loss / 60).backward()
    assert_close(leaf_grad(hidden), expected[0], torch.float32)
    assert_close(leaf_grad(head.weight_VD), expected[1], torch.float32)


def test_a_second_backward_is_refused():
    hidden, head, law, weight = wide_case()
    loss, _ = loss_from_hidden(LOSSES["forward"][0], hidden, head, weight_N=weight, law=law)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="already handed over"):
        loss.backward()


def test_a_row_loss_that_depends_on_nothing_has_zero_gradients():
    hidden, head, _, weight = wide_case()
    loss, _ = loss_from_hidden(
        lambda logp, rows: logp.new_ones(logp.shape[0]), hidden, head, weight_N=weight, law=None
    )
    loss.backward()
    assert loss.item() == 60
    assert leaf_grad(hidden).abs().sum() == leaf_grad(head.weight_VD).abs().sum() == 0


@pytest.mark.parametrize("vocab_size", [1, 4, 512, 2048, 32_000, 151_936])
def test_default_tiles_are_small_and_never_thin(vocab_size):
    rows = default_rows_per_tile(vocab_size, torch.device("cpu"))
    assert rows >= 256
    assert rows == 256 or rows * vocab_size * 4 <= 2 * 2**20


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"weight_N": torch.ones(3)}, r"weight_N must hold one entry a row, shape \(7,\), got \(3,\)"),
        ({"token_N": torch.zeros(7, 1, dtype=torch.long)}, r"token_N must hold one entry a row"),
        ({"uniform_N": torch.zeros(8)}, r"uniform_N must hold one entry a row"),
        ({"token_N": torch.full((7,), -100)}, r"token_N must be in 0\.\.5, got ids from -100 to -100"),
        ({"law": DenseLaw(torch.zeros(7, 8))}, r"7 rows over 8 tokens, the student 7 rows over 6"),
        ({"law": DenseLaw(torch.zeros(5, 6))}, r"5 rows over 6 tokens, the student 7 rows over 6"),
    ],
)
@pytest.mark.parametrize("path", ["dense", "tile-3", "autograd-3"])
def test_what_does_not_fit_is_named(path, change, match):
    hidden, head = randn(N, D, seed=3), make_head(torch.float64)
    given = {**make_rows(), "law": DenseLaw(randn(N, V, seed=5).log_softmax(-1)), **change}
    law = given.pop("law")
    with pytest.raises(ValueError, match=match):
        run(path, "forward", hidden, head, law, given)


def test_tiles_of_no_rows():
    hidden, head, law, weight = wide_case()
    with pytest.raises(ValueError, match="rows_per_tile must be at least 1, got 0"):
        loss_from_hidden(LOSSES["forward"][0], hidden, head, weight_N=weight, law=law, rows_per_tile=0)


@pytest.mark.parametrize("path", ["dense", "tile-3", "autograd-3"])
def test_a_row_loss_must_give_one_value_a_row(path, monkeypatch):
    hidden, head = randn(N, D, seed=3), make_head(torch.float64)
    monkeypatch.setitem(LOSSES, "sum", (lambda logp, rows: logp.sum(), None, None))
    with pytest.raises(ValueError, match="row_loss must hold one entry a row"):
        run(path, "sum", hidden, head, None, make_rows())
