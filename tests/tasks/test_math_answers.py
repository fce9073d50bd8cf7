"""Mathematical answers: what math-verify gets right, what is kept from it, and what a hostile response can do (nothing)."""

from __future__ import annotations

import os
import threading
import time

import pytest
from tiny_tokenizer import make_tokenizer

from understudy.errors import ConfigError
from understudy.tasks import math as math_answers
from understudy.tasks.answers import GRADERS
from understudy.tasks.math import grade_math

EQUAL = [
    ("so it is \\boxed{0.5}", "\\frac12", "1/2"),
    ("\\boxed{\\dfrac{1}{2}}", "0.5", "1/2"),
    ("\\boxed{(3, \\pi/2)}", "\\left(3,\\frac\\pi2\\right)", "(3, pi/2)"),
    ("\\boxed{50\\%}", "0.5", "1/2"),
    ("\\boxed{x=5}", "5", "5"),
    ("\\boxed{\\{2,1\\}}", "\\{1,2\\}", "{1, 2}"),
    ("\\boxed{\\sqrt{12}}", "2\\sqrt3", "2*sqrt(3)"),
    ("The answer is 18 dollars", "so \\boxed{18} it is", "18"),
    ("\\boxed{1{,}234}", "1234", "1234"),
    ("first \\boxed{3}, no: \\boxed{2}", "2", "2"),
    # \$ is money, not the beginning of mathematics
    ("\\boxed{\\$18}", "\\$18", "18"),
    ("\\boxed{18}", "so it costs \\boxed{\\$18}", "18"),
    ("it costs \\$18", "\\$18", "18"),
    ("\\boxed{\\$32{,}348}", "\\$32,\\!348", "32348"),
    ("\\boxed{18.9}", "$\\$18.90$", "189/10"),
    ("\\boxed{18}", "$18", "18"),
]
DIFFERENT = [
    ("\\boxed{2} or \\boxed{3}", "2"),  # the last box counts
    ("\\boxed{1<x<2}", "(1,2)"),  # the other way round it is right: the gold answer comes first
    ("five", "5"),
    ("", "5"),
    ("\\boxed{", "5"),
    ("\\boxed{}", "5"),
    ("\\boxed{1/0}", "5"),
    ("\\boxed{\ud800\x00}", "5"),
    ("\\boxed{__import__('os').getpid()}", "5"),
    ("\\boxed{" + "9" * 990 + "}", "5"),
    ("\\boxed{" + "{" * 3000 + "}" * 3000 + "}", "5"),
]
CHOICES = [
    ("\\boxed{B}", "B", True),
    ("\\boxed{(B)}", "\\text{(B)}", True),
    ("\\boxed{\\text{B}}", "(B)", True),
    ("\\boxed{b}", "B", False),  # to math-verify the same symbol
    ("\\boxed{B, C}", "B", False),
    ("I think the answer is (C). No, the answer is **B**.", "B", True),
    ("B.", "B", True),
    ("A bird in the hand", "A", False),
    ("The answer is Bob", "B", False),
    ("The Answer is B", "B", True),
    ("ANSWER: (B)", "B", True),
    ("so the answer is \\textbf{(B)}", "B", True),
    ("The answer is $\\text{B}$.", "B", True),
    ("Option A is wrong, so it must be (B)", "B", True),
    ("Option A is wrong, so it must be (B)", "A", False),
    ("It must be A good one. Option A isn't it.", "A", False),
]
WORDS = [
    ("\\boxed{\\text{evelyn}}", "\\text{Evelyn}", True),
    ("\\boxed{Neyvel}", "Evelyn", False),  # the same product of letters
    ("\\boxed{even}", "even", True),
    ("\\boxed{odd}", "even", False),
    ("even", "even", True),
    ("Odd times even. So the answer is **even**.", "even", True),
    ("The Answer: \\text{even}", "even", True),
    ("The answer is even. No, the answer is odd, not even.", "even", False),
    ("It is not even.", "even", False),
]


