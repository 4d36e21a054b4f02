"""Recipes: what is learned, as frozen, validated data.

A recipe has sections (`sections/`), rules between them (`rules.py`), and comes from the table (`table/`), from a file
(`files.py`) or from words over either (`schema.py`). All its mistakes are told at once.
"""

from deit_fast.recipe.schema import SECTIONS, Recipe, parse_model, parse_recipe
from deit_fast.recipe.table import GROUPS, RECIPES, get_recipe, list_recipes

__all__ = ["GROUPS", "RECIPES", "SECTIONS", "Recipe", "get_recipe", "list_recipes", "parse_model", "parse_recipe"]
