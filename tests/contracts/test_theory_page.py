"""docs/theory.md shows every experiment with its figure, and the page's names are the program's."""

import re
from pathlib import Path

from understudy.theory.table import EXPERIMENTS

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "theory.md").read_text(encoding="utf-8")


def sections() -> dict[str, str]:
    parts = re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]
    return {part.split()[0]: part for part in parts}


def test_every_experiment_has_its_section_in_order():
    assert list(sections()) == list(EXPERIMENTS)


def test_every_section_shows_its_figure_and_says_what_it_shows():
    for name, text in sections().items():
        (figure,) = re.findall(r"!\[[^]]+\]\(([^)]+)\)", text)
        assert figure == f"figures/theory-{name}.png"
        assert (DOCS / figure).read_bytes().startswith(b"\x89PNG")
        words = text.split(")\n", 2)[-1]
        assert len(re.findall(r"[.:;](?:\s|$)", words)) >= 3, name


def test_every_experiment_can_be_imported_and_takes_the_same_arguments():
    import importlib
    import inspect

    for name in EXPERIMENTS:
        module = importlib.import_module(f"understudy.theory.experiments.{name.replace('-', '_')}")
        assert list(inspect.signature(module.run).parameters) == ["seed", "progress", "settings"], name
        compares = "run_folder" in module.Settings.__dataclass_fields__
        assert compares == EXPERIMENTS[name].compares_a_run
