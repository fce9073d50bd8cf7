"""A ditch whose labels are shared by the steps: what cloning and DAgger lose there, exactly.

H horizon, I rare observations, k of them unlabelled (K = I + 1 values), n demonstrations or episodes. On the road every step
shows one of I rare observations, each at one rate, or a common one whose answer is known. A rare one without a label is
answered wrongly and leads into a ditch of depth 1; what to do there is one more label. Answers and the way out are the same
at all steps: clean, realizable, nothing to learn twice. Demonstrations never show the ditch.
"""

from __future__ import annotations

import numpy as np

from understudy.theory.accumulation import table_regret
from understudy.theory.mdp import Array


def cloned_law(horizon: int, num_rare: int, rate: float, num_demos: int) -> Array:
    """The law [K] of how many rare observations n demonstrations, n H draws, have not shown."""
    _require(horizon, num_rare, rate, num_demos)
    unlabelled_K = np.arange(num_rare + 1)
    draw_KK = np.diag(1 - rate * unlabelled_K) + np.diag(rate * unlabelled_K[1:], -1)
    return np.linalg.matrix_power(draw_KK, horizon * num_demos)[num_rare]


def dagger_law(horizon: int, num_rare: int, rate: float, num_episodes: int) -> Array:
    """The law [K, 2] of (unlabelled observations, whether the ditch has a label) after n episodes of DAgger.

    1 for t in 1..n:
    2   play an episode with the labels so far: slip at an unlabelled observation, stay in an unlabelled ditch
    3   label every visited state
    """
    _require(horizon, num_rare, rate, num_episodes)
    law_K2 = np.zeros((num_rare + 1, 2))
    law_K2[num_rare, 0] = 1
    episode_S = np.stack([_after_episode(horizon, rate, k, c, num_rare) for k, c in np.ndindex(law_K2.shape)])
    transition_SS = episode_S.reshape(law_K2.size, law_K2.size)
    return (law_K2.ravel() @ np.linalg.matrix_power(transition_SS, num_episodes)).reshape(law_K2.shape)  # 1


def _after_episode(horizon: int, rate: float, unlabelled: int, climbs: int, num_rare: int) -> Array:
    """The law [K, 2] of what is known after one episode that starts with so much known."""
    # [M, 2]: m of the unlabelled observations were met in this episode, and whether the ditch was visited
    met_M1 = np.arange(unlabelled + 1)[:, None]
    road_M2, ditch_M2 = np.zeros((unlabelled + 1, 2)), np.zeros((unlabelled + 1, 2))
    road_M2[0, 0] = 1
    for _ in range(horizon):
        first_M2 = np.zeros_like(road_M2)
        first_M2[1:] = (road_M2 * rate * (unlabelled - met_M1))[:-1]
        # The policy does not change within an episode: an observation that was met before is a slip again.
        slip_M2 = first_M2 + road_M2 * rate * met_M1  # 2
        visited_M2 = np.zeros_like(ditch_M2)
        visited_M2[:, 1] = ditch_M2.sum(1)  # 3
        road_M2 = road_M2 * (1 - rate * unlabelled) + climbs * visited_M2
        ditch_M2 = slip_M2 + (1 - climbs) * visited_M2
    after_K2 = np.zeros((num_rare + 1, 2))
    for met, (dry, wet) in enumerate(road_M2 + ditch_M2):
        after_K2[unlabelled - met] = (0, dry + wet) if climbs else (dry, wet)
    return after_K2


def share_lost(horizon: int, num_rare: int, num_episodes: int, is_online: bool) -> float:
    """E regret / H, at the rate 1/(n H + 1) (at most 1/I) that is hardest for n H labels; exact."""
    rate = min(1 / (num_episodes * horizon + 1), 1 / num_rare)
    if is_online:
        law_K2 = dagger_law(horizon, num_rare, rate, num_episodes)
    else:
        # No demonstration shows the way out.
        law_K2 = np.stack([cloned_law(horizon, num_rare, rate, num_episodes), np.zeros(num_rare + 1)], -1)
    return float((law_K2 * regret_table(horizon, num_rare, rate)).sum()) / horizon


def regret_table(horizon: int, num_rare: int, rate: float) -> Array:
    """Regret [K, 2] of a student with k unlabelled observations and without, or with, a way out of the ditch."""
    error_KH = np.repeat(rate * np.arange(num_rare + 1)[:, None], horizon, axis=1)
    return np.stack(
        [table_regret(error_KH, np.full(error_KH.shape, way_out))[0] for way_out in (False, True)], -1
    )


def _require(horizon: int, num_rare: int, rate: float, num: int) -> None:
    if horizon < 1 or num_rare < 1 or num < 0 or not 0 < rate * num_rare <= 1:
        raise ValueError(
            "horizon, num_rare >= 1, num >= 0 and 0 < rate * num_rare <= 1 expected, got "
            f"{horizon}, {num_rare}, {num}, {rate}."
        )
