"""The book that keeps drafts and chooses among them, and rounds and runs that use it."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace

import pytest

from small import Babble, make_model, make_recipe, make_setup, quiet_console
from understudy.errors import ConfigError
from understudy.experts.local import LocalExpert
from understudy.methods import METHODS
from understudy.randomness import uniforms
from understudy.records import Prompt
from understudy.rollouts.collect import Round, collect
from understudy.rollouts.drafts import DraftBook
from understudy.rollouts.sampler import sample
from understudy.run import train


def prompt(name: str, reference: tuple[int, ...] | None = None) -> Prompt:
    return Prompt(id=name, token_ids=(1,), reference_ids=reference)


def test_the_source_that_has_agreed_best_is_offered():
    """By hand: references right for 3 of 4 tokens, last responses for 1 of 4; halved weight for the round before."""
    book, slots = DraftBook(), [(prompt("a", (1, 2, 3, 4)), 0)]
    assert book.drafts("rollout", slots) == [(1, 2, 3, 4)], "a source nobody knows is worth a try"
    book.learn("rollout", slots, [(1, 2, 3, 4)], [(1, 2, 3, 9)])
    book.keep("rollout", slots, [(1, 2, 3, 9)])
    assert book.drafts("rollout", slots) == [[1, 2, 3, 9]], "the last response is new, and worth a try"
    book.learn("rollout", slots, [(1, 2, 3, 9)], [(1, 2, 3, 4)])
    assert book.drafts("rollout", slots) == [(1, 2, 3, 4)], "7/8 against 3/4"
    for _ in range(2):
        book.learn("rollout", slots, [()], [(5, 2, 3, 4)])
    # references: (3 / 2 + 4) / 4 of 8 + 4 + 8 / 4 tokens... far below; and so are the last ones
    assert book.drafts("rollout", slots) == [()], "what has not agreed is not read"
    assert book.drafts("evaluate", slots) == [(1, 2, 3, 4)], "another use is another matter"
    for _ in range(2):
        book.learn("rollout", slots, [()], [(1, 2, 3, 9)])
    assert book.drafts("rollout", slots) == [[1, 2, 3, 9]], "what would have agreed is offered again"


def test_the_expert_and_the_sample_a_draft_belongs_to():
    book, slots = DraftBook(), [(prompt("a"), 0), (prompt("a"), 1), (prompt("b"), 0)]
    book.keep("expert", slots[:1], [(7, 7)])
    book.keep("rollout", slots[1:2], [(6,)])
    assert book.drafts("rollout", slots) == [[7, 7], [6], ()]
    assert book.drafts("evaluate", slots) == [[7, 7], (), ()]


def test_counts():
    book, slots = DraftBook(), [(prompt("a"), 0), (prompt("b"), 0), (prompt("c"), 0)]
    book.learn("rollout", slots, [(1, 2, 3), (), (4,)], [(1, 2, 5, 5), (9, 9), (4, 4)])
    counts = book.take_counts("rollout")
    assert (counts.offered, counts.accepted, counts.response) == (4, 3, 8)
    assert (counts.acceptance_rate, counts.drafted_rate) == (0.75, 0.375)
    assert book.take_counts("rollout").acceptance_rate is None
    assert book.take_counts("rollout").drafted_rate == 0
    book.learn("evaluate at 0", slots[:1], [(1, 2, 3)], [(1, 2)])
    book.learn("evaluate at 1", slots[:1], [(1,)], [(1,)])
    book.learn("rollout", slots[:1], [(1,)], [(2,)])
    counts = book.take_counts("evaluate")
    assert (counts.offered, counts.accepted, counts.response) == (4, 3, 3)
    assert book.take_counts("evaluate").response == 0
    assert book.take_counts("rollout").offered == 1


def room(num_tokens: int, num_entries: int = 2) -> int:
    """Bytes of that many tokens under ids of one character, by hand."""
    return 4 * num_tokens + num_entries * (320 + 4)


def test_a_full_book_keeps_what_it_has_up_to_date():
    """Fails if it grows beyond its limit, counts a replaced response twice, or forgets old prompts for new ones."""
    book, (a, b) = DraftBook(max_bytes=room(5)), ((prompt("a"), 0), (prompt("b"), 0))
    book.keep("rollout", [a], [(1, 2, 3)])
    book.keep("rollout", [b], [(1, 2, 3)])
    assert book.drafts("rollout", [a, b]) == [[1, 2, 3], ()]
    book.keep("rollout", [a], [(4, 5, 6, 7)])
    book.keep("rollout", [b], [(8,)])
    assert book.drafts("rollout", [a, b]) == [[4, 5, 6, 7], [8]]
    book.keep("rollout", [b], [(8, 9)])
    assert book.drafts("rollout", [a, b]) == [[4, 5, 6, 7], [8]]


def test_a_book_is_what_was_saved(tmp_path):
    """Offered, learnt and full alike. Also with nothing in it. Fails if lengths, keys or rates are lost."""
    book, slots = DraftBook(max_bytes=room(6) + 8), [(prompt("a", (3,)), 0), (prompt("\u00fc,b", (4,)), 1)]
    for name in ("empty", "full"):
        book.save(tmp_path / name)
        found = DraftBook(max_bytes=room(6) + 8)
        found.load(tmp_path / name)
        assert found.drafts("rollout", slots) == book.drafts("rollout", slots)
        found.keep("rollout", slots, [(1, 2), (5, 6, 7, 8, 9)])
        book.learn("rollout", slots, [(), ()], [(1, 2), (9, 6, 5)])
        book.keep("rollout", slots, [(1, 2), (9, 6, 5)])
    assert found.drafts("rollout", slots) == [[1, 2], [9, 6, 5]], "it was full"


def test_a_book_takes_no_more_room_than_it_says(tmp_path):
    """Short responses to many prompts are mostly names: memory and file stay under the bound, and near it.

    Fails if entries are not counted, or if a loaded book keeps more than its entries.
    """
    limit = 1 << 20
    tracemalloc.start()
    try:
        book, first = DraftBook(max_bytes=limit), [(prompt("first"), 0)]
        book.keep("rollout", first, [(7,) * (limit // 12)])
        for i in range(5000):
            book.keep("rollout", [(prompt(f"{i} \u00fc" + "\U0001f600" * (i % 7)), 0)], [(i,) * (1 + i % 3)])
        assert 0.6 * limit < tracemalloc.get_traced_memory()[0] <= limit
        book.save(tmp_path / "book")
        del book
        found = DraftBook(max_bytes=limit)
        found.load(tmp_path / "book")
        assert 0.6 * limit < (used := tracemalloc.get_traced_memory()[0]) <= limit
        found.keep("rollout", first, [(7,)])
        assert tracemalloc.get_traced_memory()[0] < used - limit // 4, "what has been replaced is gone"
    finally:
        tracemalloc.stop()
    assert (tmp_path / "book").stat().st_size <= limit


def test_the_header_of_the_file_does_not_grow(tmp_path):
    """The format allows it 100 MB; a million prompts' names would not fit."""
    book = DraftBook()
    for i in range(300):
        book.keep("rollout", [(prompt(f"train/{i}"), 0)], [(1,)])
    book.save(tmp_path / "book")
    assert int.from_bytes((tmp_path / "book").read_bytes()[:8], "little") < 1000


