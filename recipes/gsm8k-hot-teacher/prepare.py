"""Write the prompts of this recipe: 400,000 TinyGSM questions for training, GSM8K's test set for evaluation.

Needs the hub and the `datasets` extra. Differs from the source in one filter: the reference programs are not executed
(TinyGSM's code is third-party code), only their length is checked.
"""

import json
import random
from pathlib import Path

from datasets import load_dataset

SYSTEM = "Reason step by step, then give the final answer in \\boxed{}."
NUM_PROMPTS = 400_000
SEED = 42


def row(question: str, **more: str) -> str:
    turns = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
    return json.dumps({"messages": turns, **more}) + "\n"


def main() -> None:
    folder = Path("data/gsm8k-hot-teacher")
    folder.mkdir(parents=True, exist_ok=True)
    short = [
        r["question"]
        for r in load_dataset("TinyGSM/TinyGSM", split="train", streaming=True)
        if len(r["code"]) <= 1024
    ]
    chosen = random.Random(SEED).sample(sorted(set(short)), NUM_PROMPTS)  # noqa: S311 - nothing secret
    (folder / "train.jsonl").write_text("".join(map(row, chosen)))
    test = load_dataset("openai/gsm8k", "main", split="test")
    (folder / "validation.jsonl").write_text("".join(row(r["question"], reference=r["answer"]) for r in test))


if __name__ == "__main__":
    main()
