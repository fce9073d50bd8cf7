"""Small models, tasks and runs for the tests: everything at a size where a test takes milliseconds."""

from __future__ import annotations

import copy
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from rich.console import Console
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    Gemma3TextConfig,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen3Config,
)

from understudy.build import Parts, build, check_context
from understudy.config import recipe_from_table
from understudy.errors import ConfigError
from understudy.models import new_model
from understudy.randomness import uniforms
from understudy.records import Prompt, Trajectory
from understudy.resolved import to_toml
from understudy.rollouts.hf import HFDecoder, evaluating
from understudy.rollouts.sampler import Limits, Response, sample
from understudy.schema import NewModel, Recipe
from understudy.settings import set_dotted
from understudy.tasks.task import Grade
from understudy.trainer.setup import Setup
from understudy.wiring import assemble

VOCAB = 24
LOGP_TOLERANCE = 2e-5
"""Of a float32 log-probability that is computed by another sequence of kernels (cache or none, padding or none)."""
EXACT_TOLERANCE = 1e-9
"""Of a float64 quantity of order 1 that is summed in another order."""

_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
FAMILIES: dict[str, Any] = {
    # RoPE, untied
    "llama": lambda: LlamaConfig(**_SIZES, tie_word_embeddings=False),
    # learned positions, tied
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCAB,
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=64,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=None,
    ),
    # a soft cap on the logits that bites, and a window of attention shorter than the sequences
    "gemma3": lambda: Gemma3TextConfig(
        **_SIZES, head_dim=8, final_logit_softcapping=2.0, sliding_window=4, query_pre_attn_scalar=8
    ),
    # two query heads for each key head; a window in the second layer alone
    "qwen3": lambda: Qwen3Config(
        **_SIZES | {"num_attention_heads": 4},
        head_dim=8,
        tie_word_embeddings=False,
        use_sliding_window=True,
        sliding_window=5,
        max_window_layers=1,
    ),
    # the same window in every layer
    "mistral": lambda: MistralConfig(**_SIZES, sliding_window=5, tie_word_embeddings=False),
    # a factor on the logits
    "granite": lambda: GraniteConfig(**_SIZES, logits_scaling=0.5, tie_word_embeddings=True),
    # positions by a slope on the scores of attention (ALiBi), which are read from the mask; one key head for all
    "falcon": lambda: FalconConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.3,
        alibi=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    ),
    # the same by its own attention, and a norm behind the embeddings
    "bloom": lambda: BloomConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        n_layer=2,
        n_head=2,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    ),
}


def make_model(family: str = "llama", *, seed: int = 0, vocab: int = VOCAB) -> PreTrainedModel:
    """Weights large enough that laws are far from uniform and argmaxes far from ties; no dropout."""
    config = FAMILIES[family]()
    config.vocab_size = vocab
    for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
        if hasattr(config, name):
            setattr(config, name, 0.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config).eval()


def make_prompts(lengths: Sequence[int], *, vocab: int = VOCAB, seed: int = 0) -> list[Prompt]:
    rng = np.random.default_rng(seed)
    return [
        Prompt(id=f"p{i}", token_ids=tuple(rng.integers(0, vocab, n).tolist())) for i, n in enumerate(lengths)
    ]


def respond(
    model: nn.Module,
    prompts: Sequence[Prompt],
    *,
    limits: Limits,
    temperature: float = 1.0,
    vocab: int = VOCAB,
    seed: int = 0,
) -> list[Response]:
    """Responses of a model; the stream of each is named by its prompt alone."""
    return sample(
        prompts,
        limits=limits,
        uniform_BT=uniforms([(seed, p.id) for p in prompts], limits.max_new_tokens),
        student=HFDecoder(model, vocab_size=vocab),
        temperature=temperature,
    )


def as_trajectories(
    prompts: Sequence[Prompt], responses: Sequence[Response], *, temperature: float = 1.0
) -> list[Trajectory]:
    return [
        Trajectory(
            prompt=p,
            sample_index=0,
            response_ids=r.token_ids,
            is_student=r.is_student,
            logp=r.logp,
            temperature=temperature,
            finish=r.finish,
            round=0,
            student_version=0,
        )
        for p, r in zip(prompts, responses, strict=True)
    ]


@dataclass(frozen=True, kw_only=True)
class Babble:
    """Prompts of uneven length, responses that may end early: what modular addition does not have."""

    vocab_size: int = 12
    max_new_tokens: int = 7
    eos_ids: frozenset[int] = frozenset({0, 5})
    name: str = "babble"
    stop_strings: tuple[str, ...] = ()
    action_ids: tuple[int, ...] | None = None
    num_train: int | None = None

    @property
    def identity(self) -> str:
        return repr(self)

    def size(self, split: str) -> int | None:
        return self.num_train if split == "train" else None

    def prompts(self, split: str, start: int, count: int) -> list[Prompt]:
        made = []
        for i in range(start, start + count):
            number = i if self.num_train is None else i % self.num_train
            rng = np.random.default_rng([sum(map(ord, split)), number])
            tokens = rng.integers(0, self.vocab_size, 2 + number % 5).tolist()
            answer = (*rng.integers(0, self.vocab_size, number % 4).tolist(), max(self.eos_ids))
            made.append(Prompt(id=f"{split}/{number}", token_ids=tuple(tokens), reference_ids=answer))
        return made

    def grade(self, prompt: Prompt, response_ids: Sequence[int]) -> Grade | None:
        return None

    def token_grades(self, prompt: Prompt, response_ids: Sequence[int]) -> None:
        return None

    def oracle(self) -> None:
        return None

    def decode(self, token_ids: Sequence[int]) -> str:
        return "".join(chr(ord("a") + t) for t in token_ids)


