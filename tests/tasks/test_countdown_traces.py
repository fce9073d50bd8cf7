"""Traces are honest: every statement is true, tries are complete and different, the answer is the try that it claims."""

from __future__ import annotations

import random
import re

import pytest
from countdown_oracle import by_python, is_right

from understudy.errors import ConfigError
from understudy.tasks.countdown import TraceSettings, is_solvable, make_trace, solutions
from understudy.tasks.countdown.formats import think_text
from understudy.tasks.countdown.traces import compact_text, longest_compact
from understudy.tasks.countdown.tries import expression_of, hits, random_try, written_try
from understudy.tasks.streams import Dice

STEP = re.compile(r"([0-9]+)([-+*/])([0-9]+)=([0-9]+)")


def puzzles(count: int, largest: int = 30, seed: int = 0) -> list[tuple[tuple[int, ...], int]]:
    rng = random.Random(seed)
    found: list[tuple[tuple[int, ...], int]] = []
    while len(found) < count:
        nums = tuple(rng.randint(1, largest) for _ in range(rng.choice([2, 3, 4])))
        target = rng.randint(1, 2 * largest)
        if is_solvable(nums, target):
            found.append((nums, target))
    return found


def check_try(text: str, nums: tuple[int, ...], max_value: int) -> int:
    """Replay a try as text: true statements about numbers that are there. Returns its last result."""
    left = list(nums)
    for step in text.split(","):
        found = STEP.fullmatch(step)
        assert found is not None, text
        a, b, result = int(found[1]), int(found[3]), int(found[4])
        value = by_python(f"{a}{found[2]}{b}")
        assert value is not None
        assert value[0] == result, step
        assert 0 <= result <= max_value
        left.remove(a)
        left.remove(b)  # a ValueError: a number that is not there (any more)
        left.append(result)
    assert len(left) == 1, text
    return left[0]


def check_trace(text: str, nums: tuple[int, ...], target: int, settings: TraceSettings) -> None:
    tries, _, answer = text.rpartition("!")
    values = [check_try(t, nums, settings.max_value) for t in tries.split(";")]
    assert len(set(tries.split(";"))) == len(values) <= settings.max_tries
    assert target not in values[:-1]  # the first hit ends it
    value = by_python(answer)
    assert value is not None
    assert value[0] == values[-1]  # the answer is the last try and no other
    assert sorted(value[1]) == sorted(nums)


@pytest.mark.parametrize(
    "settings",
    [
        TraceSettings(max_tries=1),
        TraceSettings(max_tries=12, max_value=30),
        TraceSettings(max_tries=6, smart=0.3, give_up=0.2, must_solve=False),
        TraceSettings(max_tries=5, smart=1.0),
        TraceSettings(max_tries=40, must_solve=False),
    ],
)
def test_every_statement_of_a_search_is_true(settings):
    for i, (nums, target) in enumerate(puzzles(150)):
        trace = make_trace(nums, target, settings, Dice(0, i))
        assert trace is not None
        text = compact_text(trace)
        check_trace(text, nums, target, settings)
        assert trace.is_right == is_right(trace.answer, list(nums), target)
        assert len(text) <= longest_compact(len(nums), 30, settings)
        if settings.must_solve and not settings.give_up:
            assert trace.is_right == bool(hits(nums, target, settings.max_value))


def test_direct_answers_are_drawn_from_all_solutions():
    settings = TraceSettings(style="direct")
    for i, (nums, target) in enumerate(puzzles(60)):
        trace = make_trace(nums, target, settings, Dice(0, i))
        assert trace is not None
        assert (trace.tries, trace.is_right) == ((), True)
        assert compact_text(trace) == f"!{trace.answer}"
        assert len(compact_text(trace)) <= longest_compact(len(nums), 30, settings)
        assert is_right(trace.answer, list(nums), target)
    nums, target = (1, 2, 3), 6
    drawn = {t.answer for i in range(400) if (t := make_trace(nums, target, settings, Dice(1, i)))}
    assert drawn == set(solutions(nums, target))
    assert make_trace((1, 1), 9, settings, Dice(0)) is None


def test_hits_are_all_tries_that_hit():
    """Against tries drawn at random: a hit that is missing from the list would be drawn before long."""
    for nums, target in (((3, 7, 12), 15), ((2, 2, 4), 8), ((5, 5), 1), ((1, 2, 3, 4), 24)):
        listed = {written_try(t) for t in hits(nums, target, 99)}
        drawn = {
            written_try(t)
            for i in range(3000)
            if (t := random_try(nums, 99, Dice(0, i)))[-1].result == target
        }
        assert drawn <= listed
        assert len(drawn) >= 0.8 * len(listed)
        for taken in hits(nums, target, 99):
            assert check_try(written_try(taken), nums, 99) == target
            assert is_right(expression_of(nums, taken), list(nums), target)


