"""Write the files that these recipes read, into data/realizability-paper. Needs the hub and the extras `datasets`, `math-verify`.

prepare.py mmlu                what is forgotten: multiple choice after five examples (every recipe but DeepScaleR's)
prepare.py openr1              worked problems for gsm8k-base.toml
prepare.py deepscaler          problems with a checkable answer for deepscaler.toml
prepare.py prompts --count N   Countdown prompts for a stronger model that you ask yourself
prepare.py texts responses.jsonl   its responses (fields id, response) and those prompts, as rows for texts.toml
"""

import argparse
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

FOLDER = Path("data/realizability-paper")
RECIPE = Path(__file__).parent / "recipe.toml"
LETTERS = "ABCD"
ROWS_A_SUBJECT = 20
BOXED = "Let's think step by step and output the final answer within \\boxed{}."


def write(name: str, rows: Iterable[Mapping[str, Any]]) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row) + "\n" for row in rows]
    (FOLDER / name).write_text("".join(lines))


def hub(*args: str, **kwargs: str) -> Any:
    from datasets import load_dataset

    return load_dataset(*args, **kwargs)


def mmlu_rows(examples: Iterable[Any], questions: Iterable[Any]) -> list[dict[str, str]]:
    """The usual prompt: five examples of the subject, then the question; the reference is the letter."""
    shown: dict[str, list[str]] = {}
    for row in examples:
        shown.setdefault(row["subject"], []).append(f"{choices(row)} {LETTERS[row['answer']]}\n\n")
    asked: dict[str, list[dict[str, str]]] = {}
    for row in questions:
        subject = row["subject"]
        about = f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}.\n\n"
        prompt = about + "".join(shown[subject][:5]) + choices(row)
        asked.setdefault(subject, []).append({"prompt": prompt, "reference": f" {LETTERS[row['answer']]}"})
    draw = random.Random(0)  # noqa: S311 - nothing secret
    chosen = [row for rows in asked.values() for row in draw.sample(rows, min(ROWS_A_SUBJECT, len(rows)))]
    # A question that stands in the test set twice would be counted twice.
    return list({row["prompt"]: row for row in chosen}.values())


def choices(row: Mapping[str, Any]) -> str:
    lines = [f"{letter}. {text}" for letter, text in zip(LETTERS, row["choices"], strict=True)]
    return "\n".join([row["question"].strip(), *lines, "Answer:"])


def openr1_rows(rows: Iterable[Any]) -> list[dict[str, str]]:
    """The first complete trace of each problem that was found right, behind the plain prompt of the task gsm8k."""
    made: dict[str, dict[str, str]] = {}
    for row in rows:
        judged = zip(
            row["generations"], row["correctness_math_verify"], row["is_reasoning_complete"], strict=True
        )
        trace = next((text for text, is_right, is_complete in judged if is_right and is_complete), None)
        if trace is not None:
            prompt = f"Question: {row['problem'].strip()}\nAnswer:"
            made[prompt] = {"prompt": prompt, "reference": f" {trace.strip()}"}
    return list(made.values())


def deepscaler_rows(rows: Iterable[Any]) -> list[dict[str, Any]]:
    """Problems whose answer the grader can read; a few of the data set's are prose."""
    from understudy.tasks.math import grade_math

    made: dict[str, dict[str, Any]] = {}
    for row in rows:
        problem, answer = row["problem"].strip(), str(row["answer"]).strip()
        if grade_math(answer, answer).is_correct:
            turns = [{"role": "user", "content": f"{problem} {BOXED}"}]
            made[problem] = {"messages": turns, "reference": answer}
    return list(made.values())


def prompt_rows(recipe_file: Path, count: int) -> list[dict[str, Any]]:
    """Training prompts as the student reads them (`prompt`) and as another model can be asked (`question`)."""
    from understudy import load_recipe
    from understudy.build import build_task, build_tokenizer
    from understudy.tasks.countdown.formats import QUESTION

    recipe = load_recipe(recipe_file)
    prompts = build_task(recipe, build_tokenizer(recipe), frozenset()).prompts("train", 0, count)
    made = []
    for p in prompts:
        nums, target = p.meta["nums"], p.meta["target"]
        question = QUESTION.format(nums=nums, target=target)
        made.append({"id": p.id, "question": question, "prompt": p.text, "nums": nums, "target": target})
    return made


def text_rows(prompts: Iterable[Mapping[str, Any]], responses: Iterable[Mapping[str, Any]]) -> list[dict]:
    """Responses as references, all of them, right or wrong: the prompt has opened <think> already."""
    by_id = {row["id"]: row["prompt"] for row in prompts}
    made = []
    for i, row in enumerate(responses):
        if row["id"] not in by_id:
            raise SystemExit(
                f"response {i} answers {row['id']!r}, which is no prompt of prompts.jsonl. Correct its id."
            )
        text = row["response"].strip().removeprefix("<think>")
        made.append({"id": f"{row['id']}/{i}", "prompt": by_id[row["id"]], "reference": text})
    return made


def read(file: Path) -> list[dict[str, Any]]:
    # Not splitlines(): a text may hold other ends of lines, such as U+2028, which JSON leaves as they are.
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("mmlu", "openr1", "deepscaler", "prompts", "texts"))
    parser.add_argument("responses", nargs="?", type=Path)
    parser.add_argument("--count", type=int, default=20_480)
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    given = parser.parse_args(arguments)
    if given.what == "mmlu":
        parts = (hub("cais/mmlu", "all", split=split) for split in ("dev", "test"))
        write("mmlu.jsonl", mmlu_rows(*parts))
    elif given.what == "openr1":
        write("openr1.jsonl", openr1_rows(hub("open-r1/OpenR1-Math-220k", "default", split="train")))
    elif given.what == "deepscaler":
        found = hub("agentica-org/DeepScaleR-Preview-Dataset", split="train")
        write("deepscaler.jsonl", deepscaler_rows(found))
    elif given.what == "prompts":
        write("prompts.jsonl", prompt_rows(given.recipe, given.count))
    else:
        if given.responses is None:
            parser.error("texts needs a file of responses, one object with id and response a line")
        write("texts.jsonl", text_rows(read(FOLDER / "prompts.jsonl"), read(given.responses)))


if __name__ == "__main__":
    main()
