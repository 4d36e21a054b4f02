"""Every message of an error that a user can meet, as the code writes it, with `…` for what differs each time.

A message is the text that is given to an error class of the product (or to what raises one), and any other text of the
product with the words of an error (`_SAYS`), because texts are put together: a rule yields a line and parse_recipe
raises it.
Python's own exceptions are not among them: they are for who calls or extends the library, and their text is told by an
error of the product.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

from tests.conftest import ROOT

PRODUCT = ("deit_fast", "components", "pipelines")
HOLE = "…"
_RAISES = {"complain", "refuse", "_refuse", "_changed", "ArgumentTypeError"}
_PYTHONS = {"AttributeError", "EOFError", "ImportError", "IndexError", "KeyError", "MemoryError", "NotImplementedError",
            "OSError", "RuntimeError", "TypeError", "UnicodeError", "UnpicklingError", "ValueError"}  # fmt: skip
_SAYS = ("expected ", "not finite", "no sign of life", "out of memory", "did not meet", "cannot be ")
_LEAST = 8  # letters without which a text is only what others' texts are put into


class Message(NamedTuple):
    place: str
    """file:line"""
    text: str
    """With a HOLE for each value."""


@cache
def messages() -> tuple[Message, ...]:
    """In the order of the files."""
    found = []
    for folder in PRODUCT:
        for path in sorted((ROOT / folder).rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            for node, texts in _told(tree):
                for text in texts:
                    text = re.sub(f"({HOLE})+", HOLE, " ".join(text.split()))
                    if sum(map(str.isalpha, text)) >= _LEAST and " " in text:
                        found.append(Message(f"{path.relative_to(ROOT)}:{node.lineno}", text))
    return tuple(found)


def _told(tree: ast.AST) -> Iterator[tuple[ast.expr, list[str]]]:
    inside: set[ast.AST] = set()
    skipped = _python_errors(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _raises(node) and node.args:
            inside.update(ast.walk(node.args[0]))
            yield node, _texts(node.args[0])
    for node in ast.walk(tree):
        if node in inside or node in skipped:
            continue
        if isinstance(node, ast.JoinedStr | ast.Constant | ast.BinOp):
            texts = _texts(node)
            inside.update(ast.walk(node))
            if any(word in text for text in texts for word in _SAYS):
                yield node, texts


def _raises(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    return name in _RAISES or (name.endswith(("Error", "UnknownPixels")) and name not in _PYTHONS)


def _python_errors(tree: ast.AST) -> set[ast.AST]:
    """Docstrings, what Python's own exceptions are given, and what argparse shows as help."""
    found: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            found.add(node.value)
        elif isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in _PYTHONS:
                found.update(ast.walk(node))
        elif isinstance(node, ast.keyword) and node.arg in ("help", "description", "epilog"):
            found.update(ast.walk(node.value))
    return found


def _texts(node: ast.expr) -> list[str]:
    """The texts that an expression may be: several where it chooses."""
    match node:
        case ast.Constant(value=str(text)):
            return [text]
        case ast.JoinedStr(values=values):
            return ["".join("".join(_texts(each)) if isinstance(each, ast.Constant) else HOLE for each in values)]
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return [before + after for before in _texts(left) for after in _texts(right)]
        case ast.IfExp(body=body, orelse=orelse):
            return [*_texts(body), *_texts(orelse)]
    return [HOLE]
