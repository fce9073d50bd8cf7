"""Write the files that these recipes read, into data/near-future-paper. Needs the hub and the extra `datasets`.

stage1.jsonl, stage2.jsonl   prompts of OpenThoughts3's mathematics: the first 20,000, and the next 10,000
aime24, aime25, hmmt25       30 problems each with their answers
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

FOLDER = Path("data/near-future-paper")
STAGE_1, STAGE_2 = 20_000, 10_000
BOXED = "Let's think step by step and output the final answer within \\boxed{}."
TESTS = {
    "aime24": ("HuggingFaceH4/aime_2024", "train"),
    "aime25": ("MathArena/aime_2025", "train"),
    "hmmt25": ("MathArena/hmmt_feb_2025", "train"),
}


def write(name: str, rows: Iterable[Mapping[str, Any]]) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def asked(question: str) -> str:
    return f"{question.strip()}\n\n{BOXED}"


def prompts(rows: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, str]]:
    """Each mathematical question once, in the order of the data set."""
    seen: set[str] = set()
    for row in rows:
        question = row["conversations"][0]["value"]
        if row["domain"] == "math" and question not in seen:
            seen.add(question)
            yield {"prompt": asked(question)}


def problems(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    return [{"prompt": asked(row["problem"]), "reference": str(row["answer"])} for row in rows]


def main() -> None:
    from datasets import load_dataset

    found = prompts(load_dataset("open-thoughts/OpenThoughts3-1.2M", split="train", streaming=True))
    write("stage1.jsonl", islice(found, STAGE_1))
    write("stage2.jsonl", islice(found, STAGE_2))
    for name, (dataset, split) in TESTS.items():
        write(f"{name}.jsonl", problems(load_dataset(dataset, split=split)))


if __name__ == "__main__":
    main()
