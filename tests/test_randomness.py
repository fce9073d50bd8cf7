"""Streams are named by what they are for; nothing else moves them."""

from __future__ import annotations

import numpy as np
import pytest

from understudy.randomness import generator, uniforms


def test_a_stream_depends_on_its_name_alone():
    """Fails if streams are consumed one after another, or seeded by the place in the list."""
    names = [(0, "rollout", 3, "train/7", s) for s in range(5)]
    together = uniforms(names, 4)
    generator(0, "something else").random(100)
    np.random.default_rng(0).random(10)
    for i in (4, 0, 2):
        np.testing.assert_array_equal(uniforms([names[i]], 4)[0], together[i])
    np.testing.assert_array_equal(uniforms(names, 9)[:, :4], together)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((0, "rollout", 1, "a", 0), (1, "rollout", 1, "a", 0)),
        ((0, "rollout", 1, "a", 0), (0, "label", 1, "a", 0)),
        ((0, "rollout", 1, "a", 0), (0, "rollout", 2, "a", 0)),
        ((0, "rollout", 1, "a", 0), (0, "rollout", 1, "b", 0)),
        ((0, "rollout", 1, "a", 0), (0, "rollout", 1, "a", 1)),
        # names that are the same once they are glued together
        ((0, "rollout", 1, "1", 0), (0, "rollout", 11, "", 0)),
        ((0, "x", 12), (0, "x", 1, 2)),
    ],
)
def test_every_part_of_a_name_counts(one, other):
    """Fails if a part is left out of the hash, or parts are joined without a separator."""
    assert (uniforms([one], 8) != uniforms([other], 8)).all()


def test_the_stream_of_a_name_is_fixed_for_good():
    """Data sets and resumed runs of another day must draw the same: the numbers themselves are held."""
    found = uniforms([(0, "rollout", 1, "train/7", 2)], 3)[0]
    assert found.tolist() == [0.5869887447133673, 0.38890973354919567, 0.7753107931559101]


def test_uniforms_are_uniform():
    """20,000 first numbers of different streams: mean 1/2, variance 1/12, all in [0, 1).

    Five standard errors each: 6e-7 chance of a false alarm for a new set of names; these names are fixed.
    """
    n = 20_000
    drawn = uniforms([(7, "x", i) for i in range(n)], 1)[:, 0]
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert abs(drawn.mean() - 1 / 2) < 5 * (1 / 12 / n) ** 0.5
    # the fourth central moment of a uniform number is 1/80
    assert abs(drawn.var() - 1 / 12) < 5 * ((1 / 80 - 1 / 144) / n) ** 0.5
    lag = np.corrcoef(drawn[:-1], drawn[1:])[0, 1]
    assert abs(lag) < 5 / n**0.5
