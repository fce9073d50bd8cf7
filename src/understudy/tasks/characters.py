"""The vocabulary of the compact tasks: one token a character, and one that ends a response.

id  0 .. 9  the digits      10 .. 22  + - * / ( ) = , ; : > ! s      23  end of sequence
"""

from __future__ import annotations

from collections.abc import Sequence

CHARACTERS = "0123456789+-*/()=,;:>!s"
EOS_ID = len(CHARACTERS)
VOCAB_SIZE = EOS_ID + 1
"""24, for every task of this vocabulary: a model that was trained on one of them reads the others."""
UNKNOWN = "\ufffd"
_IDS = {character: token for token, character in enumerate(CHARACTERS)}


def encode(text: str, *, is_closed: bool = False) -> tuple[int, ...]:
    """The tokens of a text of these characters, with EOS behind it if `is_closed`."""
    return (*(_IDS[character] for character in text), *((EOS_ID,) if is_closed else ()))


def response_text(token_ids: Sequence[int]) -> str:
    """What a grader reads: everything before the first EOS; an id that does not exist is U+FFFD."""
    ids = list(token_ids)
    ids = ids[: ids.index(EOS_ID)] if EOS_ID in ids else ids
    return "".join(CHARACTERS[token] if 0 <= token < EOS_ID else UNKNOWN for token in ids)


def decode(token_ids: Sequence[int]) -> str:
    """Readable text of any ids: EOS is <eos>, an id that does not exist <id>."""
    return "".join(map(_name, token_ids))


def _name(token: int) -> str:
    if token == EOS_ID:
        return "<eos>"
    return CHARACTERS[token] if 0 <= token < EOS_ID else f"<{token}>"
