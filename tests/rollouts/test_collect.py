"""A round: who writes which trajectory, under which name, on which process."""

from __future__ import annotations

from dataclasses import replace

import pytest

from small import Babble, make_model, make_recipe, make_setup
from understudy.experts.local import LocalExpert
from understudy.methods import METHODS
from understudy.rollouts.collect import Round, collect

EXPERT = LocalExpert(make_model(seed=50, vocab=12), 12, identity="fifty")


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    recipe = make_recipe(method__name="gkd", train__samples_per_prompt=2)
    return make_setup(recipe, tmp_path_factory.mktemp("collect"), task=Babble(), expert=EXPERT).sources


def this(number: int = 3, **changes) -> Round:
    base = Round(number=number, first_prompt=40, num_prompts=12, student_version=17)
    return replace(base, **changes)


def rows(name: str, sources, round: Round | None = None, **options):
    method = METHODS[name]
    return collect(sources, method.prefixes, method.resolve_options(options), round or this())


def content(t):
    return (t.id, t.response_ids, t.is_student, t.finish, t.student_version)


@pytest.mark.parametrize("name", ["sft", "gkd", "dagger", "opd-f", "nail-f"])
def test_processes_share_a_round_and_change_nothing(sources, name):
    """One process, two, or five: together the same trajectories. Fails if a prompt falls to two or to none, or if
    tokens, authors or fixed data depend on the process."""
    whole = {t.id: content(t) for t in rows(name, sources)}
    assert len(whole) == 24
    for processes in (2, 5):
        shares = [rows(name, sources, this(process=i, num_processes=processes)) for i in range(processes)]
        assert max(map(len, shares)) - min(map(len, shares)) <= 2
        assert {t.id: content(t) for share in shares for t in share} == whole
        assert sum(map(len, shares)) == 24


def test_samples_rounds_and_seeds_have_their_own_streams(sources):
    """Fails if samples of a prompt are copies, or if a round or a seed draws like another."""
    found = rows("opd-f", sources)
    pairs = list(zip(found[::2], found[1::2], strict=True))
    assert all((a.prompt.id, a.sample_index, b.sample_index) == (b.prompt.id, 0, 1) for a, b in pairs)
    assert sum(a.response_ids == b.response_ids for a, b in pairs) <= 4
    later = rows("opd-f", sources, this(4))
    other = rows("opd-f", replace(sources, seed=1))
    for another in (later, other):
        assert sum(a.response_ids == b.response_ids for a, b in zip(found, another, strict=True)) <= 8


def test_more_samples_keep_the_first_ones(sources):
    found = rows("opd-f", sources)
    one = rows("opd-f", replace(sources, samples_per_prompt=1))
    assert [t.response_ids for t in one] == [t.response_ids for t in found[::2]]


def test_authors_are_marked(sources):
    """Fixed data is nobody's student's; a rollout is the student's, of its version; a mixture per sequence has
    whole trajectories of both; one per token both within one."""
    for t in rows("sft", sources):
        assert (t.student_version, any(t.is_student)) == (-1, False)
    for t in rows("opd-f", sources):
        assert (t.student_version, all(t.is_student), t.round) == (17, True, 3)
    mixed = rows("gkd", sources)
    assert {all(t.is_student) for t in mixed} == {any(t.is_student) for t in mixed} == {True, False}
    assert all(t.student_version == (17 if t.is_student[0] else -1) for t in mixed)
    fixed = {t.id: content(t) for t in rows("sft", sources)}
    assert all(content(t) == fixed[t.id] for t in mixed if not t.is_student[0])
    first, second = (rows("dagger", sources, this(number)) for number in (0, 1))
    assert not any(any(t.is_student) for t in first), "the expert writes the first round alone"
    assert 0.2 < sum(map(sum, (t.is_student for t in second))) / sum(len(t.is_student) for t in second) < 0.8


@pytest.mark.parametrize(("name", "temperature"), [("nail-f", 0.0), ("opd-f", 1.0)])
def test_the_temperature_is_the_rows_unless_given(sources, name, temperature):
    assert {t.temperature for t in rows(name, sources)} == {temperature}
    assert {t.temperature for t in rows(name, sources, rollout_temperature=0.3)} == {0.3}


def test_greedy_samples_of_a_prompt_are_one(sources):
    found = rows("nail-f", sources)
    assert [t.response_ids for t in found[::2]] == [t.response_ids for t in found[1::2]]


def test_references_as_fixed_data(sources):
    for t in rows("sft", replace(sources, offline="reference")):
        assert t.response_ids == t.prompt.reference_ids
