"""Recipes in files: complete ones, and files that name a base and the values that differ from it."""

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deit_fast.recipe.batch_rate import settle_rate
from deit_fast.recipe.old_dumps import drop_removed, drop_unread
from deit_fast.recipe.schema import SECTIONS, Recipe, merge, parse_recipe
from deit_fast.runtime.errors import RecipeError, brief, one_line, suggest

SUFFIXES = (".toml", ".json")


def read_recipe_file(path: Path, table: Mapping[str, Recipe], above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The content of a .toml or .json file, such as a run folder's recipe.json.

    The text "null" stands for null in TOML.

    The key `base`, if present, names a recipe of the table, or a file relative to this file's folder; the file then
    lists only the values that differ. above: the files whose bases led to this file. Raises RecipeError for an
    unreadable file, and for a base that is no recipe.
    """
    content = drop_unread(drop_removed(read_content(path)), SECTIONS)
    if "base" not in content:
        return {"name": path.stem, **content}
    word = content.pop("base")
    base = _load_base(path, word, table, (*above, path.resolve()))
    differing = [f"{name}.{key}" for name in SECTIONS if isinstance(part := content.get(name), dict) for key in part]
    description = f"As {word}" + (f" but for {', '.join(differing)}." if differing else ".")
    plain = base.model_dump(mode="json")
    merged = merge(plain, {"name": path.stem, "description": description, **content})
    if line := settle_rate(merged, plain):
        raise RecipeError(f"{path}: {line}")
    return merged


def _load_base(path: Path, word: Any, table: Mapping[str, Recipe], above: tuple[Path, ...]) -> Recipe:
    if isinstance(word, str) and word in table:
        return table[word]
    if not isinstance(word, str) or not word.endswith(SUFFIXES) or "\0" in word:
        near = suggest(word, table) if isinstance(word, str) else ""
        raise RecipeError(f"{path}: base={brief(repr(word))}: expected a name that `deit-fast show` lists, or a .toml "
                          f"or .json file{near}")  # fmt: skip
    file = path.parent / word
    if file.resolve() in above:
        raise RecipeError(f"{path}: base={brief(repr(word))}: expected a file that does not come back to itself")
    return parse_recipe(read_recipe_file(file, table, above), source=str(file))


def read_content(path: Path) -> dict[str, Any]:
    """The file's own content, without its base's. Raises RecipeError."""
    try:
        text = path.read_text(encoding="utf-8")
        content = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        reason = brief(one_line(error))
        raise RecipeError(f"{path}: expected a readable .toml or .json recipe ({reason})") from None
    if not isinstance(content, dict):
        raise RecipeError(f"{path}: expected a table of sections, got {type(content).__name__}")
    if path.suffix == ".toml":
        return {key: _with_nulls(value) if isinstance(value, dict) else value for key, value in content.items()}
    return content


def _with_nulls(section: dict[str, Any]) -> dict[str, Any]:
    return {key: None if value == "null" else value for key, value in section.items()}