# --- rounds and runs -----------------------------------------------------------------------------------------------------

FINITE = Babble(num_train=6)
EXPERT = LocalExpert(make_model(seed=60, vocab=12), 12, identity="sixty")


def rounds(tmp_path, drafts: str, name: str = "opd-f", **changes):
    recipe = make_recipe(
        method__name=name, rollouts__drafts=drafts, train__samples_per_prompt=2, data__offline="reference"
    )
    sources = make_setup(recipe, tmp_path, task=FINITE, expert=EXPERT).sources
    found = []
    for number in range(3):
        this = Round(number=number, first_prompt=6 * number, num_prompts=6, student_version=0, **changes)
        method = METHODS[name]
        found.append(collect(sources, method.prefixes, method.resolve_options({}), this))
        assert sources.drafts is not None
        found.append(sources.drafts.take_counts("rollout"))
    return found


def texts(trajectories) -> dict[tuple[str, int], tuple[int, ...]]:
    return {(t.prompt.id, t.sample_index): t.response_ids for t in trajectories}


def test_coupled_draws_come_again_and_others_do_not(tmp_path):
    """Six prompts, three epochs, a student that stays as it is: coupled, all is accepted from the second epoch on.

    Fails if coupled draws depend on the round, samples of a prompt share them, drafts of another sample are
    offered, or uncoupled draws come again.
    """
    first, _, second, counts, third, last = rounds(tmp_path, "coupled")
    assert texts(first) == texts(second) == texts(third)
    assert counts.acceptance_rate == last.acceptance_rate == 1
    assert counts.drafted_rate == last.drafted_rate == 1
    pairs = [texts(first)[f"train/{i}", 0] == texts(first)[f"train/{i}", 1] for i in range(6)]
    assert sum(pairs) <= 2
    fresh = rounds(tmp_path, "auto")
    assert sum(texts(fresh[0])[k] == texts(fresh[2])[k] for k in texts(fresh[0])) <= 3


