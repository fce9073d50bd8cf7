"""A byte-level BPE tokenizer made on the spot, for the tests of text tasks."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<pad>", "<bos>", "<eos>", "<end>", "<user>", "<assistant>"]
"""Their ids are 0 .. 5."""
ROLES = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}
END = "<end>"
TEMPLATE = (
    "{% for m in messages %}"
    "{% if m.role not in ['user', 'assistant'] %}{{ raise_exception('who is ' + m.role) }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def make_tokenizer(*, adds_bos: bool = False, template: str | None = None) -> PreTrainedTokenizerFast:
    """Some 330 tokens: the special ones, every byte, a few merges. Decoding, it would clean up spaces."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=[*SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(
        ["Question: how many apples are there?\nAnswer: there are 12 apples"] * 4, trainer
    )
    bpe.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    if adds_bos:
        bpe.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, clean_up_tokenization_spaces=True, **ROLES)
    # What a WordPiece tokenizer does by default, and a BPE one only when it is told to.
    tokenizer.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output = True
    tokenizer.chat_template = template
    return tokenizer
