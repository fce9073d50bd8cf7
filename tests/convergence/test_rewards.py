"""Rewards alone teach: a bandit of seven tokens, from a student that has never seen an answer."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest
import torch

from small import Babble, make_recipe, quiet_console
from understudy.run import train
from understudy.tasks.task import Grade


@dataclass(frozen=True, kw_only=True)
class Threes(Babble):
    """Half a point for a response that begins with 3, half for one that ends at once after it."""

    name: str = "threes"

    def grade(self, prompt, response_ids) -> Grade | None:
        begins = bool(response_ids) and response_ids[0] == 3
        ends = begins and len(response_ids) == 2 and response_ids[1] in self.eos_ids
        return Grade(score=0.5 * begins + 0.5 * ends, is_correct=ends)


def rewards(folder, seed: int, **settings) -> list[float]:
    recipe = make_recipe(
        method__name="grpo",
        expert=None,
        seed=seed,
        train__steps=40,
        train__batch_size=64,
        train__samples_per_prompt=8,
        optimizer__learning_rate=0.01,
        **settings,
    )
    train(recipe, folder, task=Threes(), console=quiet_console())
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["reward_mean"] for row in rows if row["kind"] == "train"]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"method__advantage": "rloo", "method__loss_norm": "token", "method__kl": 0.001},
        {"method__advantage": "dr-grpo", "method__loss_norm": "constant", "method__epochs": 2},
    ],
)
def test_the_reward_rises(tmp_path, settings):
    """Effect: the mean reward of a round of 64 responses goes from 0.03 to a half (it begins with 3) and above (and ends).
    Statistic: the mean of the first two rounds below 0.15 and of the last four above 0.3. Measured at seeds 0 to 4 of all
    three settings: 0.01 to 0.05 at first, 0.41 to 0.91 at last. 256 rewards of at most 1 have a standard error of at most
    0.03; that a run stays below 0.3 by chance was not seen, and the seed is fixed.
    """
    found = rewards(tmp_path / "run", 0, **settings)
    assert sum(found[:2]) / 2 < 0.15
    assert sum(found[-4:]) / 4 > 0.3


def test_without_advantages_it_does_not(tmp_path, monkeypatch):
    """The control: the same run with every advantage 0 stays where it was."""
    monkeypatch.setattr(
        "understudy.trainer.reward.group_advantage", lambda reward_PG, rule: torch.zeros_like(reward_PG)
    )
    found = rewards(tmp_path / "run", 0)
    assert max(found) < 0.15