def test_the_example_of_the_format():
    listed = {written_try(t): expression_of((3, 7, 12), t) for t in hits((3, 7, 12), 15, 99)}
    assert listed["12-7=5,5*3=15"] == "(12-7)*3"


def test_fractions_and_large_numbers_are_out_of_reach_of_a_search():
    assert hits((3, 3, 8, 8), 24, 10**6) == []
    trace = make_trace((3, 3, 8, 8), 24, TraceSettings(), Dice(0))
    assert trace is not None
    assert not trace.is_right
    assert len(trace.tries) == 8
    assert {written_try(t) for t in hits((10, 10, 1), 99, 99)} == set()
    assert {written_try(t) for t in hits((10, 10, 1), 99, 100)} == {"10*10=100,100-1=99"}


def test_smart_tries_hit():
    for i, (nums, target) in enumerate(puzzles(60)):
        trace = make_trace(nums, target, TraceSettings(smart=1.0, max_value=10**6), Dice(0, i))
        assert trace is not None
        assert (len(trace.tries), trace.is_right) == (
            1,
            bool(hits(nums, target, 10**6)),
        ) or not trace.is_right


def shares(settings: TraceSettings, count: int = 1000) -> tuple[float, float]:
    """(share of right answers, share of traces with one try) on a puzzle with few hits."""
    found = [make_trace((13, 17, 19, 23), 884, settings, Dice(7, i)) for i in range(count)]
    traces = [trace for trace in found if trace is not None]
    return sum(t.is_right for t in traces) / count, sum(len(t.tries) == 1 for t in traces) / count


def test_the_hit_rate_is_the_one_that_was_asked_for():
    """Standard error 0.016 and less: 0.07 is off by chance in one of 10**5 runs."""
    base, _ = shares(TraceSettings(max_tries=1, must_solve=False))
    assert base < 0.02  # random tries hardly ever hit here
    for smart in (0.2, 0.7):
        right, _ = shares(TraceSettings(max_tries=1, must_solve=False, smart=smart))
        assert right == pytest.approx(smart + (1 - smart) * base, abs=0.07)
        right, _ = shares(TraceSettings(max_tries=3, must_solve=False, smart=smart))
        assert right == pytest.approx(1 - (1 - smart) ** 3, abs=0.07)


def test_giving_up_is_as_likely_as_asked_for():
    right, one = shares(TraceSettings(max_tries=8, must_solve=False, give_up=0.5))
    assert one == pytest.approx(0.5, abs=0.07)
    right, _ = shares(TraceSettings(max_tries=4, must_solve=True, give_up=0.5))
    assert right == pytest.approx(0.5**3, abs=0.05)  # three misses survived, then the hit
    right, one = shares(TraceSettings(max_tries=4, give_up=1.0))
    assert (right, one) == (pytest.approx(0.0, abs=0.02), 1.0)


def test_the_same_dice_give_the_same_trace():
    settings = TraceSettings(smart=0.3, give_up=0.1)
    nums, target = (3, 7, 12), 15
    once = [make_trace(nums, target, settings, Dice(0, i)) for i in range(30)]
    assert once == [make_trace(nums, target, settings, Dice(0, i)) for i in range(30)]
    assert len({compact_text(t) for t in once if t}) > 20


def test_a_search_without_other_tries_ends():
    trace = make_trace((2, 3), 100, TraceSettings(max_tries=50), Dice(0))
    assert trace is not None
    assert {written_try(t) for t in trace.tries} == {"2+3=5", "3-2=1", "2*3=6"}


def test_in_words():
    nums, target = (3, 7, 12), 15
    trace = make_trace(nums, target, TraceSettings(smart=1.0), Dice(0))
    assert trace is not None
    (line,) = [line for line in think_text(trace, target).splitlines() if " = " in line]
    steps = written_try(trace.tries[0])
    assert line.replace(" ", "") == f"{steps}.Thatis15."
    assert think_text(trace, target).startswith("\n")
    direct = make_trace(nums, target, TraceSettings(style="direct"), Dice(0))
    assert direct is not None
    assert re.fullmatch(r"\n</think>\n<answer> [-+*/() 0-9]+ </answer>", think_text(direct, target))
    lost = make_trace((3, 3, 8, 8), 24, TraceSettings(max_tries=2), Dice(0))
    assert lost is not None
    words = think_text(lost, 24)
    assert words.count("That is not 24.") == 2
    assert "I give up.\n</think>" in words


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"max_tries": 0}, "max_tries must be >= 1, got 0"),
        ({"smart": 1.5}, r"smart must be in \[0, 1\], got 1.5"),
        ({"give_up": -0.1}, r"give_up must be in \[0, 1\]"),
        ({"max_value": 0}, "max_value must be >= 1"),
    ],
)
def test_settings_that_cannot_work(setting, message):
    with pytest.raises(ConfigError, match=message):
        TraceSettings(**setting)
