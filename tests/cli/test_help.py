"""The surface of the command line: its flags, its speed, its exit codes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from command import understudy

from understudy import __version__
from understudy.cli import app

COMMANDS = typer.main.get_command(app).commands  # pyright: ignore[reportAttributeAccessIssue]

# A new knob goes into the recipe, not into a flag: this list is changed on purpose only.
FLAGS = {
    "train": {"--out", "--set", "--seed", "--resume", "--overwrite", "--dry-run", "--json"},
    "compare": {"--out", "--set", "--seed", "--methods", "--workers", "--resume", "--overwrite", "--dry-run", "--json"},
    "evaluate": {
        "--against", "--recipe", "--grader", "--of-set", "--split", "--prompts", "--samples", "--set", "--seed",
        "--out", "--json",
    },
    "discrepancy": {
        "--response", "--id", "--grade", "--tokens", "--of-set", "--label", "--unit", "--tokenizer", "--bin", "--keyword",
        "--prompts", "--seed", "--out", "--json",
    },
    "forks": {
        "--prompts", "--samples", "--split", "--per-group", "--quantile", "--window", "--temperature", "--embedding",
        "--correct", "--rates", "--steps", "--seeds", "--set", "--seed", "--out", "--json",
    },
    "report": {"--json"},
    "theory": {"--all", "--out", "--seed", "--run", "--json"},
    "methods": {"--json"},
    "doctor": {"--set", "--seed", "--json"},
    "init": {
        "--text", "--field", "--vocab-size", "--family", "--layers", "--width", "--heads", "--max-positions",
        "--chat-template", "--no-chat-template", "--seed", "--tokenizer-only", "--overwrite", "--json",
    },
}  # fmt: skip


def test_the_list_of_flags():
    found = {
        name: {
            flag
            for parameter in command.params
            for flag in (*parameter.opts, *parameter.secondary_opts)
            if flag.startswith("--") and flag != "--help"
        }
        for name, command in COMMANDS.items()
    }
    assert found == FLAGS


@pytest.mark.parametrize("name", FLAGS)
def test_every_command_explains_itself_with_an_example(name):
    found = understudy(name, "--help")
    assert found.code == 0
    assert "Examples:" in found.out
    assert f"  understudy {name} " in found.out or name == "methods"
    for parameter in COMMANDS[name].params:
        assert getattr(parameter, "help", None) or "--help" in parameter.opts, (name, parameter.name)


def test_examples_are_whole_lines():
    """A help text that is re-wrapped would break its examples in two."""
    assert "  understudy train recipes/modular-addition --set method.name=opd-f --out runs/opd-f\n" in (
        understudy("train", "--help").out
    )


# One process for all: starting Python costs more than what is measured.
_IMPORTS = """
import json, sys
from understudy.cli import main
found = {}
for argv in (["--help"], ["train", "--help"], ["compare", "--help"], ["init", "--help"], ["--version"]):
    sys.argv = ["understudy", *argv]
    try:
        main()
    except SystemExit as exit:
        assert not exit.code, argv
    heavy = ("torch", "transformers", "matplotlib", "scipy", "numpy", "accelerate", "rich")
    found[" ".join(argv)] = [name for name in heavy if name in sys.modules]
sys.stderr.write(json.dumps(found))
"""


def test_help_imports_nothing_heavy():
    done = subprocess.run(
        [sys.executable, "-c", _IMPORTS], capture_output=True, text=True, check=True, timeout=60
    )
    commands = ["--help", "train --help", "compare --help", "init --help", "--version"]
    assert json.loads(done.stderr) == {command: [] for command in commands}


def test_the_module_is_the_program():
    done = subprocess.run(
        [sys.executable, "-m", "understudy", "--version"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout == f"understudy {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "No such command 'trian'. Did you mean 'train'?"),
        (["train"], "Missing argument"),
        (["train", "r", "--steps", "3"], "No such option: --steps"),
        (["train", "r", "--seed", "x"], "Invalid value for '--seed'"),
        (["train", "r", "--resume", "--overwrite"], "give either --resume or --overwrite, not both"),
        (["evaluate", "x", "--split", "train"], "'train' is not one of 'validation', 'test'"),
        (["compare", "r", "--workers", "0"], "Invalid value for '--workers'"),
    ],
)
def test_wrong_usage_is_exit_code_2(arguments, message):
    found = understudy(*arguments)
    assert found.code == 2
    assert message in found.err
    assert found.out == ""


def test_ctrl_c_is_one_line_and_exit_code_130(monkeypatch, tmp_path):
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("understudy.reports.page.write_report", interrupted)
    found = understudy("report", tmp_path)
    assert found.code == 130
    assert found.err.startswith("interrupted.")
    assert found.err.count("\n") == 1


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch, tmp_path):
    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr("understudy.reports.page.write_report", broken)
    with pytest.raises(RuntimeError, match="a fault of ours"):
        understudy("report", tmp_path)


def test_the_documentation_of_the_commands_and_methods_is_up_to_date():
    """Generated with the pinned versions; run `make docs` after a change."""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, str(root / "docs" / "generate.py"), "--check"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
