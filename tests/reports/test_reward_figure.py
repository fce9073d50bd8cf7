"""The panels of learning from reward show the numbers of the log."""

import json

import numpy as np
import pytest
from fabricated import write_compare
from test_figures import assert_texts_are_apart

from understudy.errors import DataError
from understudy.reports.folders import load_compare, load_run
from understudy.reports.page import write_report
from understudy.reports.rewards import MAX_BLOCKS, WATCHED, blocks, has_rewards, reward_figure


def rewarded(folder, scale=1.0, steps=120):
    """Give a fabricated run the records of a run that learned from rewards."""
    file = folder / "metrics.jsonl"
    kept = [line for line in file.read_text().splitlines() if json.loads(line)["kind"] != "train"]
    pattern = json.loads(next(x for x in file.read_text().splitlines() if json.loads(x)["kind"] == "train"))
    for step in range(1, steps + 1):
        fields = {
            "reward_mean": scale * step / steps,
            "response_length_mean": 20.0 + step,
            "entropy_nats": 1 / step,
            "zero_variance_rate": 0.25,
        }
        kept.append(json.dumps({**pattern, "step": step, "stage_step": step, **fields}))
    file.write_text("\n".join(kept) + "\n")


@pytest.fixture
def compared(tmp_path):
    folder = write_compare(tmp_path / "all", ["opd-f", "nail-f"], [0, 1])
    for seed in (0, 1):
        rewarded(folder / "cells" / f"nail-f-seed{seed}", scale=1.0 if seed else 0.5)
    return folder


def test_a_block_is_the_mean_of_its_steps(compared):
    """120 steps in 50 blocks of 3 or 2. Fails if steps are dropped, or x and y are of different steps."""
    run = load_run(compared / "cells" / "nail-f-seed1")
    x_P, y_P = blocks(run, "reward_mean")
    assert len(x_P) == MAX_BLOCKS
    assert x_P[:2].tolist() == [2.0, 5.0]
    np.testing.assert_allclose(y_P, x_P / 120)
    assert x_P[-1] == 119.5
    assert blocks(load_run(compared / "cells" / "opd-f-seed1"), "reward_mean") is None


def test_panels_show_seeds_and_their_mean(compared):
    """Of the method that has rewards alone: two thin lines and a thick one in each panel."""
    figure = reward_figure(load_compare(compared))
    assert [axes.get_title(loc="left") or axes.get_title() for axes in figure.axes] == list(WATCHED.values())
    for axes in figure.axes:
        assert [line.get_linewidth() for line in axes.lines[:3]] == [0.8, 0.8, 2]
    *seeds, mean = (np.asarray(line.get_ydata(), dtype=float) for line in figure.axes[0].lines[:3])
    np.testing.assert_allclose(mean, (seeds[0] + seeds[1]) / 2)
    assert seeds[0][-1] == pytest.approx(0.5 * 119.5 / 120)
    assert_texts_are_apart(figure)


def test_runs_without_rewards_have_no_such_figure(tmp_path):
    folder = write_compare(tmp_path / "all", ["opd-f"], [0])
    assert not has_rewards(load_compare(folder))
    with pytest.raises(DataError, match="reward_mean"):
        reward_figure(load_compare(folder))
    assert "Learning from reward" not in write_report(folder).read_text()


def test_the_page_has_it(compared):
    assert "Learning from reward" in write_report(compared).read_text()
    assert (compared / "figures" / "reward.png").is_file()
