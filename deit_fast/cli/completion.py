"""`deit-fast completion SHELL`: argcomplete completes commands, options, recipes and keys."""

import argparse
from collections.abc import Iterable
from typing import Any, Literal, get_args, get_origin

from deit_fast.cli.arguments import Parser
from deit_fast.recipe.parse import all_fields
from deit_fast.recipe.schema import SECTIONS
from deit_fast.recipe.table import list_recipes
from deit_fast.runtime.stdout import tell
from deit_fast.zoo import list_models

SHELLS = ("bash", "zsh", "fish")


def add_completion_parser(subcommands: "argparse._SubParsersAction[Parser]") -> None:
    """Adds the command `completion`."""
    completion = subcommands.add_parser(
        "completion",
        help="print what makes a shell complete commands, options, recipes and keys",
        epilog='Example: eval "$(deit-fast completion bash)" in ~/.bashrc',
    )
    completion.add_argument("shell", choices=SHELLS)
    completion.set_defaults(run=run_completion)


def run_completion(arguments: argparse.Namespace) -> int:
    """Prints the shell's code; returns 0."""
    import argcomplete

    tell(argcomplete.shellcode(["deit-fast"], shell=arguments.shell))
    return 0


def complete(parser: argparse.ArgumentParser) -> None:
    """Answers a shell's request for completions (environment variable _ARGCOMPLETE) and ends the process."""
    import argcomplete

    for action in actions_of(parser):
        completer = {"recipe": complete_recipe, "overrides": complete_word, "pattern": complete_model}.get(action.dest)
        if completer is not None:
            action.completer = completer  # type: ignore[attr-defined]
    argcomplete.autocomplete(parser, always_complete_options="long")


def complete_recipe(prefix: str, **_: Any) -> Iterable[str]:
    """Names of the recipe table, and paths of recipe files."""
    from argcomplete.completers import FilesCompleter

    return [*list_recipes(), *FilesCompleter(("toml", "json"))(prefix)]


def complete_model(prefix: str, **_: Any) -> Iterable[str]:
    """Names of the zoo's entries."""
    return list_models()


def complete_word(prefix: str, **_: Any) -> list[str]:
    """`section.key=` for every key of a recipe; after the equals sign, the values of a key with choices."""
    path, equals, _value = prefix.partition("=")
    section, _dot, key = path.partition(".")
    if not equals:
        return [f"{name}.{each}=" for name, base in SECTIONS.items() for each in all_fields(base)]
    if section not in SECTIONS or (field := all_fields(SECTIONS[section]).get(key)) is None:
        return []
    kinds = list(SECTIONS[section].kinds()) if key == "name" else []
    return [f"{path}={choice}" for choice in kinds or _choices(field.annotation)]


def _choices(annotation: Any) -> list[str]:
    if annotation is bool:
        return ["true", "false"]
    if get_origin(annotation) is Literal:
        return [str(each) for each in get_args(annotation)]
    return [choice for each in get_args(annotation) for choice in _choices(each)]


def actions_of(parser: argparse.ArgumentParser) -> Iterable[argparse.Action]:
    """The arguments of a parser and of all its commands."""
    for action in parser._actions:  # argparse has no public list of them, and argcomplete reads this one too
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for each in dict.fromkeys(action.choices.values()):
                yield from actions_of(each)