def test_coupled_draws_are_a_race(tmp_path):
    """What is written with coupled draws is what the rule for them draws from numbers named by prompt and sample.

    Fails if the rule is lost on the way: coupled draws would then be kept a few tokens long only.
    """
    recipe = make_recipe(method__name="opd-f", rollouts__drafts="coupled")
    sources = make_setup(recipe, tmp_path, task=FINITE, expert=EXPERT).sources
    this = Round(number=3, first_prompt=0, num_prompts=6, student_version=0)
    found = collect(sources, METHODS["opd-f"].prefixes, {}, this)
    names = [(recipe.seed, "rollout", "every round", t.prompt.id, 0) for t in found]
    given = {"limits": sources.limits, "uniform_BT": uniforms(names, FINITE.max_new_tokens)}
    prompts = [t.prompt for t in found]
    expected, other = (
        sample(prompts, student=sources.student(), is_coupled=is_coupled, **given)
        for is_coupled in (True, False)
    )
    assert [t.response_ids for t in found] == [r.token_ids for r in expected]
    assert [t.response_ids for t in found] != [r.token_ids for r in other]


def test_coupled_draws_do_not_couple_who_writes(tmp_path):
    """A mixture by sequence still tosses its own coin each round: 36 tosses, an equal half 20 of 36 or so."""
    found = rounds(tmp_path, "coupled", "gkd")[::2]
    authors = [[t.is_student[0] for t in r] for r in found]
    assert authors[0] != authors[1] != authors[2]


def test_two_writers_do_not_draw_the_same_again(tmp_path):
    """Coupled or not, the expert's tokens of a mixture by token are fresh: first tokens that it wrote in both of two
    rounds, from one and the same law, do not all agree."""
    first, _, second, *_ = rounds(tmp_path, "coupled", "dagger")
    pairs = [
        (a.response_ids[0], b.response_ids[0])
        for a, b in zip(first, second, strict=True)
        if not a.is_student[0] and not b.is_student[0]
    ]
    assert len(pairs) > 2
    assert any(a != b for a, b in pairs)


def test_what_the_expert_wrote_is_kept(tmp_path):
    """In a mixture by sequence: its response to a prompt, under the sample that it was written for."""
    recipe = make_recipe(method__name="gkd", train__samples_per_prompt=2)
    sources = make_setup(recipe, tmp_path, task=FINITE, expert=EXPERT).sources
    this = Round(number=0, first_prompt=0, num_prompts=6, student_version=0)
    found = collect(sources, METHODS["gkd"].prefixes, METHODS["gkd"].resolve_options({}), this)
    assert sources.drafts is not None
    for t in found:
        kept = sources.drafts.drafts("something else", [(prompt(t.prompt.id), t.sample_index)])
        assert kept == [()] if t.is_student[0] else kept == [list(t.response_ids)]


def test_nothing_is_kept_where_the_student_never_writes(tmp_path):
    """Fixed data alone: nobody would ever read the drafts, and checkpoints would hold them."""
    recipe = make_recipe(method__name="kd", train__samples_per_prompt=2)
    sources = make_setup(recipe, tmp_path, task=FINITE, expert=EXPERT).sources
    this = Round(number=0, first_prompt=0, num_prompts=6, student_version=0)
    found = collect(sources, METHODS["kd"].prefixes, {}, this)
    assert sources.drafts is not None
    offered = [sources.drafts.drafts("rollout", [(prompt(t.prompt.id), t.sample_index)]) for t in found]
    assert offered == [[()]] * 12


def test_prompts_of_an_endless_task_are_not_kept(tmp_path):
    recipe = make_recipe(method__name="opd-f")
    sources = make_setup(recipe, tmp_path, task=replace(FINITE, num_train=None), expert=EXPERT).sources
    this = Round(number=0, first_prompt=0, num_prompts=6, student_version=0)
    found = collect(sources, METHODS["opd-f"].prefixes, {}, this)
    assert sources.drafts is not None
    assert sources.drafts.drafts("rollout", [(prompt(t.prompt.id), 0) for t in found]) == [()] * 6


def test_an_evaluation_has_the_last_ones_drafts(tmp_path):
    """The same weights a second time: all that was written is there already, greedy and sampled; the same numbers."""
    s = make_setup(make_recipe(method__name="opd-f"), tmp_path)
    book = s.sources.drafts
    assert book is not None
    first = s.evaluate()
    for use in ("evaluate at 0", "evaluate at 1"):
        assert book.take_counts(use).drafted_rate < 1
    second = s.evaluate()
    for use in ("evaluate at 0", "evaluate at 1"):
        assert book.take_counts(use).drafted_rate == 1
    assert first.to_json() == second.to_json()


