"""Rollouts with drafts against the same rollouts decoded token by token, and against transformers' `generate`.

1. Greedy prefixes on modular addition, a student of 0.1M parameters that has learnt the task; drafts: the references.
2. Prefixes sampled at temperature 1 on word problems, over four epochs of on-policy distillation; drafts: the last epoch's
   rollouts, draws coupled. `--gsm8k FOLDER` takes GSM8K's train.jsonl; without it a few rows of the same shape are used.

With drafts and without, the tokens are checked to be the same ones (fresh draws are others). Ratios are of processor
time, turn by turn, in one process.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console
from transformers import GenerationConfig

from benchmarks.common import Figure, Result, command_of, figure, interleaved, parser, ratios, write
from understudy.build import build
from understudy.config import load_recipe, recipe_from_table
from understudy.records import Trajectory
from understudy.rollouts.collect import Round, Sources, collect
from understudy.rollouts.drafts import DraftBook
from understudy.rollouts.hf import evaluating
from understudy.run import train
from understudy.schema import NewModel, Recipe
from understudy.starter import make_starter
from understudy.trainer.checkpoint import Progress
from understudy.trainer.setup import Clock, Setup
from understudy.trainer.step import optimizer_step
from understudy.wiring import assemble

HERE = Path(__file__).resolve().parent
SAMPLE = HERE.parent / "tests" / "data" / "gsm8k_sample"
EPOCHS = 4


class _SilentBar:
    def hint(self, note: str) -> None:
        pass

    def move(self, completed: int, note: str | None = None) -> None:
        pass


def setup_of(recipe: Recipe, folder: Path, checkpoint: Path | None) -> Setup:
    """What the loop of a run of this recipe works with."""
    accelerator = Accelerator(cpu=True)
    given = None if checkpoint is None else str(checkpoint)
    parts = build(recipe, device=accelerator.device, checkpoint=given)
    bar: Any = _SilentBar()
    folder.mkdir(parents=True, exist_ok=True)
    return assemble(recipe, parts, accelerator, folder, bar, data_root=folder / "data", stage="main")


def rolled(s: Setup, sources: Sources, this: Round) -> list[Trajectory]:
    with evaluating(s.model):
        return collect(sources, s.method.prefixes, s.options, this)


def clocked(s: Setup, sources: Sources, this: Round) -> tuple[list[Trajectory], float]:
    """A round, and the processor seconds it took."""
    start = time.process_time()
    found = rolled(s, sources, this)
    return found, time.process_time() - start


def require_same(a: list[Trajectory], b: list[Trajectory]) -> None:
    apart = sum(x.response_ids != y.response_ids for x, y in zip(a, b, strict=True))
    # A law read along a draft differs from a stepped one by rounding; a draw may hang on that once in a long while.
    assert apart <= len(a) / 50, f"{apart} of {len(a)} responses differ"


# --- greedy, modular addition ---------------------------------------------------------------------------------------------


def modular_addition(folder: Path, *, is_smoke: bool) -> tuple[list[Figure], dict[str, Any], dict[str, Any]]:
    size = {"train.steps": 2, "warm_start.max_steps": 2, "train.batch_size": 16, "evaluate.prompts": 16}
    recipe = load_recipe(HERE.parent / "recipes" / "modular-addition", size if is_smoke else {})
    made = train(recipe, folder / "student", console=Console(quiet=True))
    s = setup_of(recipe, folder / "drafts", made.checkpoint)
    count, number = recipe.train.batch_size, iter(range(10**6))
    book, last = DraftBook(), {}

    def ours(drafts: DraftBook | None) -> list[Trajectory]:
        n = next(number) // 3  # three variants in a row see the same prompts
        this = Round(number=n, first_prompt=count * n, num_prompts=count, student_version=0)
        return rolled(s, dataclasses.replace(s.sources, drafts=drafts), this)

    def generated() -> torch.Tensor:
        n = next(number) // 3
        token_BT = torch.tensor([p.token_ids for p in s.sources.task.prompts("train", count * n, count)])
        model: Any = s.model
        with torch.no_grad():
            return model.generate(token_BT, attention_mask=torch.ones_like(token_BT))

    # Nothing but the length may end a response here; a config that says nothing means a token by its default.
    s.model.generation_config = GenerationConfig(
        do_sample=False, max_new_tokens=s.sources.limits.max_new_tokens, pad_token_id=0, eos_token_id=None
    )
    variants: dict[str, Callable[[], object]] = {
        "drafts": lambda: last.update(drafts=ours(book)),
        "plain": lambda: last.update(plain=ours(None)),
        "generate": lambda: last.update(generate=generated()),
    }
    for action in variants.values():
        action()
    require_same(last["drafts"], last["plain"])
    tails = last["generate"][:, -s.sources.limits.max_new_tokens :].tolist()
    apart = sum(list(t.response_ids) != tail for t, tail in zip(last["plain"], tails, strict=True))
    assert apart <= count / 50, f"{apart} of {count} responses are not those of generate"
    book.take_counts("rollout")
    found = interleaved(variants, repeats=2 if is_smoke else 15)
    acceptance = book.take_counts("rollout").acceptance_rate
    name = "greedy prefixes, modular addition, 0.1M parameters: speed with drafts over"
    figures = [
        figure(f"{name} `generate`", ratios(found["generate"], found["drafts"], "cpu"), 2.5, ">="),
        figure(f"{name} our own decoding", ratios(found["plain"], found["drafts"], "cpu"), 2.5, ">="),
    ]
    phases = {f"{v}, cpu seconds a round": min(t.cpu_seconds for t in found[v]) for v in found}
    phases["draft acceptance rate"] = acceptance or 0.0
    return figures, phases, _floor(s, count)


def _floor(s: Setup, count: int) -> dict[str, Any]:
    """What bounds the gain: everything that is decoded must at least be read, and the prompt is read either way."""
    prompt, response = (
        len(s.sources.task.prompts("train", 0, 1)[0].token_ids),
        s.sources.limits.max_new_tokens,
    )
    long = torch.randint(0, 3, (count, prompt + response - 1))
    model: Any = s.model

    def read(token_BT: torch.Tensor) -> None:
        with torch.no_grad(), evaluating(s.model):
            model.model(input_ids=token_BT, use_cache=False)

    timing = interleaved({"all": lambda: read(long), "prompt": lambda: read(long[:, :prompt])}, repeats=9)
    whole, part = (min(t.cpu_seconds for t in timing[k]) for k in ("all", "prompt"))
    return {
        "seconds to read prompts and drafts, the least that drafts can cost": whole,
        "seconds to read the prompts alone, which plain decoding pays as well": part,
        "prompt tokens": prompt * count,
        "response tokens": response * count,
    }


# --- sampled, text --------------------------------------------------------------------------------------------------------


def text_recipe(folder: Path, data: Path, *, is_smoke: bool) -> tuple[Recipe, int]:
    """On-policy distillation of a student who half knows its word problems by heart; and how many prompts there are.

    A model that was pretrained is sure of most tokens of such text. One of this size is only if it has seen them often: so a
    few prompts and many passes over the references stand in for pretraining.
    """
    corpus = folder / "text"
    corpus.mkdir()
    rows = (data / "train.jsonl").read_text(encoding="utf-8").splitlines()[:150]
    (corpus / "train.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (corpus / "test.jsonl").write_bytes((data / "test.jsonl").read_bytes())
    model = NewModel(family="llama", layers=2, width=96, heads=4, max_positions=320)
    make_starter(folder / "start", model=model, texts=[corpus / "train.jsonl"], vocab_size=1024)
    task = {"kind": "gsm8k", "path": str(corpus), "validation_rows": 2}
    task |= {"max_prompt_tokens": 160, "max_new_tokens": 128, "too_long": "drop"}
    optimizer = {"betas": [0.9, 0.98], "warmup_steps": 20, "schedule": "cosine", "final_rate": 0.1}
    first = {
        "name": "first",
        "task": task,
        "student": {"checkpoint": str(folder / "start")},
        "method": {"name": "sft"},
        "data": {"offline": "reference"},
        "train": {"steps": 2 if is_smoke else 300, "batch_size": 32, "micro_batch_size": 8, "device": "cpu"},
        "optimizer": {**optimizer, "learning_rate": 4e-3},
        "evaluate": {"every_steps": 10**6, "prompts": 2, "sampled": False, "expert_kl": False},
    }
    train(recipe_from_table(first), folder / "expert", console=Console(quiet=True))
    fewer = {"train.steps": 2 if is_smoke else 220}
    train(recipe_from_table(first, fewer), folder / "warm", console=Console(quiet=True))
    made = first | {
        "method": {"name": "opd-r"},
        "expert": {"kind": "local", "checkpoint": str(folder / "expert" / "final")},
        "rollouts": {"drafts": "coupled"},
        "optimizer": optimizer | {"learning_rate": 1e-4, "warmup_steps": 3},
    }
    num_prompts = build(recipe_from_table(made), device=torch.device("cpu")).task.size("train")
    assert num_prompts is not None
    batch = min(32, num_prompts)
    steps = EPOCHS * (num_prompts // batch)
    return recipe_from_table(made, {"train.steps": steps, "train.batch_size": batch}), num_prompts


def text(folder: Path, data: Path, *, is_smoke: bool) -> tuple[list[Figure], dict[str, Any]]:
    recipe, num_prompts = text_recipe(folder, data, is_smoke=is_smoke)
    s = setup_of(recipe, folder / "drafts", folder / "warm" / "final")
    batch = recipe.train.batch_size
    rounds = num_prompts // batch
    clock, progress = Clock(Progress(), s.accelerator.device), Progress()
    speed: dict[str, list[list[float]]] = {k: [[] for _ in range(EPOCHS)] for k in ("drafts", "fresh")}
    phases: dict[str, Any] = {}
    book = s.sources.drafts
    assert book is not None
    kinds = {
        "plain": dataclasses.replace(s.sources, drafts=None),
        "drafts": s.sources,
        "fresh": dataclasses.replace(s.sources, drafts=DraftBook(), is_coupled=False),
    }
    for epoch in range(EPOCHS):
        tokens = certain = 0.0
        for k in range(rounds):
            n = epoch * rounds + k
            first = epoch * num_prompts + k * batch
            this = Round(number=n, first_prompt=first, num_prompts=batch, student_version=n)
            last: dict[str, list[Trajectory]] = {}
            spent: dict[str, float] = {}
            # One after the other, and the other way round in the next round.
            for kind in kinds if n % 2 else reversed(kinds):
                last[kind], spent[kind] = clocked(s, kinds[kind], this)
            require_same(last["drafts"], last["plain"])
            for kind, found in speed.items():
                found[epoch].append(spent["plain"] / spent[kind])
            tokens += sum(len(t.logp) for t in last["plain"])
            certain += sum(float(torch.tensor(t.logp).exp().sum()) for t in last["plain"])
            progress.round += 1
            optimizer_step(s, last["plain"], progress, clock)
            progress.step += 1
        counts = book.take_counts("rollout")
        phases[f"sampled text, coupled, epoch {epoch + 1}"] = {
            "draft acceptance rate": counts.acceptance_rate,
            "share of tokens from drafts": counts.drafted_rate,
            "response tokens, mean": tokens / (rounds * batch),
            "probability of a drawn token, mean": certain / tokens,
        }
    names = {"drafts": "coupled draws", "fresh": "fresh draws (the default)"}
    figures = [
        figure(
            f"sampled prefixes, GSM8K text, {names[kind]}: speed with drafts over our own decoding, epoch {epoch + 1}",
            ratios_of_rounds,
            1.3 if epoch else None,
            ">=",
        )
        for kind, found in speed.items()
        for epoch, ratios_of_rounds in enumerate(found)
    ]
    return figures, phases


def main(arguments: list[str]) -> None:
    options = parser("drafts", __doc__)
    options.add_argument(
        "--gsm8k", type=Path, default=SAMPLE, help="folder with GSM8K's train.jsonl and test.jsonl"
    )
    given = options.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as place:
        greedy, phases, floor = modular_addition(Path(place) / "sums", is_smoke=given.smoke)
        (Path(place) / "text").mkdir()
        sampled, text_phases = text(Path(place) / "text", given.gsm8k, is_smoke=given.smoke)
    result = Result(
        name="drafts",
        question="What do drafts save, with the same tokens written?",
        figures=[*greedy, *sampled],
        command=command_of("drafts", arguments).replace("--gsm8k", "--gsm8k FOLDER"),
        phases={"greedy, modular addition": phases, **text_phases},
        floor=floor,
        notes=[] if given.gsm8k != SAMPLE else ["text: the few sample rows of the tests, not GSM8K itself"],
    )
    write(result, given.out)


if __name__ == "__main__":
    main(sys.argv[1:])
