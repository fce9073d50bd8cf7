"""From text to tokens and back: BOS once, EOS once, templates, limits, ids that have no text."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizer import END, TEMPLATE, make_tokenizer
from transformers import PreTrainedTokenizerFast

from understudy.errors import ConfigError, DataError, ModelError
from understudy.tasks import TextEncoder, TextRow


def encoder(tokenizer: PreTrainedTokenizerFast | None = None, **settings: Any) -> TextEncoder:
    limits: dict[str, Any] = {"max_prompt_tokens": 200, "max_new_tokens": 100}
    return TextEncoder(tokenizer=tokenizer or make_tokenizer(), **(limits | settings))


def row(content: Any = "how many apples?", reference: str | None = " 12", **fields: Any) -> TextRow:
    return TextRow(id="0", where="rows.jsonl, line 3", content=content, reference=reference, **fields)


def encoded(found: TextEncoder, text: TextRow) -> tuple[list[int], list[int]]:
    (made,) = found.encode([text])
    return made.prompt_ids.tolist(), [] if made.reference_ids is None else made.reference_ids.tolist()


@pytest.mark.parametrize("adds_bos", [False, True])
@pytest.mark.parametrize("content", ["how many apples?", "<bos>how many apples?"])
def test_bos_stands_once_where_the_tokenizer_puts_it(adds_bos, content):
    made = encoder(make_tokenizer(adds_bos=adds_bos))
    prompt, reference = encoded(made, row(content))
    expected = int(adds_bos or content.startswith("<bos>"))
    assert prompt.count(1) == expected
    assert prompt[0] == 1 or not expected
    assert made.decode(prompt) == "<bos>" * expected + "how many apples?"
    assert reference.count(1) == 0
    assert made.decode(reference) == " 12<eos>"


@pytest.mark.parametrize("adds_bos", [False, True])
def test_prompt_and_reference_are_the_tokens_of_the_whole_text(adds_bos):
    tokenizer = make_tokenizer(adds_bos=adds_bos)
    prompt, reference = encoded(
        encoder(tokenizer), row("Question: how many?\nAnswer:", "there are 12 apples", lead=" ")
    )
    whole = tokenizer("Question: how many?\nAnswer: there are 12 apples")["input_ids"]
    assert prompt + reference == [*whole, 2]


def test_a_token_across_the_boundary_is_not_given_to_either_side():
    made = encoder()
    assert made.tokenizer("apples", add_special_tokens=False)["input_ids"] != [
        *made.tokenizer("ap", add_special_tokens=False)["input_ids"],
        *made.tokenizer("ples", add_special_tokens=False)["input_ids"],
    ]
    prompt, reference = encoded(made, row("ap", "ples"))
    assert (made.decode(prompt), made.decode(reference)) == ("ap", "ples<eos>")


def test_chat_goes_through_the_template_and_nothing_is_added():
    made = encoder(make_tokenizer(adds_bos=True, template=TEMPLATE), end_token=END)
    turns = (("user", "how many?"), ("assistant", "12"), ("user", "sure?"))
    prompt, reference = encoded(made, row(turns, "yes"))
    assert made.decode(prompt) == "<user>how many?<end><assistant>12<end><user>sure?<end><assistant>"
    assert made.decode(reference) == "yes<end>"
    assert made.eos_ids == {2, 3}


def test_plain_text_stays_plain_beside_a_template():
    made = encoder(make_tokenizer(template=TEMPLATE))
    assert made.decode(encoded(made, row("how many?"))[0]) == "how many?"


def test_chat_that_cannot_be_rendered():
    with pytest.raises(
        DataError, match=r"rows.jsonl, line 3: has messages, and the tokenizer has no chat template"
    ):
        encoder().encode([row((("user", "hi"),))])
    with pytest.raises(DataError, match=r"rows.jsonl, line 3: the chat template refuses.*who is tool"):
        encoder(make_tokenizer(template=TEMPLATE)).encode([row((("tool", "hi"),))])


def test_a_reference_ends_in_one_eos():
    assert encoded(encoder(), row(reference="12<eos><eos>"))[1].count(2) == 1
    with pytest.raises(
        DataError, match=r"line 3: the reference has '<eos>', which ends a response, before its end"
    ):
        encoder().encode([row(reference="12<eos>13")])
    with pytest.raises(DataError, match="the reference has '<end>'"):
        encoder(extra_eos_ids=(3,)).encode([row(reference="12<end>13")])
    assert encoded(encoder(), row(reference=""))[1] == [2]
    assert encoder().encode([row(reference=None)])[0].reference_ids is None


def test_limits_are_exact_and_named():
    prompt, reference = encoded(encoder(), row())
    exact: dict[str, Any] = {"max_prompt_tokens": len(prompt), "max_new_tokens": len(reference)}
    assert encoded(encoder(**exact), row()) == (prompt, reference)
    less: dict[str, Any] = exact | {"max_prompt_tokens": len(prompt) - 1}
    found = rf"rows.jsonl, line 3: the prompt has {len(prompt)} tokens and max_prompt_tokens is "
    found += rf"{len(prompt) - 1}\."
    with pytest.raises(DataError, match=found + r".*raise max_prompt_tokens.*too_long = \"drop\""):
        encoder(**less).encode([row()])
    less = exact | {"max_new_tokens": len(reference) - 1}
    found = rf"line 3: the reference has {len(reference)} tokens \(with EOS\) and max_new_tokens is "
    found += rf"{len(reference) - 1}\."
    with pytest.raises(DataError, match=found):
        encoder(**less).encode([row()])
    kept = encoder(**less, too_long="drop").encode([row(), row(reference=""), row()])
    assert [made.row.reference for made in kept] == [""]


def test_an_empty_prompt_is_refused_even_with_bos():
    with pytest.raises(DataError, match=r"rows.jsonl, line 3: the prompt is empty"):
        encoder(make_tokenizer(adds_bos=True)).encode([row("")])


def test_settings_that_cannot_work():
    with pytest.raises(ConfigError, match="max_new_tokens must be >= 1, got 0"):
        encoder(max_new_tokens=0)
    with pytest.raises(ConfigError, match="stop_strings holds an empty text"):
        encoder(stop_strings=("\n", ""))
    with pytest.raises(ModelError, match="end_token '<END>' is not a token"):
        encoder(end_token=END.upper())
    endless = make_tokenizer()
    endless.eos_token = None
    with pytest.raises(ModelError, match="has no EOS token"):
        encoder(endless)
    assert encoder(endless, end_token=END).eos_ids == {3}


def test_a_grader_reads_up_to_the_first_eos_or_stop_string():
    made = encoder(stop_strings=("\nQuestion:", "STOP"), extra_eos_ids=(3,))

    def ids(text: str) -> list[int]:
        return made.tokenizer(text, add_special_tokens=False)["input_ids"]

    assert made.response_text(ids(" 12<eos> 13")) == " 12"
    assert made.response_text(ids(" 12<end> 13<eos>")) == " 12"
    assert made.response_text(ids(" 12<pad><bos>")) == " 12"
    assert made.response_text(ids(" 12\nQuestion: 13 STOP")) == " 12"
    assert made.response_text(ids(" 12STOP\nQuestion:")) == " 12"
    assert made.response_text([2, 70]) == made.response_text([]) == ""
    assert made.decode(ids(" 12<eos>")) == " 12<eos>"


def test_text_comes_back_as_it_was():
    """The tokenizer here would clean up spaces before full stops; that would change answers."""
    made = encoder()
    text = "it is 1 , 2 . don 't"
    assert made.decode(made.tokenizer(text, add_special_tokens=False)["input_ids"]) == text


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(-5, 400) | st.integers(-(2**70), 2**70), max_size=20))
def test_any_ids_have_a_text(ids):
    made = ENCODER
    num_ids = len(made.tokenizer)
    unknown = sum(not 0 <= token < num_ids for token in ids)
    assert made.decode(ids).count("\ufffd") >= unknown
    assert isinstance(made.response_text(ids), str)


def test_an_id_without_text_does_not_make_an_answer_right():
    made = ENCODER
    (two,) = made.tokenizer("2", add_special_tokens=False)["input_ids"]
    assert made.response_text([two, 5000, two]) == "2\ufffd2"


ENCODER = encoder()
