"""`understudy init`: a small checkpoint to try everything with, offline."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from understudy.cli.options import Json, Overwrite
from understudy.cli.printing import say, say_json


class Family(StrEnum):
    """The families `init` can make."""

    llama = "llama"
    gpt2 = "gpt2"


def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to make.")],
    text: Annotated[
        list[Path] | None,
        typer.Option(
            "--text", metavar="FILE", help="Text or .jsonl to learn tokens from. Repeatable. [default: bytes]"
        ),
    ] = None,
    field: Annotated[
        list[str] | None,
        typer.Option(
            "--field", metavar="NAME", help="Field of the .jsonl files. Repeatable. [default: all text]"
        ),
    ] = None,
    vocab_size: Annotated[int, typer.Option("--vocab-size", metavar="N", help="Tokens at most.")] = 1024,
    family: Annotated[Family, typer.Option("--family", help="Architecture.")] = Family.llama,
    layers: Annotated[int, typer.Option("--layers", metavar="N", min=1, help="Layers.")] = 4,
    width: Annotated[
        int, typer.Option("--width", metavar="N", min=1, help="Width of the hidden states.")
    ] = 128,
    heads: Annotated[
        int, typer.Option("--heads", metavar="N", min=1, help="Attention heads; they divide the width.")
    ] = 4,
    max_positions: Annotated[
        int, typer.Option("--max-positions", metavar="N", min=1, help="Longest prompt and response together.")
    ] = 1024,
    chat_template: Annotated[
        bool, typer.Option("--chat-template/--no-chat-template", help="Give the tokenizer a chat template.")
    ] = True,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Seed of the weights.")] = 0,
    tokenizer_only: Annotated[
        bool, typer.Option("--tokenizer-only", help="Write the tokenizer without a model.")
    ] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Make a small checkpoint with random weights and a byte-level BPE tokenizer of your text. Needs no network.

    A student and its expert need one tokenizer: give both the same DIR as student.tokenizer, or make the tokenizer
    once with --tokenizer-only.

    \b
    Examples:
      understudy init models/tiny --text data/train.jsonl --vocab-size 2048
      understudy init models/tokenizer --text notes.txt --tokenizer-only
    """
    from understudy.schema import NewModel
    from understudy.starter import make_starter

    model = NewModel(
        family=family.value, layers=layers, width=width, heads=heads, max_positions=max_positions
    )
    made = make_starter(
        folder,
        model=None if tokenizer_only else model,
        texts=text or (),
        fields=field or (),
        vocab_size=vocab_size,
        has_chat_template=chat_template,
        seed=seed,
        overwrite=overwrite,
    )
    if as_json:
        return say_json(
            {"folder": str(made.folder), "vocab_size": made.vocab_size, "parameters": made.parameters}
        )
    if tokenizer_only:
        say(f"{made.folder}: a tokenizer of {made.vocab_size} tokens")
        return say(f'next: in a recipe, [student] tokenizer = "{made.folder}" beside a [student.new] table')
    say(
        f"{made.folder}: {family.value}, {made.parameters:,} parameters, {made.vocab_size} tokens, random weights"
    )
    return say(f'next: in a recipe, [student] checkpoint = "{made.folder}"; then understudy doctor RECIPE')
