"""Recipes: every setting of a training, as frozen, validated data.

A recipe consists of sections (`sections/`), which rules relate to each other (`rules.py`). It comes from the table
(`table/`), from a file (`files.py`), or from either with words that override values (`schema.py`). All mistakes in a
recipe are reported at once.
"""

from deit_fast.recipe.schema import SECTIONS, Recipe, parse_model, parse_recipe
from deit_fast.recipe.table import GROUPS, RECIPES, get_recipe, list_recipes

__all__ = ["GROUPS", "RECIPES", "SECTIONS", "Recipe", "get_recipe", "list_recipes", "parse_model", "parse_recipe"]
