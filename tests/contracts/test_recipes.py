"""Every recipe that ships can be read, checked, resolved and taken apart into its runs."""

from pathlib import Path

import pytest

from understudy.config import cell_recipe, load_recipe, warm_start_recipe
from understudy.resolved import resolved_recipe

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").rglob("*.toml"))


def test_there_are_recipes():
    assert RECIPES


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: str(file.relative_to(ROOT / "recipes")))
def test_a_recipe_loads_and_resolves_to_itself(file, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)  # paths inside a recipe are relative to where one stands
    recipe = load_recipe(file)
    (tmp_path / "recipe.toml").write_text(resolved_recipe(recipe))
    assert load_recipe(tmp_path) == recipe
    warm_start_recipe(recipe)
    for label in recipe.compare.methods if recipe.compare is not None else ():
        assert cell_recipe(recipe, label, 0).compare is None
