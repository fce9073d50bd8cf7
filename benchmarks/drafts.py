"""Rollouts with drafts against the same rollouts decoded token by token, and against transformers' `generate`.

1. Greedy prefixes on modular addition, a student of 0.1M parameters that has learnt the task; drafts: the references.
2. Prefixes sampled at temperature 1 on word problems, over four epochs of on-policy distillation. `--gsm8k FOLDER` takes
   GSM8K's train.jsonl; without it a few rows of the same shape are used. Two students:
   - a sharp one, who was trained on these problems' references for long; drafts: the references and the last epoch's
     rollouts;
   - one trained for less long, less sure of its tokens; drafts: the last epoch's rollouts alone.

With drafts and without, the tokens are checked to be the same ones. Ratios turn by turn, in one
process; of processor time on a CPU, of wall time on a GPU. Only writing is timed: what the pass over a draft saves the loss
afterwards is in `benchmarks.modular_addition`.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console
from transformers import GenerationConfig

from benchmarks.common import (
    Figure,
    Result,
    add_device,
    clock_name,
    clock_of,
    command_of,
    device_named,
    figure,
    interleaved,
    parser,
    ratios,
    seconds_now,
    target_on,
    write,
)
from benchmarks.step_ours import SilentBar
from understudy.build import build
from understudy.config import load_recipe, recipe_from_table
from understudy.records import Prompt, Trajectory
from understudy.rollouts.collect import Round, Sources, collect
from understudy.rollouts.drafts import DraftBook
from understudy.rollouts.hf import HFDecoder, evaluating
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


GREEDY_TARGET = {"cpu": 2.5, "gpu": 3.0}
SAMPLED_TARGET = {"cpu": 1.3, "gpu": 3.0}
STEPS_EXPERT, STEPS_SHARP, STEPS_LESS_SHARP = 300, 220, 150
"""Of training on the references: the expert, and students whose drawn tokens have mean probability 0.96 and about 0.8."""


class LastRollouts(DraftBook):
    """A book that does not know the references."""

    def drafts(self, use: str, slots: Iterable[tuple[Prompt, int]]) -> list[Sequence[int]]:
        return super().drafts(use, _without_references(slots))

    def learn(
        self,
        use: str,
        slots: Sequence[tuple[Prompt, int]],
        drafts: Sequence[Sequence[int]],
        responses: Sequence[Sequence[int]],
    ) -> None:
        super().learn(use, _without_references(slots), drafts, responses)


def _without_references(slots: Iterable[tuple[Prompt, int]]) -> list[tuple[Prompt, int]]:
    return [(dataclasses.replace(prompt, reference_ids=None), sample) for prompt, sample in slots]


def setup_of(recipe: Recipe, folder: Path, checkpoint: Path | None, device: torch.device) -> Setup:
    """What the loop of a run of this recipe works with."""
    accelerator = Accelerator(cpu=device.type == "cpu")
    given = None if checkpoint is None else str(checkpoint)
    parts = build(recipe, device=accelerator.device, checkpoint=given)
    bar: Any = SilentBar()
    folder.mkdir(parents=True, exist_ok=True)
    s = assemble(recipe, parts, accelerator, folder, bar, data_root=folder / "data", stage="main")
    # Only writing is timed: the pass that checks drafts need not be kept for a loss.
    sources = dataclasses.replace(
        s.sources, readings=None, student=lambda: HFDecoder(s.model, vocab_size=parts.vocab_size)
    )
    return dataclasses.replace(s, sources=sources)


def rolled(s: Setup, sources: Sources, this: Round) -> list[Trajectory]:
    with evaluating(s.model):
        return collect(sources, s.method.prefixes, s.options, this)


def clocked(s: Setup, sources: Sources, this: Round) -> tuple[list[Trajectory], float]:
    """A round, and the seconds it took (`common.clock_of`)."""
    device = s.accelerator.device
    start = seconds_now(device)
    found = rolled(s, sources, this)
    return found, seconds_now(device) - start


def require_same(a: list[Trajectory], b: list[Trajectory]) -> None:
    apart = sum(x.response_ids != y.response_ids for x, y in zip(a, b, strict=True))
    # A law read along a draft differs from a stepped one by rounding; a draw may hang on that once in a long while.
    assert apart <= len(a) / 50, f"{apart} of {len(a)} responses differ"


# --- greedy, modular addition ---------------------------------------------------------------------------------------------


def modular_addition(
    folder: Path, device: torch.device, *, is_smoke: bool
) -> tuple[list[Figure], dict[str, Any], dict[str, Any]]:
    size = {"train.steps": 2, "warm_start.max_steps": 2, "train.batch_size": 16, "evaluate.prompts": 16}
    where = {"train.device": train_device(device)}
    recipe = load_recipe(HERE.parent / "recipes" / "modular-addition", where | (size if is_smoke else {}))
    made = train(recipe, folder / "student", console=Console(quiet=True))
    s = setup_of(recipe, folder / "drafts", made.checkpoint, device)
    count, number = recipe.train.batch_size, iter(range(10**6))
    book, last = DraftBook(), {}

    def ours(drafts: DraftBook | None) -> list[Trajectory]:
        n = next(number) // 3  # three variants in a row see the same prompts
        this = Round(number=n, first_prompt=count * n, num_prompts=count, student_version=0)
        return rolled(s, dataclasses.replace(s.sources, drafts=drafts), this)

    def generated() -> torch.Tensor:
        n = next(number) // 3
        prompts = s.sources.task.prompts("train", count * n, count)
        token_BT = torch.tensor([p.token_ids for p in prompts], device=device)
        model: Any = s.model
        with torch.no_grad():
            return model.generate(token_BT, attention_mask=torch.ones_like(token_BT))

    # Nothing but the length may end a response here; a config that says nothing means a token by its default.
    model: Any = s.model
    model.generation_config = GenerationConfig(
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
    clock, target = clock_of(device), target_on(device, **GREEDY_TARGET)
    figures = [
        figure(f"{name} `generate`", ratios(found["generate"], found["drafts"], clock), target, ">="),
        figure(f"{name} our own decoding", ratios(found["plain"], found["drafts"], clock), target, ">="),
    ]
    phases = {f"{v}, seconds a round": min(t.seconds(clock) for t in found[v]) for v in found}
    phases["draft acceptance rate"] = acceptance or 0.0
    return figures, phases, _floor(s, count)


def _floor(s: Setup, count: int) -> dict[str, Any]:
    """What bounds the gain: everything that is decoded must at least be read, and the prompt is read either way."""
    prompt, response = (
        len(s.sources.task.prompts("train", 0, 1)[0].token_ids),
        s.sources.limits.max_new_tokens,
    )
    device = s.accelerator.device
    long = torch.randint(0, 3, (count, prompt + response - 1), device=device)
    model: Any = s.model

    def read(token_BT: torch.Tensor) -> None:
        with torch.no_grad(), evaluating(s.model):
            model.model(input_ids=token_BT, use_cache=False)

    timing = interleaved({"all": lambda: read(long), "prompt": lambda: read(long[:, :prompt])}, repeats=9)
    whole, part = (min(t.seconds(clock_of(device)) for t in timing[k]) for k in ("all", "prompt"))
    return {
        "seconds to read prompts and drafts, the least that drafts can cost": whole,
        "seconds to read the prompts alone, which plain decoding pays as well": part,
        "prompt tokens": prompt * count,
        "response tokens": response * count,
    }


# --- sampled, text --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Texts:
    """On-policy distillation on word problems, and the students it may start from."""

    recipe: Recipe
    num_prompts: int
    students: Mapping[str, Path]


def train_device(device: torch.device) -> str:
    """`train.device` of a recipe for it."""
    return "cpu" if device.type == "cpu" else "auto"


def make_texts(folder: Path, data: Path, device: torch.device, *, is_smoke: bool) -> Texts:
    """An expert and two students who know their word problems by heart, some better than others.

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
    steps = {"batch_size": 32, "micro_batch_size": 8, "device": train_device(device)}
    first = {
        "name": "first",
        "task": task,
        "student": {"checkpoint": str(folder / "start")},
        "method": {"name": "sft"},
        "data": {"offline": "reference"},
        "train": {"steps": STEPS_EXPERT, **steps},
        "optimizer": {**optimizer, "learning_rate": 4e-3},
        "evaluate": {"every_steps": 10**6, "prompts": 2, "sampled": False, "expert_kl": False},
    }
    lengths = {"expert": STEPS_EXPERT, "sharp": STEPS_SHARP, "less sharp": STEPS_LESS_SHARP}
    made: dict[str, Path] = {}
    for name, length in lengths.items():
        chosen = recipe_from_table(first, {"train.steps": 2 if is_smoke else length})
        made[name] = train(chosen, folder / name.replace(" ", "-"), console=Console(quiet=True)).checkpoint
    distilled = first | {
        "method": {"name": "opd-r"},
        "expert": {"kind": "local", "checkpoint": str(made.pop("expert"))},
        "rollouts": {"drafts": "coupled"},
        "optimizer": optimizer | {"learning_rate": 1e-4, "warmup_steps": 3},
    }
    num_prompts = build(recipe_from_table(distilled), device=torch.device("cpu")).task.size("train")
    assert num_prompts is not None
    batch = min(32, num_prompts)
    total = EPOCHS * (num_prompts // batch)
    recipe = recipe_from_table(distilled, {"train.steps": total, "train.batch_size": batch})
    return Texts(recipe=recipe, num_prompts=num_prompts, students=made)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One student and what it is offered as drafts. `has_target`: whether the aim is stated for it."""

    student: str
    book: type[DraftBook]
    described: str
    has_target: bool


SETTINGS = (
    Setting(
        student="sharp",
        book=DraftBook,
        described="student trained on its drafts, the references",
        has_target=True,
    ),
    Setting(
        student="less sharp",
        book=LastRollouts,
        described="less sharp student, last rollouts alone",
        has_target=False,
    ),
)


def text(
    folder: Path, texts: Texts, setting: Setting, device: torch.device
) -> tuple[list[Figure], dict[str, Any]]:
    """Every round of the epochs is written with drafts and without, by coupled draws and by fresh ones; trained on the first."""
    recipe, num_prompts = texts.recipe, texts.num_prompts
    s = setup_of(recipe, folder, texts.students[setting.student], device)
    batch = recipe.train.batch_size
    rounds = num_prompts // batch
    clock, progress = Clock(Progress(), device), Progress()
    speed: dict[str, list[list[float]]] = {k: [[] for _ in range(EPOCHS)] for k in ("drafts", "fresh")}
    phases: dict[str, Any] = {}
    books = {"drafts": setting.book(), "fresh": setting.book()}
    # Each beside its own rule of drawing: a coupled draw costs more than a fresh one, and draws other tokens.
    plain_of = {"drafts": "plain", "fresh": "plain fresh"}
    kinds = {
        "plain": dataclasses.replace(s.sources, drafts=None),
        "drafts": dataclasses.replace(s.sources, drafts=books["drafts"]),
        "plain fresh": dataclasses.replace(s.sources, drafts=None, is_coupled=False),
        "fresh": dataclasses.replace(s.sources, drafts=books["fresh"], is_coupled=False),
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
            for kind, found in speed.items():
                require_same(last[kind], last[plain_of[kind]])
                found[epoch].append(spent[plain_of[kind]] / spent[kind])
            tokens += sum(len(t.logp) for t in last["plain"])
            certain += sum(float(torch.tensor(t.logp).exp().sum()) for t in last["plain"])
            progress.round += 1
            optimizer_step(s, last["plain"], progress, clock)
            progress.step += 1
        for kind, draws in (("drafts", "coupled"), ("fresh", "fresh")):
            counts = books[kind].take_counts("rollout")
            phases[f"sampled text, {setting.student} student, {draws}, epoch {epoch + 1}"] = {
                "draft acceptance rate": counts.acceptance_rate or 0.0,
                "share of tokens from drafts": counts.drafted_rate,
                "response tokens, mean": tokens / (rounds * batch),
                "probability of a drawn token, mean": certain / tokens,
            }
    return text_figures(speed, setting, device), phases


def text_figures(
    speed: Mapping[str, list[list[float]]], setting: Setting, device: torch.device
) -> list[Figure]:
    names = {"drafts": "coupled draws", "fresh": "fresh draws (the default)"}
    target = target_on(device, **SAMPLED_TARGET) if setting.has_target else None
    return [
        figure(
            f"sampled prefixes, GSM8K text, {setting.described}, {names[kind]}: speed with drafts over our own "
            f"decoding, epoch {epoch + 1}",
            ratios_of_rounds,
            target if epoch else None,
            ">=",
        )
        for kind, found in speed.items()
        for epoch, ratios_of_rounds in enumerate(found)
    ]


def notes_of(data: Path, device: torch.device) -> list[str]:
    notes = [
        f"Phases and floor: {clock_name(device)} seconds of writing a round, the least of all turns; other columns: rates.",
        "The sharp student was trained on exactly the problems it is asked, and drafts are the references it was trained on: it "
        "knows most of them by heart (see the mean probability of a drawn token), and a student seeing new problems gains less. "
        "The less sharp one is offered its own last rollouts alone, and none in the first epoch.",
        "Only writing is timed, without what the pass over a draft saves the loss (see modular_addition).",
    ]
    return notes if data != SAMPLE else [*notes, "text: the few sample rows of the tests, not GSM8K itself"]


def main(arguments: list[str]) -> None:
    options = parser("drafts", __doc__)
    add_device(options)
    options.add_argument(
        "--gsm8k", type=Path, default=SAMPLE, help="folder with GSM8K's train.jsonl and test.jsonl"
    )
    given = options.parse_args(arguments)
    device = device_named(given.device)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        figures, phases, floor = modular_addition(folder / "sums", device, is_smoke=given.smoke)
        tables: dict[str, Any] = {"greedy, modular addition": phases}
        texts = make_texts(folder, given.gsm8k, device, is_smoke=given.smoke)
        for setting in SETTINGS:
            found, rates = text(folder / f"drafts-{setting.student}", texts, setting, device)
            figures += found
            tables |= rates
    result = Result(
        name="drafts",
        question="What do drafts save, with the same tokens written?",
        figures=figures,
        command=command_of("drafts", arguments),
        phases=tables,
        floor=floor,
        notes=notes_of(given.gsm8k, device),
        device=device,
    )
    write(result, given.out)


if __name__ == "__main__":
    main(sys.argv[1:])
