"""What can be said of a command, a recipe or a name without running anything."""

import importlib
import re
import tomllib
from collections.abc import Sequence
from configparser import ConfigParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import deit_fast
from deit_fast.cli.main import build_parser
from deit_fast.cli.other_tools import refuse_options_of_others
from deit_fast.recipe import get_recipe
from tests.conftest import ROOT


def outputs(words: Sequence[str]) -> set[str]:
    """The places that a command writes to: behind --out and the like, or the last of two paths."""
    named = ("--out", "--manifests", "--report", "--csv", "--json")
    found = {word for before, word in pairwise(words) if before in named and not word.startswith("-")}
    found |= {word for word in words if word.startswith("--out=")}
    given = [word for word in words if not word.startswith("-") and "=" not in word]
    if words[0] == "convert":
        found.add(given[2])
    elif list(words[:2]) == ["data", "shard"]:
        found.add(given[3])
    return found


def check_command(words: Sequence[str]) -> None:
    """Reads a command's words as deit-fast does, and makes its recipe. Ends with SystemExit, or raises RecipeError."""
    parser = build_parser()
    refuse_options_of_others(words, parser)
    arguments, rest = parser.parse_known_args(list(words))
    unknown = [word for word in rest if word.startswith("-") or not hasattr(arguments, "overrides")]
    assert not unknown, f"{' '.join(words)}: no such option: {unknown}"
    overrides = [*getattr(arguments, "overrides", []), *rest]
    if getattr(arguments, "recipe", None) is not None:
        recipe = get_recipe(arguments.recipe, overrides)
        if arguments.command == "train":
            recipe.check_teacher(arguments.teacher)
    elif overrides:  # over the recipe of a checkpoint
        get_recipe("deit3_base_1k_224", overrides)


def launched(words: Sequence[str]) -> list[str]:
    """What torchrun starts; its own options are parsed by itself."""
    from torch.distributed.run import get_args_parser

    arguments = get_args_parser().parse_args(list(words))
    assert arguments.module, f"torchrun {' '.join(words)}: expected -m MODULE"
    return ["python", "-m", arguments.training_script, *arguments.training_script_args]


def check_extras(words: str) -> None:
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    for extras in re.findall(r"\[([\w,-]+)\]", words):
        for extra in extras.split(","):
            assert extra in config["options.extras_require"], f"pip install {words}: no extra {extra!r}"


def check_recipe(place: str, text: str, path: Path) -> None:
    """A TOML block is a recipe file, whole or with a base."""
    content = tomllib.loads(text)
    path.write_text(text if "base" in content else f'base = "demo_pretrain"\n{text}', encoding="utf-8")
    get_recipe(str(path))
    path.write_text(text, encoding="utf-8")


def check_name(names: Sequence[str], place: str) -> None:
    """Raises AssertionError where deit_fast has no such module or name."""
    found: Any = deit_fast
    for depth, name in enumerate(names):
        if not hasattr(found, name):
            try:
                found = importlib.import_module(".".join(["deit_fast", *names[: depth + 1]]))
                continue
            except ImportError:
                raise AssertionError(f"{place}: deit_fast has no {'.'.join(names)}") from None
        found = getattr(found, name)
