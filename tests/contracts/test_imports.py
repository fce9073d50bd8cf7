"""Imports point one way; what that means is written here once, and read from the source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import understudy

ROOT = Path(understudy.__file__).parent

# Lowest first. A file may import from its own line and from those above it, never from below.
LAYERS = (
    ("errors", "records"),
    ("files", "processor", "randomness", "settings"),
    ("objectives", "theory"),
    ("methods",),
    ("schema",),
    ("config",),
    ("stages",),
    ("models", "progress"),
    ("tasks",),
    (
        "rollouts.pieces",
        "rollouts.draws",
        "rollouts.sampler",
        "rollouts.mixture",
        "rollouts.cache",
        "rollouts.readings",
        "rollouts.hf",
        "rollouts.offline",
        "rollouts.drafts",
    ),
    ("rollouts",),
    ("experts",),
    ("trainer.collate", "trainer.loss"),
    ("evaluation",),
    ("diagnostics",),
    ("trainer",),
    ("reports",),
    ("build",),
    ("plans",),
    ("wiring", "versions"),
    ("run",),
    ("measure",),
    ("worker",),
    ("comparison", "pessimism", "final_checkpoints", "fork_subjects"),
    (
        "comparison_evaluation",
        "discrepancy",
        "fork_correction",
        "forks",
        "laboratory",
        "resolved",
        "method_table",
        "starter",
        "doctor",
    ),
    ("cli",),
    ("__main__",),
)
# What stands lower in the table and still may not be imported, or is imported against it, with the reason.
FORBIDDEN = {
    "objectives": {"*"},  # pure functions on tensors: nothing of ours
    "records": {"*"},
    "theory": {"*"},  # the oracle of the training code shares nothing with it
    "rollouts": {"trainer", "evaluation", "experts"},
    "tasks": {"models", "trainer", "rollouts", "experts", "config"},
    # Every worker process loads these, and must not wait for torch.
    "tasks.environments": {"records", "objectives", "tasks.task", "tasks.drawing", "tasks.modular_addition"},
    # Reports read folders: they must work where no model can be loaded.
    "reports": {"models", "trainer", "rollouts", "experts", "tasks", "objectives", "config", "methods"},
}


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(file): file for file in sorted(ROOT.rglob("*.py"))}


def imports(name: str) -> set[str]:
    """Modules of ours that a file imports anywhere in it, those for type checkers alone left out."""
    found: set[str] = set()
    for node in runtime_nodes(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{name} has a relative import"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            known = {full for full in inner if full.removeprefix("understudy.") in MODULES}
            found |= known or {node.module}
    ours = {
        full.removeprefix("understudy").lstrip(".") for full in found if full.split(".")[0] == "understudy"
    }
    return ours - {""}


def runtime_nodes(tree: ast.AST):
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        yield node
        yield from runtime_nodes(node)


def is_within(name: str, part: str) -> bool:
    return name == part or name.startswith(f"{part}.")


def layer(name: str) -> int:
    """The most precise line: `rollouts.sampler` before `rollouts`."""
    found = [
        (len(part), level) for level, parts in enumerate(LAYERS) for part in parts if is_within(name, part)
    ]
    assert found, f"{name} stands on no line: put it on one"
    return max(found)[1]


@pytest.mark.parametrize("name", [name for name in MODULES if name])
def test_imports_point_down(name):
    for other in imports(name):
        assert layer(other) <= layer(name), f"{name} imports {other}, which stands above it"


@pytest.mark.parametrize("part", FORBIDDEN)
def test_what_a_part_may_never_import(part):
    for name in (name for name in MODULES if is_within(name, part)):
        for other in (other for other in imports(name) if not is_within(other, part)):
            assert "*" not in FORBIDDEN[part], f"{name} imports {other}"
            assert not any(is_within(other, bad) for bad in FORBIDDEN[part]), f"{name} imports {other}"


def test_only_the_program_imports_the_command_line():
    for name in MODULES:
        if not is_within(name, "cli") and name != "__main__":
            assert not any(is_within(other, "cli") for other in imports(name)), name


def test_the_reader_of_imports_sees_them():
    """A reader that finds nothing would let everything pass."""
    assert {"errors", "schema", "models", "tasks"} <= {other.split(".")[0] for other in imports("build")}
    assert "run" in imports("cli.train")  # inside a function
    assert "config" not in imports("cli.options") or "TYPE_CHECKING" in MODULES["cli.options"].read_text()


def test_reports_theory_and_objectives_load_without_models():
    """Transitively: what is imported by what they import."""
    code = """
import sys
import understudy.reports.page, understudy.reports.tables
print([m for m in ("torch", "transformers", "accelerate") if m in sys.modules])
import understudy.theory.mdp, understudy.theory.table
print([m for m in ("torch", "transformers", "accelerate") if m in sys.modules])
import understudy.objectives.chunked, understudy.objectives.estimators
print([m for m in ("transformers", "accelerate", "understudy.config", "understudy.records") if m in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout == "[]\n[]\n[]\n"
