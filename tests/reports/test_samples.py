"""Rollouts are marked only where response and reference line up."""

from dataclasses import replace

from understudy.reports.folders import load_run
from understudy.reports.samples import MAX_CHARACTERS, render_samples


def rendered(run_folder, **sample):
    run = load_run(run_folder)
    return render_samples(replace(run, samples=({"step": 3, "prompt": "p", **sample},)))


def test_tokens_are_marked_right_wrong_and_by_author(run_folder):
    html = rendered(
        run_folder, response="2 0 1", reference="2 1 1", score=0.0, is_student=[True, True, False]
    )
    marks = '<span class="right">2</span> <span class="wrong">0</span> <span class="right expert">1</span>'
    assert marks in html
    assert "score 0, finish: not recorded" in html


def test_free_text_is_left_unmarked(run_folder):
    html = rendered(run_folder, response="the answer is 4", reference="2 + 2 = 4", score=1.0)
    assert "<b>response</b>\nthe answer is 4\n" in html
    html = rendered(run_folder, response="2 0 1", reference="2 1 1")  # nobody graded it
    assert "<b>response</b>\n2 0 1\n" in html


def test_long_responses_are_cut_and_say_so(run_folder):
    html = rendered(run_folder, response="x" * (MAX_CHARACTERS + 17))
    assert "x" * MAX_CHARACTERS + "\n... (17 more characters)" in html


def test_last_step_comes_first(run_folder):
    run = load_run(run_folder)
    html = render_samples(run)
    assert html.index("step 150") < html.index("step 25")
    assert render_samples(replace(run, samples=())) == ""
