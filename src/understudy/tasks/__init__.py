"""Prompts and graders, and the exact law of a task's expert where there is one."""

from understudy.tasks.countdown import Countdown
from understudy.tasks.gsm8k import Gsm8k
from understudy.tasks.jsonl import JsonlTask
from understudy.tasks.mixture import Mixture, Part
from understudy.tasks.modular_addition import ModularAddition, ModularAdditionOracle
from understudy.tasks.sorting import Sorting
from understudy.tasks.task import SPLITS, Grade, Oracle, Split, Task
from understudy.tasks.text import TextEncoder, TextRow
from understudy.tasks.text_task import TextTask

__all__ = [
    "SPLITS",
    "Countdown",
    "Grade",
    "Gsm8k",
    "JsonlTask",
    "Mixture",
    "ModularAddition",
    "ModularAdditionOracle",
    "Oracle",
    "Part",
    "Sorting",
    "Split",
    "Task",
    "TextEncoder",
    "TextRow",
    "TextTask",
]
