"""Understudy: imitation-learning post-training of language models - decide, train, prove.

import understudy

recipe = understudy.load_recipe("recipes/modular-addition", {"method.name": "nail-f"})
result = understudy.train(recipe, "runs/nail-f")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from understudy.compare import compare
    from understudy.config import Recipe, load_recipe
    from understudy.run import RunResult, train

__all__ = ["Recipe", "RunResult", "__version__", "compare", "load_recipe", "train"]

_HOMES = {
    "Recipe": "understudy.config",
    "load_recipe": "understudy.config",
    "RunResult": "understudy.run",
    "train": "understudy.run",
    "compare": "understudy.compare",
}


def __getattr__(name: str) -> Any:
    # Loaded when asked for: `understudy --help` must not wait for torch.
    if name not in _HOMES:
        raise AttributeError(f"module 'understudy' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
