"""The recipe table: one row per published training of the systems that deit_fast replaces, one module per source."""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from deit_fast.recipe.files import SUFFIXES, read_content, read_recipe_file
from deit_fast.recipe.schema import Recipe, parse_with_words
from deit_fast.recipe.table import deit, deit3, deit3_jax, demo, mmpretrain, passl, small_data
from deit_fast.runtime.errors import RecipeError, suggest

GROUPS: dict[str, tuple[Recipe, ...]] = {
    "DeiT III: facebookresearch/deit, README_revenge.md": deit3.ROWS,
    "DeiT: facebookresearch/deit, README_deit.md": deit.ROWS,
    "DeiT and DeiT III on TPUs: affjljoo3581/deit3-jax": deit3_jax.ROWS,
    "DeiT: PaddlePaddle/PASSL": passl.ROWS,
    "DeiT: open-mmlab/mmpretrain": mmpretrain.ROWS,
    "Own images": small_data.ROWS,
    "Demo": demo.ROWS,
}
"""The rows of each source, in the order in which they are listed."""

RECIPES: dict[str, Recipe] = {recipe.name: recipe for rows in GROUPS.values() for recipe in rows}


class DataSet(NamedTuple):
    """A training set that recipes are meant for."""

    name: str
    images: int
    classes: int


_NAMED = {
    "1k": DataSet("ImageNet-1k", 1_281_167, 1_000),
    "21k": DataSet("ImageNet-21k, winter 2021", 13_151_276, 19_167),
    "cifar": DataSet("CIFAR", 50_000, 10),  # of CIFAR-10, although CIFAR-100 has the same recipe
    "inat": DataSet("iNaturalist 2018", 437_513, 8_142),
    "demo": DataSet("the demo's digits", 1_437, 10),
}
"""The data sets that a recipe's name can contain."""
_OWN_IMAGES = DataSet("an example of own images", 1_000, 10)


def training_set(recipe: Recipe) -> DataSet | None:
    """The data set in the recipe's name, of which the last one counts: 21k_1k is finetuned on 1k. None without one.

    Recipes for own images count as 1,000 images of 10 classes.
    """
    if any(recipe.name == each.name for each in small_data.ROWS):
        return _OWN_IMAGES
    return next((_NAMED[word] for word in reversed(recipe.name.split("_")) if word in _NAMED), None)


def training_images(recipe: Recipe) -> tuple[str, int]:
    """Name and size of the training set in the recipe's name; ImageNet-1k without one."""
    return (training_set(recipe) or _NAMED["1k"])[:2]


def list_recipes() -> list[str]:
    """Names of the recipe table, in its order."""
    return list(RECIPES)


def get_recipe(name: str, overrides: Iterable[str] = ()) -> Recipe:
    """The recipe `name` of the table, or the recipe in a .toml or .json file, with `section.key=value` words applied.

    Raises RecipeError for an unknown name or an unreadable file, and with a line for each mistake in a file or word.
    """
    if name in RECIPES:
        return RECIPES[name].override(overrides)
    if name.endswith(SUFFIXES):
        return parse_with_words(read_recipe_file(Path(name), RECIPES), overrides, source=name)
    raise RecipeError(
        f"recipe {name!r}: expected a name that `deit-fast show` lists, or a .toml or .json file"
        f"{suggest(name, RECIPES)}"
    )


def describe_rate(recipe: Recipe, name: str | None = None) -> str:
    """A line where the batch size is not the one that the learning rate of `recipe` is meant for, else "".

    name: of the row, or the file, to which words were applied. Without a name, the row of the recipe's name counts.
    """
    bases = [RECIPES[recipe.name]] if recipe.name in RECIPES else []
    if name is not None:
        with suppress(RecipeError):  # a file may be whole with its words only
            bases.insert(0, get_recipe(name))
    return next(filter(None, map(recipe.describe_batch, bases)), "")


def find_origin(name: str) -> Recipe:
    """The recipe from which `name` is derived: a row itself, a file's base, or the row whose name a file's recipe has.

    Raises RecipeError for a file with neither.
    """
    if name in RECIPES:
        return RECIPES[name]
    content = read_content(Path(name))
    base = content.get("base", content.get("name"))
    if isinstance(base, str) and base.endswith(SUFFIXES):
        return get_recipe(str(Path(name).parent / base))
    if base not in RECIPES:
        raise RecipeError(
            f"{name}: expected a base, or the name of a recipe that `deit-fast show` lists, to compare with"
        )
    return RECIPES[base]
