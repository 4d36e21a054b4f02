"""The errors a user can cause. Each message is one line: the key or file, its value, what was expected.

A RecipeError has a line for each mistake.
"""

import difflib
from collections.abc import Iterable


class RecipeError(ValueError):
    """A recipe that cannot be used: a line for each thing that is wrong with it."""


class DataError(ValueError):
    """Data that cannot be read."""


class RunError(RuntimeError):
    """A machine, checkpoint or folder that cannot do what was asked."""


class StoppedError(RuntimeError):
    """A run that stopped on a signal with work left; started again, it goes on."""


def suggest(word: str, choices: Iterable[str]) -> str:
    """` (did you mean 'lr'?)`, or nothing where no choice is close."""
    close = difflib.get_close_matches(word, list(choices), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def one_line(text: object) -> str:
    """The text with its white space, line breaks among it, as single spaces."""
    return " ".join(str(text).split())


def printable(name: str) -> str:
    """A file's name as one line of text: control characters, and bytes that are not UTF-8, as backslash escapes."""
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def brief(text: str, limit: int = 200) -> str:
    """The first `limit` characters of a user's text, as part of one line; unprintable ones as backslash escapes."""
    shown = "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text[:limit])
    return shown if len(text) <= limit else f"{shown}..."
