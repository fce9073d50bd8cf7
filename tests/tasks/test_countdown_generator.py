"""Puzzles that are drawn: solvable, uniform, and in one split by content, whatever range and seed they come from."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations, product

import numpy as np
import pytest
from countdown_oracle import all_expressions
from scipy.stats import chi2

from understudy.errors import ConfigError
from understudy.tasks import SPLITS
from understudy.tasks.countdown import Generator, Range, is_solvable
from understudy.tasks.drawing import BLOCK
from understudy.tasks.modular_addition import split_of

SMALL = Generator(operands=(3, 4), max_number=12, max_target=24)


@pytest.mark.parametrize(
    "source", [SMALL, Generator(), Generator(operands=(4,), max_number=125, max_target=300)]
)
def test_every_puzzle_is_in_range_and_solvable(source):
    for split in SPLITS:
        assert source.size(split) is None
        for i, p in enumerate(source.puzzles(split, 7, 60)):
            assert (p.index, p.id) == (7 + i, str(7 + i))
            assert len(p.nums) in source.operands
            assert 1 <= min(p.nums) <= max(p.nums) <= source.max_number
            assert 1 <= p.target <= source.max_target
            assert is_solvable(p.nums, p.target)


@pytest.mark.parametrize(("start", "count"), [(0, 1), (BLOCK - 3, 6), (2 * BLOCK, BLOCK), (5, 0)])
def test_an_item_depends_on_its_index_alone(start, count):
    source = Generator(operands=(3, 4), max_number=20, max_target=30)
    for split in SPLITS:
        found = source.puzzles(split, start, count)
        assert found == [p for i in range(start, start + count) for p in source.puzzles(split, i, 1)]
        assert len(found) == count


def test_the_stream_is_pinned():
    """The puzzles of a seed are part of a recipe's result: no version of NumPy or of ours may change them."""
    found = [(*p.nums, p.target) for p in Generator(seed=1337).puzzles("train", 1_000_000, 2)]
    found += [(*p.nums, p.target) for p in Generator(seed=1337).puzzles("validation", 0, 2)]
    assert found == PINNED


PINNED = [(21, 42, 35, 79, 88), (47, 61, 79, 29), (38, 3, 5, 40), (57, 8, 73, 8)]


def test_seeds_and_splits_have_streams_of_their_own():
    streams = {
        tuple(p.nums for p in Generator(seed=seed).puzzles(split, 0, 4))
        for seed, split in product((0, 1), SPLITS)
    }
    assert len(streams) == 6


def test_splits_never_share_a_puzzle_whatever_seed_and_range():
    wide = Generator(operands=(4,), max_number=15, max_target=40, seed=5)
    sources = [SMALL, Generator(operands=(3, 4), max_number=12, max_target=24, seed=2), wide]
    seen = {
        split: [{p.content for p in source.puzzles(split, 0, 512)} for source in sources] for split in SPLITS
    }
    trained = set.union(*seen["train"])
    for split in ("validation", "test"):
        assert not trained & set.union(*seen[split])
    assert not set.union(*seen["validation"]) & set.union(*seen["test"])
    # It would be an empty claim if the ranges never met: the wide one draws puzzles that the small one draws, too.
    assert seen["train"][0] & seen["train"][2]


def test_the_range_of_training_and_the_wider_one_of_testing_never_meet():
    trained = {p.content for p in Generator().puzzles("train", 0, 2048)}
    tested = {
        p.content for p in Generator(operands=(4,), max_number=125, max_target=300).puzzles("test", 0, 512)
    }
    assert not trained & tested
    assert {split_of(np.array([c]))[0] for c in trained} == {0}
    assert {split_of(np.array([c]))[0] for c in tested} == {2}


def test_the_numbers_of_operands_are_equally_likely():
    """1024 puzzles: a share off by 0.08 has probability 3e-7."""
    found = [len(p.nums) for p in Generator(operands=(3, 4)).puzzles("train", 0, 1024)]
    assert abs(found.count(3) / 1024 - 0.5) < 0.08
    assert {len(p.nums) for p in Generator(operands=(2, 4), max_number=9).puzzles("train", 0, 64)} == {2, 4}


def space_of(split, largest: int, largest_target: int) -> list[tuple[int, ...]]:
    """Every puzzle of three numbers in every order, by full enumeration."""
    values = {
        nums: set(all_expressions(nums).values())
        for nums in product(range(1, largest + 1), repeat=3)
        if nums == tuple(sorted(nums))
    }
    return [
        (*nums, target)
        for nums in product(range(1, largest + 1), repeat=3)
        for target in range(1, largest_target + 1)
        if target in values[tuple(sorted(nums))]
        and split_of(np.array([[*sorted(nums), target]]))[0] == SPLITS.index(split)
    ]


def test_solvable_puzzles_of_training_are_equally_likely():
    """Chi-square against the full enumeration of a small range; a false alarm has probability 1e-6."""
    source = Generator(operands=(3,), max_number=6, max_target=9)
    space = space_of("train", 6, 9)
    num = 16 * BLOCK
    counts = dict.fromkeys(space, 0)
    for p in source.puzzles("train", 0, num):
        counts[(*p.nums, p.target)] += 1  # a KeyError is a puzzle that may not come
    expected = num / len(space)
    assert sum((c - expected) ** 2 / expected for c in counts.values()) < chi2.isf(1e-6, len(space) - 1)