@pytest.mark.parametrize(("response", "gold", "is_correct"), [*CHOICES, *WORDS])
def test_letters_and_words_are_compared_as_such(response, gold, is_correct, monkeypatch):
    """They never reach math-verify, so it need not be there."""
    monkeypatch.setattr(math_answers, "require_math_verify", lambda: None)
    monkeypatch.setattr(math_answers, "_judged", None)
    assert grade_math(response, gold).is_correct is is_correct


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(math_answers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'understudy\[math-verify\]'"):
        GRADERS["math"]("\\boxed{1}", "1")


class TestThroughMathVerify:
    """One child process for all of them: it is started once."""

    @pytest.fixture(autouse=True)
    def there(self):
        pytest.importorskip("math_verify")

    @pytest.mark.parametrize(("response", "gold", "spelled"), EQUAL)
    def test_equal_answers(self, response, gold, spelled):
        found = grade_math(response, gold)
        assert (found.is_correct, found.score) == (True, 1.0)
        if spelled != "2*sqrt(3)":  # roots keep their form
            assert found.answer == spelled

    @pytest.mark.parametrize(("response", "gold"), DIFFERENT)
    def test_other_answers_and_hostile_ones(self, response, gold):
        assert grade_math(response, gold) == grade_math(response, gold)
        assert not grade_math(response, gold).is_correct

    def test_gold_comes_first(self):
        assert grade_math("\\boxed{(1,2)}", "1<x<2").is_correct
        assert not grade_math("\\boxed{1<x<2}", "(1,2)").is_correct

    def test_a_gold_answer_is_its_own(self):
        for gold in (
            "\\frac{3}{4}",
            "18",
            "x^2+1",
            "\\left(3,\\frac\\pi2\\right)",
            "[0,1)",
            "we get \\boxed{7}",
        ):
            assert grade_math(gold, gold).is_correct, gold

    def test_a_gold_answer_that_cannot_be_read_is_refused_at_load(self, tmp_path):
        from understudy.errors import DataError
        from understudy.tasks import JsonlTask, TextEncoder

        encoder = TextEncoder(tokenizer=make_tokenizer(), max_prompt_tokens=200, max_new_tokens=200)
        rows = tmp_path / "rows.jsonl"
        for gold in ("$$", "\\\\$", "\\\\boxed{\\\\text{ }}"):
            rows.write_text(f'{{"prompt": "what?", "reference": "{gold}"}}\n')
            with pytest.raises(DataError, match=r"line 1: the grader finds no answer in the reference"):
                JsonlTask(encoder=encoder, validation=rows, grader="math")

    def test_in_a_thread(self):
        """math-verify itself refuses threads: its limits are signals."""
        found = []
        threads = [
            threading.Thread(target=lambda i=i: found.append(grade_math(f"\\boxed{{{i}/4}}", f"{i / 4}")))
            for i in range(41, 45)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [grade.is_correct for grade in found] == [True] * 4

    def test_a_bomb_is_wrong_and_the_next_answer_is_judged(self):
        start = time.monotonic()
        assert grade_math("\\boxed{3.75}", "15/4").is_correct
        child = math_answers._judge.child
        assert not grade_math("\\boxed{9^{9^{9^9}}}", "3").is_correct
        assert math_answers._judge.child is child  # its own limits were enough, and it spelled no such number
        assert time.monotonic() - start < math_answers.HARD_SECONDS + 5
        assert grade_math("\\boxed{3.25}", "13/4").is_correct

    def test_a_child_that_hangs_is_replaced(self, monkeypatch):
        """What no signal reaches: the child is stopped from outside, and everything goes on with another."""
        assert grade_math("\\boxed{6/4}", "1.5").is_correct
        child = math_answers._judge.child
        assert child is not None
        monkeypatch.setattr(math_answers, "HARD_SECONDS", 0.5)
        os.kill(child.pid, 19)  # SIGSTOP
        assert grade_math("\\boxed{7/4}", "1.75").is_correct is False
        assert child.poll() is not None
        monkeypatch.setattr(math_answers, "HARD_SECONDS", 10.0)
        assert grade_math("\\boxed{9/4}", "2.25").is_correct

    def test_a_child_that_dies_is_replaced(self):
        assert grade_math("\\boxed{10/4}", "2.5").is_correct
        child = math_answers._judge.child
        assert child is not None
        child.kill()
        child.wait()
        assert grade_math("\\boxed{11/4}", "2.75").is_correct

    def test_a_jsonl_task_is_graded_by_it(self, tmp_path):
        from understudy.tasks import JsonlTask, TextEncoder

        encoder = TextEncoder(tokenizer=make_tokenizer(), max_prompt_tokens=200, max_new_tokens=200)
        (tmp_path / "rows.jsonl").write_text('{"prompt": "half?", "reference": "\\\\frac12"}\n')
        task = JsonlTask(encoder=encoder, validation=tmp_path / "rows.jsonl", grader="math")
        (prompt,) = task.prompts("validation", 0, 1)
        assert prompt.meta["answer"] == "1/2"
        ids = encoder.tokenizer("\\boxed{0.5}")["input_ids"]
        assert task.grade(prompt, ids).is_correct
