"""The learning rate and the reasons to stop, by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from understudy.errors import TrainingError
from understudy.schema import OptimizerConfig, StopConfig
from understudy.trainer.checkpoint import Progress
from understudy.trainer.schedule import learning_rate_at
from understudy.trainer.stopping import improves, stop_reason


def rates(total: int, **settings) -> list[float]:
    config = OptimizerConfig(learning_rate=8.0, **settings)
    return [learning_rate_at(step, total, config) for step in range(total)]


def test_constant_after_warm_up():
    assert rates(6, warmup_steps=4) == [2, 4, 6, 8, 8, 8]
    assert rates(3) == [8, 8, 8]


def test_linear_reaches_its_end_at_the_last_step():
    assert rates(5, schedule="linear") == pytest.approx([8, 6, 4, 2, 0])
    # 0.25 of the peak at the end; the peak itself at the last step of the warm-up and the first after it
    assert rates(7, schedule="linear", warmup_steps=2, final_rate=0.25) == pytest.approx(
        [4, 8, 8, 6.5, 5, 3.5, 2]
    )


def test_cosine_by_hand():
    # 4 (1 + cos(pi k / 4)), k = 0 .. 4
    assert rates(5, schedule="cosine") == pytest.approx([8, 6.8284271, 4, 1.1715729, 0], abs=1e-6)
    assert rates(5, schedule="cosine", final_rate=0.5)[-1] == pytest.approx(4)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_schedules_of_one_step_and_of_warm_up_only(schedule):
    assert rates(1, schedule=schedule) == [8]
    assert rates(2, schedule=schedule, warmup_steps=5) == pytest.approx([1.6, 3.2])


def seen(**values: float):
    return SimpleNamespace(metrics={name: SimpleNamespace(value=v) for name, v in values.items()})


def reasons(stop: StopConfig, values: list[float]) -> list[str | None]:
    progress = Progress()
    return [stop_reason(stop, seen(**{stop.metric: v}), progress) for v in values]  # pyright: ignore


def test_a_target_is_reached_from_below_for_rates_and_from_above_for_nats():
    assert reasons(StopConfig(metric="accuracy_greedy", target=0.9), [0.5, 0.89, 0.9]) == [
        None,
        None,
        "target",
    ]
    found = reasons(StopConfig(metric="validation_loss_nats", target=0.3), [2.0, 0.31, 0.3])
    assert found == [None, None, "target"]


def test_patience_counts_evaluations_without_improvement():
    stop = StopConfig(metric="accuracy_greedy", patience=2)
    assert reasons(stop, [0.1, 0.2, 0.2, 0.3, 0.3, 0.1]) == [None, None, None, None, None, "patience"]
    falling = StopConfig(metric="expert_kl_nats", patience=1)
    assert reasons(falling, [3.0, 2.0, 2.5]) == [None, None, "patience"]


def test_small_gains_are_none():
    """An improvement is measured from the best value, not from the last: slow progress adds up."""
    stop = StopConfig(metric="accuracy_greedy", patience=2, min_delta=0.1)
    assert reasons(stop, [0.5, 0.55, 0.61, 0.65, 0.7]) == [None, None, None, None, "patience"]
    assert improves("x_nats", 1.0, 1.2, 0.1)
    assert not improves("x_nats", 1.15, 1.2, 0.1)


def test_a_metric_that_was_not_measured_is_named():
    with pytest.raises(TrainingError, match=r"'accuracy_greedy' was not measured.*validation_loss_nats"):
        stop_reason(
            StopConfig(metric="accuracy_greedy", target=1.0),
            seen(validation_loss_nats=1.0),  # pyright: ignore
            Progress(),
        )