@pytest.mark.parametrize("place", [0, 30])
def test_held_out_puzzles_are_drawn_without_repeats(place):
    """The first and the 31st of 37 test puzzles over seeds, against going on drawing until a content is new; the 31st comes
    from the list of what is left. Chi-square over contents by their number of orders; a false alarm has probability 1e-6."""
    space, num = space_of("test", 6, 9), 200
    found = [
        Generator(operands=(3,), max_number=6, max_target=9, seed=s).puzzles("test", 0, 37)
        for s in range(num)
    ]
    assert all((*p.nums, p.target) in space for row in found for p in row)
    rng = np.random.default_rng(0)
    orders = {1: 0, 3: 0, 6: 0}
    expected = dict(orders)
    of = {(*sorted(row[:3]), row[3]): len(set(permutations(row[:3]))) for row in space}
    for _ in range(4000):
        order = rng.permutation(len(space))
        drawn = list(dict.fromkeys((*sorted(space[i][:3]), space[i][3]) for i in order))
        expected[of[drawn[place]]] += num / 4000
    for row in found:
        orders[of[row[place].content]] += 1
    kept = [k for k in orders if expected[k] > 5]
    statistic = sum((orders[k] - expected[k]) ** 2 / expected[k] for k in kept)
    assert len(kept) > 1
    assert statistic < chi2.isf(1e-6, len(kept))


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize("operands", [(3,), (2, 3)])
def test_held_out_puzzles_never_repeat_and_end_with_the_last_one(split, operands):
    source = Generator(operands=operands, max_number=16, max_target=16)
    found = [p.content for p in source.puzzles(split, 0, 10_000)]
    assert len(set(found)) == len(found)
    assert source.puzzles(split, len(found), 5) == []
    assert [p.content for p in source.puzzles(split, 7, 300)] == found[7:307]
    there = {(*sorted(row[:3]), row[3]) for row in space_of(split, 16, 16)}
    assert {content for content in found if len(content) == 4} <= there
    if operands == (3,):
        assert set(found) == there
        assert len(there) > 500


def test_puzzles_of_another_range_are_left_out():
    inner = Range(operands=(3,), max_number=12, max_target=24)
    wide = Generator(operands=(3, 4), max_number=16, max_target=30)
    outer = replace(wide, outside=inner)
    for split in SPLITS:
        inside = [
            p
            for p in wide.puzzles(split, 0, 400)
            if len(p.nums) == 3 and max(p.nums) <= 12 and p.target <= 24
        ]
        assert inside
        kept = outer.puzzles(split, 0, 400)
        assert not {p.content for p in inside} & {p.content for p in kept}
        assert not [p for p in kept if len(p.nums) == 3 and max(p.nums) <= 12 and p.target <= 24]
        assert {len(p.nums) for p in kept} == {3, 4}
    with pytest.raises(ConfigError, match="outside leaves no puzzle"):
        Generator(operands=(3,), max_number=12, max_target=20, outside=inner)


def test_trained_on_all_means_every_puzzle_and_leaves_the_held_out_ones_as_they_were():
    own = Generator(operands=(3,), max_number=6, max_target=12)
    every = replace(own, trains_on_all=True)
    held = {p.content for split in ("validation", "test") for p in own.puzzles(split, 0, 10_000)}
    train = {p.content for p in own.puzzles("train", 0, 10_000)}
    assert held
    assert not held & train
    assert {p.content for p in every.puzzles("train", 0, 20_000)} == held | train
    for split in ("validation", "test"):
        assert every.puzzles(split, 0, 10_000) == own.puzzles(split, 0, 10_000)
    # What is excluded or lies in the other range stays away, here too.
    inner = Range(operands=(3,), max_number=5, max_target=12)
    outer = replace(every, outside=inner, excluded=frozenset(list(held)[:5]))
    found = {p.content for p in outer.puzzles("train", 0, 5000)}
    assert found
    assert not found & set(list(held)[:5])
    assert all(max(content[:3]) == 6 for content in found)


def test_excluded_puzzles_never_come():
    common = {p.content for p in SMALL.puzzles("train", 0, 300)}
    source = Generator(operands=(3, 4), max_number=12, max_target=24, excluded=frozenset(common))
    assert not common & {p.content for p in source.puzzles("train", 0, 600)}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"operands": ()}, "operands lists"),
        ({"operands": (3, 3)}, "each once"),
        ({"operands": (3, 6)}, r"operands must be in 2 \.\. 5, got 6"),
        ({"operands": (1,)}, r"operands must be in 2 \.\. 5, got 1"),
        ({"max_number": 0}, "max_number must be in 1"),
        ({"max_target": 0}, "max_target must be in 1"),
        ({"operands": (5,), "max_number": 5000}, "5 numbers up to 5000 .* too large"),
        ({"seed": -1}, "seed must be >= 0"),
    ],
)
def test_settings_that_cannot_work(setting, message):
    with pytest.raises(ConfigError, match=message):
        Generator(**setting)


def test_a_range_without_puzzles_is_refused_and_does_not_hang():
    source = Generator(operands=(2,), max_number=1, max_target=1)
    empty = next(split for split in SPLITS if split_of(np.array([[1, 1, 1]]))[0] != SPLITS.index(split))
    assert source.puzzles(empty, 0, 1) == [] or empty == "train"
    nothing = Generator(operands=(2,), max_number=1, max_target=1, excluded=frozenset({(1, 1, 1), (1, 1, 2)}))
    with pytest.raises(
        ConfigError, match=r"draws of solvable puzzles of 2 numbers up to 1 .* gave only 0 .*Widen"
    ):
        nothing.puzzles("train", 0, 1)
