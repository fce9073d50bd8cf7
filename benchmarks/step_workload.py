"""The work of `benchmarks.step`, the same for both sides: models, prompts and lengths, written to a folder.

A worker process answers one JSON line to each line of its input: `loss`, `step`, `end`.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Layers and width of a Llama with untied embeddings."""

    layers: int
    width: int


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One on-policy step: every prompt has `prompt_tokens`, every response `new_tokens`, or fewer where a token ends it."""

    name: str
    student: Shape
    expert: Shape
    vocab_size: int = 2048
    batch_size: int = 16
    prompt_tokens: int = 64
    new_tokens: int = 64
    end_id: int | None = None
    """A token like any other that ends a response; None: only the length does."""
    target: float = 0.5

    @property
    def total_tokens(self) -> int:
        return self.batch_size * (self.prompt_tokens + self.new_tokens)


SMALL = Workload(
    name="1.6M / 5.2M", student=Shape(layers=4, width=128), expert=Shape(layers=4, width=256), new_tokens=64
)
LARGE = Workload(
    name="5.2M / 15.7M",
    student=Shape(layers=4, width=256),
    expert=Shape(layers=6, width=384),
    new_tokens=96,
    target=0.6,
)
SMOKE = Workload(
    name="smoke",
    student=Shape(layers=1, width=32),
    expert=Shape(layers=1, width=64),
    vocab_size=64,
    batch_size=2,
    prompt_tokens=4,
    new_tokens=4,
)


def make_model(shape: Shape, work: Workload, seed: int) -> Any:
    """A randomly initialised model of the workload."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(
        LlamaConfig(
            vocab_size=work.vocab_size,
            hidden_size=shape.width,
            intermediate_size=4 * shape.width,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.width // 32,
            num_key_value_heads=shape.width // 32,
            max_position_embeddings=2 * (work.prompt_tokens + work.new_tokens),
            tie_word_embeddings=False,
            initializer_range=0.05,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )
    )


def write_workload(work: Workload, folder: Path, *, num_prompts: int = 64) -> None:
    """Student, expert, tokenizer, prompts and one fixed batch for the comparison of losses."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word_of(i): i for i in range(work.vocab_size)}
    # One id beyond the model's rows: it can never be drawn, so that no response ends early on either side.
    vocabulary["<end>"] = work.vocab_size
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<end>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", pad_token="<end>")
    for name, shape, seed in (("student", work.student, 0), ("expert", work.expert, 1)):
        make_model(shape, work, seed).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    draw = torch.Generator().manual_seed(2)
    prompts = torch.randint(work.vocab_size, (num_prompts, work.prompt_tokens), generator=draw).tolist()
    fixed = torch.randint(work.vocab_size, (work.batch_size, work.new_tokens), generator=draw).tolist()
    described = {"work": asdict(work), "prompts": prompts, "responses": fixed}
    (folder / "workload.json").write_text(json.dumps(described))


def read_workload(folder: Path) -> tuple[Workload, list[list[int]], list[list[int]]]:
    """The workload, its prompts, and the responses of the fixed batch (to the first prompts)."""
    found = json.loads((folder / "workload.json").read_text())
    work = found["work"]
    student, expert = (Shape(**work.pop(name)) for name in ("student", "expert"))
    return Workload(**work, student=student, expert=expert), found["prompts"], found["responses"]


def word_of(token: int) -> str:
    return f"t{token}"


class WorkerProcess:
    """The parent's end of a worker: one line out, one JSON line back."""

    def __init__(self, command: Sequence[str], environment: dict[str, str], folder: Path) -> None:
        self.log = (folder / "worker.log").open("a")
        self.process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )

    def ask(self, what: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("{"):  # anything else is what a library prints
                return json.loads(line)
        raise RuntimeError(
            f"a worker ended without an answer (exit status {self.process.wait()}): {self._last_words()}"
        )

    def _last_words(self) -> str:
        self.log.flush()
        return Path(self.log.name).read_text()[-2000:]

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.log):
            if pipe is not None:
                pipe.close()
