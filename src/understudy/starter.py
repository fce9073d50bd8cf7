"""A small checkpoint folder from nothing, offline: a tokenizer made of your own text, a model with random weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from understudy.errors import ConfigError, DataError, TrainingError
from understudy.files import atomic_path
from understudy.models import new_model
from understudy.schema import NewModel
from understudy.tasks.sources import missing, read_jsonl, text_field, valid_text
from understudy.trainer.checkpoint import save_model

PAD, EOS = "<pad>", "<eos>"
ROLES = ("system", "user", "assistant")
SPECIAL_TOKENS = (PAD, EOS, *(f"<{role}>" for role in ROLES))
NUM_BYTES = 256

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('expected system, user or assistant, found ' + message.role) }}{% endif %}"
    "<{{ message.role }}>{{ message.content }}{% if message.role == 'assistant' %}<eos>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
"""Every turn begins with a token of its role; the assistant's ends with EOS, as its responses do in training."""


@dataclass(frozen=True, kw_only=True)
class Starter:
    """What was made: where, how many tokens, and how many parameters (0: the tokenizer alone)."""

    folder: Path
    vocab_size: int
    parameters: int


def make_starter(
    folder: str | Path,
    *,
    model: NewModel | None,
    texts: Sequence[str | Path] = (),
    fields: Sequence[str] = (),
    vocab_size: int = 1024,
    has_chat_template: bool = True,
    seed: int = 0,
    overwrite: bool = False,
) -> Starter:
    """Write a checkpoint folder that `transformers` and a recipe's `student.checkpoint` load.

    Args:
        model: sizes; None: only the tokenizer is written.
        texts: files of text, or `.jsonl` files; none: every byte is a token of its own.
        fields: of the `.jsonl` files; none: all their text.
        vocab_size: tokens at most, the special ones included; short texts give fewer.
        seed: of the weights.
    Raises:
        ConfigError: the folder exists, or a size cannot be.
        DataError: a file that cannot be read, or without text.
        TrainingError: the folder could not be written.
    """
    folder = Path(folder)
    if folder.exists() and not overwrite:
        raise ConfigError(f"{folder} already exists. Use --overwrite to replace it, or give another folder.")
    if overwrite and folder.exists() and any(folder.iterdir()) and not _is_ours(folder):
        raise ConfigError(f"{folder} holds no checkpoint or tokenizer; not deleting it. Give another folder.")
    _make_parent(folder)
    tokenizer = train_tokenizer(
        read_texts(texts, fields), vocab_size=vocab_size, has_chat_template=has_chat_template
    )
    if model is None:
        _save_tokenizer(tokenizer, folder)
        return Starter(folder=folder, vocab_size=len(tokenizer), parameters=0)
    eos: Any = tokenizer.eos_token_id
    made = new_model(model, vocab_size=len(tokenizer), eos_ids=frozenset({eos}), seed=seed)
    made.generation_config.pad_token_id = tokenizer.pad_token_id  # pyright: ignore[reportOptionalMemberAccess]
    save_model(made, tokenizer, folder)
    parameters = sum(p.numel() for p in made.parameters())
    return Starter(folder=folder, vocab_size=len(tokenizer), parameters=parameters)


def _make_parent(folder: Path) -> None:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot create the folder {folder}: {error}. Give another folder.") from None


def _is_ours(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("config.json", "tokenizer_config.json"))


def _save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    try:
        with atomic_path(folder) as part:
            tokenizer.save_pretrained(part)
    except OSError as error:
        raise TrainingError(
            f"could not write {folder}: {error}. Free some space, or give another folder."
        ) from error


def train_tokenizer(
    texts: Iterator[str], *, vocab_size: int, has_chat_template: bool = True
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: no text is unknown to it, and every digit is a token of its own.

    Raises:
        ConfigError: `vocab_size` has no room for the special tokens and the 256 bytes.
    """
    smallest = NUM_BYTES + len(SPECIAL_TOKENS)
    if vocab_size < smallest:
        raise ConfigError(
            f"vocab_size must be at least {smallest} ({NUM_BYTES} bytes and {len(SPECIAL_TOKENS)} special tokens), "
            f"got {vocab_size}."
        )
    bpe = Tokenizer(models.BPE())
    # Digits first: merges never cross them, so that numbers of any length are spelt the same way.
    digits: Any = pre_tokenizers.Digits(individual_digits=True)
    level: Any = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([digits, level])  # type: ignore[assignment]
    bpe.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token=PAD, eos_token=EOS, clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = CHAT_TEMPLATE if has_chat_template else None
    return tokenizer


def read_texts(files: Sequence[str | Path], fields: Sequence[str] = ()) -> Iterator[str]:
    """The text of every file, in pieces: lines of text files, text fields of `.jsonl` rows.

    Raises:
        DataError: a file that is missing, not UTF-8, or without any text; a row without a field that was named.
    """
    for file in map(Path, files):
        is_empty = True
        for text in _rows(file, fields) if file.suffix == ".jsonl" else _lines(file):
            is_empty = is_empty and not text.strip()
            yield text
        if is_empty:
            raise DataError(f"{file} has no text to learn tokens from. Give a file with text.")


def _lines(file: Path) -> Iterator[str]:
    if not file.is_file():
        raise DataError(missing(file))
    try:
        yield from file.read_text(encoding="utf-8").splitlines(keepends=True)
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 (byte {error.start + 1}). Save the file as UTF-8.") from None


def _rows(file: Path, fields: Sequence[str]) -> Iterator[str]:
    for row in read_jsonl(file):
        if fields:
            yield from (text_field(row, name) for name in fields)
        else:
            yield from (valid_text(text, row.where) for text in _strings(dict(row.fields)))


def _strings(value: Any) -> Iterator[str]:
    """All text in a row, chat messages included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)
