"""What two benchmarks make of their measurements: changes of a loss by hand, and the phases of real steps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def root_on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))


def test_a_change_of_the_mean_is_no_mean_of_changes():
    """Two blocks: tokens change by +0.3 and -0.1, then by -0.5; means by 0.1 and 0.5, single tokens by 0.3 and 0.5 at most."""
    from benchmarks.expert_dtype import LOSSES, compared

    whole = [
        {name: torch.tensor([1.0, 2.0]) for name in LOSSES},
        {name: torch.tensor([3.0]) for name in LOSSES},
    ]
    rounded = [
        {name: torch.tensor([1.3, 1.9]) for name in LOSSES},
        {name: torch.tensor([2.5]) for name in LOSSES},
    ]
    figures, table = compared(whole, rounded)
    assert len(figures) == 2 * len(LOSSES)
    for mean, largest in zip(figures[::2], figures[1::2], strict=True):
        assert (mean.low, mean.ratio_median, mean.high) == pytest.approx((0.1, 0.3, 0.5))
        assert (largest.low, largest.high) == pytest.approx((0.3, 0.5))
        assert (mean.met, largest.met) == (False, None)
    for row in table.values():
        assert (row["float32 expert"], row["bfloat16 expert"]) == pytest.approx((2.0, 1.9))
        assert (row["mean change at a token"], row["response tokens"]) == pytest.approx((0.3, 3))


def test_phases_of_a_step_are_its_parts(tmp_path):
    """By the same clock as the whole: they add up to nearly all of it, step by step, and to no more.

    Fails if phases go by wall time, or if those of several steps are added up.
    """
    from benchmarks.common import interleaved
    from benchmarks.scaling import PHASES, Stepper
    from benchmarks.step_ours import make_setup
    from benchmarks.step_workload import SMOKE, write_workload

    write_workload(SMOKE, tmp_path)
    stepper = Stepper.of(make_setup(tmp_path, {}, torch.device("cpu"))[0], SMOKE)
    found = interleaved({"step": stepper}, repeats=3)["step"]
    steps = stepper.clock.steps[1:]
    assert len(steps) == len(found) == 3
    for step, timing in zip(steps, found, strict=True):
        assert set(step) == set(PHASES)
        assert 0.7 * timing.cpu_seconds < sum(step.values()) <= timing.cpu_seconds


def test_the_slope_of_a_power_is_its_exponent():
    from benchmarks.scaling import slope

    assert slope([1.0, 2.0, 8.0], [3 * n**1.27 for n in (1.0, 2.0, 8.0)]) == pytest.approx(1.27)
