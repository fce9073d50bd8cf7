"""The text view of BabyAI by hand, against minigrid's own grid, and the bot's silence where it gives up."""

from __future__ import annotations

import random
import re
import sys

import numpy as np
import pytest

from understudy.errors import ConfigError
from understudy.tasks.environments.babyai import ACTIONS, BEYOND_THE_BOT, BabyAI, _content, _view

minigrid = pytest.importorskip("minigrid", reason="pip install 'understudy[agents-babyai]'")


def things_in_view(world) -> set[tuple[str, int, int]]:
    """Name, steps forward, steps to the right, from the grid itself: turned by hand, not through the image."""
    _, is_seen = world.gen_obs_grid()
    found = set()
    right = np.array((-world.dir_vec[1], world.dir_vec[0]))
    for forward in range(7):
        for side in range(-3, 4):
            x, y = world.agent_pos + forward * world.dir_vec + side * right
            if (forward, side) == (0, 0) or not is_seen[side + 3, 6 - forward]:
                continue
            thing = world.grid.get(x, y) if 0 <= x < world.width and 0 <= y < world.height else None
            if thing is not None and thing.type != "wall":
                found.add((f"{thing.color} {thing.type}", forward, side))
    return found


def things_told(observation: str) -> set[tuple[str, int, int]]:
    found = set()
    for name, forward, side, way in re.findall(
        r"(\w+ \w+) (\d) forward(?:, (\d) (left|right))?", observation
    ):
        if not name.endswith("Wall"):
            found.add((name, int(forward), int(side or 0) * (-1 if way == "left" else 1)))
    return found


@pytest.mark.parametrize("level", ["GoTo", "PutNextLocal", "UnlockPickup", "BossLevel"])
def test_the_text_tells_what_is_in_view(level):
    for index in range(4):
        rng = random.Random(index)
        episode = BabyAI(level=level).make("train", index)
        outcome = episode.start()
        for _ in range(25):
            world = episode._world
            assert things_told(outcome.observation) == things_in_view(world)
            wall = re.search(r"Wall (\d) forward", outcome.observation)
            if wall is not None:
                x, y = world.agent_pos + int(wall[1]) * world.dir_vec
                assert world.grid.get(x, y).type == "wall"
            held = "empty" if world.carrying is None else f"{world.carrying.color} {world.carrying.type}"
            assert outcome.observation.endswith(f"Hand: {held}.")
            if outcome.is_done:
                break
            outcome = episode.step(rng.choice(outcome.admissible or ACTIONS))


def test_a_view_by_hand():
    image = np.zeros((7, 7, 3), dtype=np.uint8)
    image[3, 5] = (4, 5, 2)  # a locked grey door, 1 forward
    image[1, 4] = (6, 0, 0)  # a red ball, 2 forward and 2 left
    image[6, 6] = (7, 3, 0)  # a purple box, 3 right
    image[3, 2] = image[3, 3] = image[2, 5] = (2, 5, 0)  # walls, two of them ahead
    image[3, 6] = (5, 4, 0)  # in the hand
    key = type("Key", (), {"color": "yellow", "type": "key"})
    assert _view(image, key) == (
        "You see: purple box 0 forward, 3 right; locked grey door 1 forward; red ball 2 forward, 2 left. "
        "Wall 3 forward. Hand: yellow key."
    )
    assert _view(np.zeros((7, 7, 3), dtype=np.uint8), None) == "You see: nothing. Hand: empty."


@pytest.mark.parametrize("level", ["UnlockPickup", "PutNextLocal"])
def test_an_action_is_accepted_if_it_changes_the_world(level):
    """Against the world's own state, before and after."""
    num_refused = 0
    for index in range(6):
        rng = random.Random(index)
        episode = BabyAI(level=level).make("train", index)
        outcome = episode.start()
        for _ in range(60):
            if outcome.is_done:
                break
            action = rng.choice([*ACTIONS, "go forward", "pick up", episode.expert_action() or "toggle"])
            before = _content(episode._world)
            outcome = episode.step(action)
            assert outcome.is_accepted == (_content(episode._world) != before), action
            assert outcome.observation.startswith("Nothing happens.") != outcome.is_accepted
            num_refused += not outcome.is_accepted
    assert num_refused > 20


