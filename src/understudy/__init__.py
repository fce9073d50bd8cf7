"""Understudy: imitation-learning post-training of language models.

import understudy

recipe = understudy.load_recipe("recipes/modular-addition", {"method.name": "nail-f"})
result = understudy.train(recipe, "runs/nail-f")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from understudy.comparison import compare
    from understudy.comparison_evaluation import evaluate_comparison
    from understudy.config import load_recipe
    from understudy.discrepancy import compare_responses
    from understudy.doctor import examine
    from understudy.fork_correction import correct_forks
    from understudy.forks import find_forks
    from understudy.laboratory import run_theory
    from understudy.measure import evaluate_checkpoint
    from understudy.methods import METHODS
    from understudy.pessimism import choose_pessimism
    from understudy.reports.page import write_report
    from understudy.run import RunResult, train
    from understudy.schema import Recipe
    from understudy.starter import make_starter

_HOMES = {
    "METHODS": "understudy.methods",
    "Recipe": "understudy.schema",
    "RunResult": "understudy.run",
    "choose_pessimism": "understudy.pessimism",
    "compare": "understudy.comparison",
    "compare_responses": "understudy.discrepancy",
    "correct_forks": "understudy.fork_correction",
    "evaluate_checkpoint": "understudy.measure",
    "evaluate_comparison": "understudy.comparison_evaluation",
    "examine": "understudy.doctor",
    "find_forks": "understudy.forks",
    "load_recipe": "understudy.config",
    "make_starter": "understudy.starter",
    "run_theory": "understudy.laboratory",
    "train": "understudy.run",
    "write_report": "understudy.reports.page",
}
"""What is offered here, and the module each comes from."""

__all__ = [
    "METHODS",
    "Recipe",
    "RunResult",
    "__version__",
    "choose_pessimism",
    "compare",
    "compare_responses",
    "correct_forks",
    "evaluate_checkpoint",
    "evaluate_comparison",
    "examine",
    "find_forks",
    "load_recipe",
    "make_starter",
    "run_theory",
    "train",
    "write_report",
]


def __getattr__(name: str) -> Any:
    # Loaded when asked for: `understudy --help` must not wait for torch.
    if name not in _HOMES:
        raise AttributeError(f"module 'understudy' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
