"""Refuses options that are words of the recipe here, and other trainers' names of an option."""

import argparse
from collections.abc import Sequence

from deit_fast.cli.completion import actions_of
from deit_fast.recipe.other_names import hint, meant_by
from deit_fast.runtime.errors import RecipeError

EVALUATE = {"--eval", "--eval-only"}
"""Other trainers' names for `deit-fast evaluate`."""


def refuse_options_of_others(words: Sequence[str], parser: argparse.ArgumentParser) -> None:
    """Raises RecipeError with a line for each option among a command's words that no command has, but others' tools."""
    ours = {option for action in actions_of(parser) for option in action.option_strings}
    unknown = [word for word in words if word.startswith("--") and word.partition("=")[0] not in ours]
    lines = [f"{word}: no such option{meant}" for word in unknown if (meant := option_hint(word))]
    if lines:
        raise RecipeError("\n".join(lines))


def option_hint(option: str) -> str:
    """` (did you mean the word optim.lr=1?)` for --lr=1, or as in `other_names.hint`; "" for an unknown name."""
    name, equals, value = option.partition("=")
    if name.replace("_", "-") in EVALUATE:
        return " (did you mean deit-fast evaluate?)"
    meant = meant_by(name)
    if not meant or meant.startswith("--"):
        return hint(name)
    shown = meant if "=" in meant else f"{meant}={value if equals else 'VALUE'}"
    return f" (did you mean the word {shown}?)"
