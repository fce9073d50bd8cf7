"""Starters: tokenizers to which no text is unknown, and folders that transformers loads."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from small_text import model, write_rows
from understudy.errors import ConfigError, DataError
from understudy.models import generation_eos_ids
from understudy.starter import EOS, PAD, SPECIAL_TOKENS, make_starter, read_texts, train_tokenizer

TEXTS = ["the cat sat on the mat 1234\n", "the dog 5678 sat\n"] * 8
TOKENIZER = train_tokenizer(iter(TEXTS), vocab_size=300)


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_every_text_comes_back(text):
    ids = TOKENIZER(text, add_special_tokens=True)["input_ids"]
    # A special token written out in the text is that token, and is decoded as it was written.
    assert TOKENIZER.decode(ids) == text


def test_digits_stand_alone_and_words_are_merged():
    tokens = TOKENIZER.tokenize("the 12345")
    assert tokens[-5:] == list("12345")
    assert tokens[0] == "the"


def test_special_tokens_come_first_and_nothing_is_added_to_a_text():
    assert TOKENIZER.convert_ids_to_tokens(range(5)) == list(SPECIAL_TOKENS)
    assert (TOKENIZER.pad_token, TOKENIZER.eos_token, TOKENIZER.bos_token) == (PAD, EOS, None)
    assert TOKENIZER("a")["input_ids"] == TOKENIZER("a", add_special_tokens=False)["input_ids"]


def test_the_same_text_gives_the_same_tokens():
    again = train_tokenizer(iter(TEXTS), vocab_size=300)
    assert again.get_vocab() == TOKENIZER.get_vocab()
    assert 261 < len(TOKENIZER) < 300  # so short a text has no more pairs to merge


def test_the_chat_template_opens_the_assistants_turn_and_closes_it_with_eos():
    turns = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "so"},
    ]
    rendered = TOKENIZER.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert rendered == "<user>hi<assistant>yes<eos><user>so<assistant>"
    ids = TOKENIZER.apply_chat_template(turns[:1], add_generation_prompt=True, return_dict=False)
    assert ids[0] == TOKENIZER.convert_tokens_to_ids("<user>")
    assert ids[-1] == TOKENIZER.convert_tokens_to_ids("<assistant>")
    with pytest.raises(Exception, match="expected system, user or assistant, found tool"):
        TOKENIZER.apply_chat_template([{"role": "tool", "content": ""}], tokenize=False)


def test_a_tokenizer_needs_room_for_the_bytes():
    with pytest.raises(
        ConfigError, match=r"vocab_size must be at least 261 \(256 bytes and 5 special tokens\), got 260"
    ):
        train_tokenizer(iter(()), vocab_size=260)
    assert len(train_tokenizer(iter(()), vocab_size=261)) == 261


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_checkpoint_loads_and_knows_its_end(tmp_path, family):
    made = make_starter(
        tmp_path / "m", model=model(family), vocab_size=280, texts=[_text_file(tmp_path)], seed=3
    )
    loaded = AutoModelForCausalLM.from_pretrained(made.folder)
    tokenizer = AutoTokenizer.from_pretrained(made.folder)
    assert made.parameters == sum(p.numel() for p in loaded.parameters())
    assert loaded.get_output_embeddings().weight.shape[0] == len(tokenizer) == made.vocab_size
    assert tokenizer.chat_template
    assert generation_eos_ids(str(made.folder)) == {tokenizer.eos_token_id}
    assert loaded.generation_config.pad_token_id == tokenizer.pad_token_id


def test_the_seed_decides_the_weights(tmp_path):
    weights = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        made = make_starter(tmp_path / name, model=model(), vocab_size=261, seed=seed)
        weights[name] = (made.folder / "model.safetensors").read_bytes()
    assert weights["a"] == weights["b"] != weights["c"]


def test_a_tokenizer_alone_without_a_template(tmp_path):
    made = make_starter(tmp_path / "t", model=None, has_chat_template=False, vocab_size=261)
    assert made.parameters == 0
    assert not (made.folder / "config.json").exists()
    assert AutoTokenizer.from_pretrained(made.folder).chat_template is None


def test_nothing_is_replaced_unless_asked_and_never_what_is_not_ours(tmp_path):
    folder = tmp_path / "m"
    make_starter(folder, model=None, vocab_size=261)
    with pytest.raises(ConfigError, match=r"already exists\. Use --overwrite"):
        make_starter(folder, model=None, vocab_size=261)
    make_starter(folder, model=model(), vocab_size=261, overwrite=True)
    assert (folder / "config.json").exists()
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "chapter.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="holds no checkpoint or tokenizer; not deleting it"):
        make_starter(thesis, model=None, overwrite=True)
    assert (thesis / "chapter.txt").read_text() == "years of work"


def test_text_of_files_and_of_fields(tmp_path):
    rows = [{"a": "one", "n": 3, "messages": [{"role": "user", "content": "two"}]}, {"a": "three"}]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    assert list(read_texts([file])) == ["one", "user", "two", "three"]
    assert list(read_texts([file], ["a"])) == ["one", "three"]
    assert list(read_texts([_text_file(tmp_path), file], ["a"]))[:1] == ["the cat\n"]


def test_files_without_text_are_refused(tmp_path):
    empty = tmp_path / "empty.txt"
    empty.write_text("\n \n")
    latin = tmp_path / "latin.txt"
    latin.write_bytes(b"caf\xe9")
    numbers = write_rows(tmp_path / "numbers.jsonl", [{"n": 1}])
    for file, message in (
        (empty, r"empty\.txt has no text to learn tokens from"),
        (numbers, r"numbers\.jsonl has no text"),
        (latin, r"latin\.txt: not UTF-8 \(byte 4\)"),
        (tmp_path / "gone.txt", r"no such file or folder: .*gone\.txt"),
    ):
        with pytest.raises(DataError, match=message):
            make_starter(tmp_path / "m", model=None, texts=[file])
    with pytest.raises(DataError, match=r"numbers\.jsonl, line 1: no field 'text'"):
        make_starter(tmp_path / "m", model=None, texts=[numbers], fields=["text"])
    assert not (tmp_path / "m").exists()


def _text_file(folder):
    file = folder / "text.txt"
    file.write_text("the cat\nthe mat\n" * 4)
    return file


def test_the_config_is_plain_json(tmp_path):
    made = make_starter(tmp_path / "m", model=model("gpt2"), vocab_size=261)
    config = json.loads((made.folder / "config.json").read_text())
    assert config["model_type"] == "gpt2"
    assert config["vocab_size"] == 261