def test_rejected_levels_are_not_told(capsys):
    """minigrid prints for every level that it rejects; among these there are some."""
    for index in range(20):
        BabyAI(level="PutNextLocal").make("train", index).start()
    assert capsys.readouterr().out == ""


def test_an_opened_box_silences_the_bot():
    """It raises there; from then on there is no label, and the episode goes on."""
    for index in range(40):
        episode = BabyAI(level="PickupLoc").make("train", index)
        outcome = episode.start()
        for _ in range(5):
            if "toggle" in (outcome.admissible or ()):
                break
            outcome = episode.step("go forward")
        if "toggle" in (outcome.admissible or ()) and "box 1 forward" in outcome.observation:
            assert episode.expert_action() is not None
            outcome = episode.step("toggle")
            assert (outcome.is_accepted, episode.expert_action()) == (True, None)
            for action in ("turn left", "turn right", "fly"):
                assert not episode.step(action).is_done
                assert episode.expert_action() is None
            return
    pytest.fail("no box was met")


def test_labels_follow_the_action_taken_not_the_one_suggested():
    """Turned away from the goal, the bot turns back: it must have heard of it."""
    episode = BabyAI(level="GoToRedBallNoDists").make("train", 0)
    outcome = episode.start()
    while "red ball" not in outcome.observation.partition("You see")[2]:
        outcome = episode.step(episode.expert_action() or "")
    for _ in range(8):
        outcome = episode.step("turn left")
    num_steps = 0
    while not outcome.is_done:
        outcome = episode.step(episode.expert_action() or "")
        num_steps += 1
    assert outcome.is_won
    assert num_steps < 20


def test_won_and_late_are_two_ends():
    family = BabyAI(level="GoToRedBallNoDists")
    episode = family.make("train", 1)
    outcome = episode.start()
    while not outcome.is_done:
        outcome = episode.step("turn left")
    assert (outcome.is_won, outcome.reward, outcome.admissible) == (False, 0.0, ())
    episode = family.make("train", 1)
    outcome = episode.start()
    while not outcome.is_done:
        outcome = episode.step(episode.expert_action() or "")
    assert outcome.is_won
    assert 0.1 < outcome.reward <= 1


def test_splits_never_share_an_episode_whatever_the_seed():
    """A level of one room and one ball, few enough to come out alike from different seeds."""
    seen = {
        split: {
            _content(BabyAI(level="GoToObjS4", seed=seed).draw(split, i))
            for seed in (0, 1)
            for i in range(40)
        }
        for split in ("train", "validation", "test")
    }
    assert sum(map(len, seen.values())) < 240  # they do come again
    assert not seen["train"] & seen["validation"]
    assert not seen["train"] & seen["test"]
    assert not seen["validation"] & seen["test"]


def test_levels_beyond_the_bot_have_no_labels():
    for level in BEYOND_THE_BOT:
        episode = BabyAI(level=level).make("train", 0)
        episode.start()
        assert episode.expert_action() is None


def test_a_wrong_name_is_told_the_near_ones():
    with pytest.raises(ConfigError, match=r"no BabyAI level 'GoToLocl'\. Near: GoToLocal"):
        BabyAI(level="GoToLocl").make("train", 0).start()
    with pytest.raises(ConfigError, match="seed must be >= 0"):
        BabyAI(seed=-1)


def test_naming_a_level_loads_nothing():
    """Here minigrid is loaded already: look at a fresh interpreter."""
    import subprocess

    code = (
        "import sys; from understudy.tasks.environments.babyai import BabyAI; BabyAI().require(); "
        "assert 'minigrid' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
