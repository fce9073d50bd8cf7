"""The README's Python runs and its commands exist. Sizes are cut down: what is tested is that the lines work."""

import re
import shlex
from pathlib import Path

import pytest
import typer

import understudy
from understudy.config import load_recipe

ROOT = Path(__file__).parents[1]
TEXTS = [ROOT / "README.md", *sorted(ROOT.glob("recipes/*/README.md"))]
SMALLER = {
    "student.new.layers": 1,
    "student.new.width": 16,
    "student.new.heads": 2,
    "warm_start.max_steps": 1,
    "train.steps": 1,
    "train.batch_size": 4,
    "evaluate.prompts": 8,
    "compare.methods": ["sft", "nail-known"],
    "compare.overrides": {},
    "compare.seeds": [0],
}


def blocks(language):
    found = re.findall(
        rf"^```{language}\n(.*?)^```", (ROOT / "README.md").read_text(), flags=re.DOTALL | re.MULTILINE
    )
    assert found
    return found


@pytest.mark.parametrize("code", blocks("python"), ids=lambda code: code.strip().splitlines()[-1][:40])
def test_python_blocks_run(code, tmp_path, monkeypatch, capsys):
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        understudy,
        "load_recipe",
        lambda path, changes=(): load_recipe(path, {**dict(changes), **SMALLER}),
        raising=False,
    )
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})  # noqa: S102 - our own README


def _commands():
    for text in TEXTS:
        joined = text.read_text().replace("\\\n", " ")
        for language, block in re.findall(r"^```(\w*)\n(.*?)^```", joined, flags=re.DOTALL | re.MULTILINE):
            for line in block.splitlines() if language == "" else []:
                words = shlex.split(line.split(" #")[0].strip()) if line.strip() else []
                if words[:1] == ["understudy"]:
                    yield pytest.param(words[1:], id=f"{text.parent.name}: {' '.join(words[1:4])}")


@pytest.mark.parametrize("words", list(_commands()))
def test_commands_parse(words):
    """Every option of every command line in the READMEs exists, and every recipe it names loads."""
    from understudy.cli import app

    group = typer.main.get_command(app)
    command = group.commands[words[0]]  # pyright: ignore[reportAttributeAccessIssue]
    command.make_context(words[0], list(words[1:]), resilient_parsing=True)
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    for word in words[1:]:
        if word.startswith("--"):
            assert word.split("=")[0] in known, f"{word} is not an option of understudy {words[0]}"
        if word.startswith("recipes/"):
            load_recipe(ROOT / word)


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", (ROOT / "README.md").read_text(), flags=re.MULTILINE):
        assert f"\n{target}:" in makefile


def test_every_offered_name_is_there_and_stays_there():
    """A submodule of the same name would take the place of a function once somebody imports it."""
    for _ in range(2):
        for name in understudy.__all__:
            assert not isinstance(getattr(understudy, name), type(typer)), name
    with pytest.raises(AttributeError, match="no_such"):
        understudy.no_such  # noqa: B018