@pytest.mark.parametrize("drafts", ["auto", "coupled"])
def test_processes_with_books_of_their_own(tmp_path, drafts):
    """Two processes, each with a book of its own prompts: together the trajectories of one."""
    whole = rounds(tmp_path, drafts)[::2]
    shares = [rounds(tmp_path, drafts, process=i, num_processes=2)[::2] for i in range(2)]
    for one, a, b in zip(whole, *shares, strict=True):
        assert texts(one) == texts(a) | texts(b)


def records(folder) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if "seconds" not in k} for r in rows]


def run(folder, drafts: str, method: str = "nail-f", **settings) -> list[dict]:
    recipe = make_recipe(
        method__name=method,
        rollouts__drafts=drafts,
        train__steps=6,
        evaluate__every_steps=2,
        **{"optimizer__learning_rate": 0.01, **settings},
    )
    train(recipe, folder, console=quiet_console())
    return records(folder)


def popped_rates(rows: list[dict]) -> dict[str, list[tuple]]:
    """(acceptance, share of drafts) of every record, by its kind; taken out of the records."""
    found: dict[str, list[tuple]] = {"train": [], "eval": []}
    for r in rows:
        if r["kind"] in found:
            found[r["kind"]].append((r.pop("draft_acceptance_rate"), r.pop("drafted_rate")))
    return found


@pytest.mark.parametrize("method", ["nail-f", "opd-r"])
def test_a_run_with_drafts_is_the_run_without(tmp_path, method):
    """Greedy and sampled, references for drafts, evaluations with the last one's: the same losses and metrics, to the
    last bit even, as the trajectories are the same (no tie is near in these runs)."""
    with_drafts, without = (run(tmp_path / d, d, method) for d in ("auto", "off"))
    rates, none = popped_rates(with_drafts), popped_rates(without)
    assert with_drafts == without
    assert set(none["train"] + none["eval"]) == {(None, 0.0)}
    for kind in ("train", "eval"):
        acceptance, drafted = rates[kind][0]
        assert acceptance is not None
        assert 0 < drafted <= acceptance < 1
    assert rates["train"][0][0] == rates["train"][0][1], "references of the same length"


def test_evaluations_log_their_drafts(tmp_path):
    """A student that hardly moves writes each evaluation what it wrote in the last one, greedy and sampled.

    Fails if rates are those of rollouts, of one kind of response only, or sums over evaluations.
    """
    rows = run(tmp_path, "auto", "opd-r", optimizer__learning_rate=1e-9)
    first, *later = popped_rates(rows)["eval"]
    assert first[1] < 1
    assert later == [(1.0, 1.0)] * 3


def test_coupled_draws_are_no_fresh_samples():
    with pytest.raises(ConfigError, match=r"coupled.*does not fit opd-pg"):
        make_recipe(method__name="opd-pg", rollouts__drafts="coupled")
    make_recipe(method__name="opd-r", rollouts__drafts="coupled")


@pytest.mark.parametrize("drafts", ["auto", "coupled"])
def test_a_resumed_run_has_its_drafts(tmp_path, drafts):
    """Gone on from a checkpoint in the third epoch: the same weights, and the same records, draft rates included.

    Fails if a checkpoint holds no drafts, or not how well they have done.
    """
    recipe = make_recipe(
        method__name="opd-f",
        rollouts__drafts=drafts,
        train__steps=6,
        train__batch_size=4,
        checkpoint__every_steps=4,
        evaluate__every_steps=3,
        evaluate__expert_kl=False,
        data__offline="reference",
    )
    task = replace(FINITE, num_train=8)
    folder = tmp_path / "run"
    train(recipe, folder, task=task, expert=EXPERT, console=quiet_console())
    before = records(folder), (folder / "final" / "model.safetensors").read_bytes()
    (folder / "result.json").unlink()
    (folder / "final").rename(tmp_path / "first")
    train(recipe, folder, task=task, expert=EXPERT, resume=True, console=quiet_console())
    assert (records(folder), (folder / "final" / "model.safetensors").read_bytes()) == before
    rates = [r["draft_acceptance_rate"] for r in before[0] if r["kind"] == "train"]
    assert rates[0] is not None, "references are tried first"
    assert (rates[-1] is not None) == (drafts == "coupled"), (
        "fresh draws of a diffuse student part from all drafts"
    )