TABLE: dict[str, Any] = {
    "name": "tiny",
    "task": {"kind": "modular_addition", "modulus": 3, "length": 6},
    "student": {
        "new": {
            "family": "llama",
            "layers": 1,
            "width": 16,
            "heads": 2,
            "max_positions": 32,
            "initializer_range": 0.3,
        }
    },
    "expert": {"kind": "oracle", "noise": {"law": "absorbing", "eta": 0.2}},
    "method": {"name": "opd-f"},
    "train": {"steps": 2, "batch_size": 8, "device": "cpu"},
    "optimizer": {"learning_rate": 1e-3},
    "evaluate": {"every_steps": 1000, "prompts": 8},
}


def make_recipe(**dotted: Any) -> Recipe:
    """The tiny recipe with settings changed: `make_recipe(train__steps=3)` sets train.steps."""
    return recipe_from_table(TABLE, {k.replace("__", "."): v for k, v in dotted.items()})


def recipe_file(folder: Path, name: str, **dotted: Any) -> str:
    """A recipe file with the tiny recipe, changed: it learns from references unless told otherwise."""
    table = copy.deepcopy(TABLE)
    for key, value in {"name": name, "method.name": "sft", "data.offline": "reference", **dotted}.items():
        set_dotted(table, key.replace("__", "."), value)
    if "checkpoint" in table["student"]:
        table["student"].pop("new", None)
    file = folder / f"{name}.toml"
    file.write_text(to_toml(table))
    return str(file)


def chained_recipe(folder: Path) -> str:
    """A student that begins with the base and imitates an expert that begins with the base, an expert a seed."""
    base = recipe_file(folder, "base", seed=7)
    of_base = {"student.checkpoint": f"{folder}/base/final", "student.recipe": base}
    expert = recipe_file(folder, "expert", seed=3, task__seed=99, **of_base)
    local = {"kind": "local", "checkpoint": f"{folder}/expert-{{seed}}/final", "recipe": expert}
    return recipe_file(
        folder, "student", seed=5, expert=local, method__name="kd", data__offline="expert", **of_base
    )


class SilentBar:
    def hint(self, note: str) -> None:
        pass

    def move(self, completed: int, note: str | None = None) -> None:
        return None


def quiet_console() -> Console:
    return Console(file=io.StringIO())


def make_parts(recipe: Recipe, **own: Any) -> Parts:
    return build(recipe, device=torch.device("cpu"), **own)


def make_setup(recipe: Recipe, folder: Path, parts: Parts | None = None, **own: Any) -> Setup:
    """What the loop works with, built the way a run builds it."""
    accelerator = Accelerator(cpu=True)
    parts = parts or make_parts(recipe, **own)
    return assemble(
        recipe,
        parts,
        accelerator,
        folder,
        SilentBar(),  # pyright: ignore[reportArgumentType]
        data_root=folder / "data",
        stage="main",
    )


def in_float64(parts: Parts) -> Parts:
    """The same student in double precision, so that identities can be checked to the last digits."""
    return replace(parts, student=copy.deepcopy(parts.student).double())


def with_plain_descent(s: Setup) -> Setup:
    """Plain gradient descent at rate 1 (of the recipe), so that the change of the weights *is* the gradient."""
    return replace(s, optimizer=torch.optim.SGD(s.student.parameters(), lr=1.0))


def flat_weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten().clone() for p in model.parameters()])


def written(s: Setup, num_prompts: int, *, temperature: float = 1.0) -> list[Trajectory]:
    """Trajectories of the student of a setup, by prompts of its task."""
    prompts = s.sources.task.prompts("train", 0, num_prompts)
    with evaluating(s.model):
        responses = sample(
            prompts,
            limits=s.sources.limits,
            uniform_BT=uniforms([(p.id,) for p in prompts], s.sources.limits.max_new_tokens),
            student=s.sources.student(),
            temperature=temperature,
        )
    return as_trajectories(prompts, responses, temperature=temperature)


def assert_fits_only(
    room: int, recipe: Recipe, task: Any, *, vocab_size: int, eos_ids: frozenset[int]
) -> None:
    """A context of `room` positions is enough for the longest prompt and response of the task, one less is not."""
    for positions in (room, room - 1):
        sizes = NewModel(family="llama", layers=1, width=16, heads=2, max_positions=positions)
        model = new_model(sizes, vocab_size=vocab_size, eos_ids=eos_ids, seed=0)
        if positions == room:
            check_context(recipe, model, task)
        else:
            with pytest.raises(ConfigError, match=f"do not fit the student's context of {positions}"):
                check_context(recipe, model, task)
