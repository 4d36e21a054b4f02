"""The fenced blocks of a page, and the commands of a console block as a shell would take them apart."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT

_FENCE = re.compile(r"^(?P<indent> *)```(?P<kind>\w*)(?P<rest>[^\n`]*)\n(?P<text>.*?)^(?P=indent)```$", re.M | re.S)
_TITLE = re.compile(r'title="([^"]+)"')
_HEREDOC = re.compile(r"<<-?\s*['\"]?(\w+)['\"]?")
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")
_STDERR = re.compile(r"\s2>\s*(&1|\S+)")
_SEPARATORS = {"&&", "||", ";", "|", "&"}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    """Of its first line of text, counted from 1."""
    kind: str
    """What follows the fence: console, python, toml, text, ..."""
    title: str | None
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Command:
    """A command of a console block, which may be several that && or | join."""

    place: str
    text: str
    """As it is typed, without the prompt and without a here-document's lines."""
    shown: tuple[str, ...]
    """The lines that the page shows as its output."""


@dataclass(frozen=True)
class Program:
    """One program of a command: its words, as the shell hands them over."""

    words: tuple[str, ...]
    assignments: tuple[str, ...] = ()
    """NAME=VALUE words before the program."""
    stdout: str | None = None
    """The file behind >."""


def pages() -> list[str]:
    """All pages whose blocks are run, as paths from the root of the repository. The first shows what there is."""
    docs = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))
    return ["README.md", "CONTRIBUTING.md", *docs]


def blocks_of(page: str, root: Path = ROOT) -> list[Block]:
    text, found = (root / page).read_text(encoding="utf-8"), []
    for match in _FENCE.finditer(text):
        title = _TITLE.search(match["rest"])
        indent = len(match["indent"])
        lines = "".join(line[indent:] if line.strip() else line for line in match["text"].splitlines(keepends=True))
        line = text.count("\n", 0, match.start("text")) + 1
        found.append(Block(page, line, match["kind"], title and title[1], lines))
    return found


def commands_of(block: Block) -> Iterator[Command]:
    """The commands of a console block: lines after `$ `, with the lines that they go on in."""
    lines = block.text.splitlines()
    index = 0
    while index < len(lines):
        start = index
        if not lines[index].startswith("$ "):
            assert start, f"{block.place}: expected a console block to begin with '$ ', found {lines[index]!r}"
            index += 1
            continue
        text = lines[index][2:]
        index += 1
        while index < len(lines) and (text.endswith("\\") or not _is_whole(text)):
            text = (text[:-1] if text.endswith("\\") else text + "\n") + lines[index].removeprefix("> ").lstrip(" ")
            index += 1
        if (heredoc := _HEREDOC.search(text)) is not None:
            end = lines.index(heredoc[1], index)
            index = end + 1
        shown = index
        while index < len(lines) and not lines[index].startswith("$ "):
            index += 1
        yield Command(f"{block.page}:{block.line + start}", text, tuple(lines[shown:index]))


def programs_of(text: str, variables: dict[str, str]) -> list[Program]:
    """The programs of a command. `variables` replace $NAME. Assignments alone, and export, set them."""
    text = _STDERR.sub("", re.sub(r"\$\{?(\w+)\}?", lambda name: variables.get(name[1], name[0]), text))
    lexer = shlex.shlex(text, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    words, found = [], []
    for token in [*lexer, ";"]:
        if token not in _SEPARATORS:
            words.append(token)
        elif words:
            program = _program(words)
            if not program.words:
                variables.update(word.split("=", 1) for word in program.assignments)
            elif program.words[0] == "export":
                variables.update(word.split("=", 1) for word in program.words[1:] if "=" in word)
            else:
                found.append(program)
            words = []
    return found


def _program(tokens: list[str]) -> Program:
    words, assignments, stdout = list[str](), list[str](), None
    tokens = list(tokens)
    while tokens:
        token = tokens.pop(0)
        if token in (">", ">>"):
            stdout = tokens.pop(0)
        elif token in ("<", "<<"):
            tokens.pop(0)
        elif not words and _ASSIGNMENT.match(token):
            assignments.append(token)
        else:
            words.append(token)
    return Program(tuple(words), tuple(assignments), stdout)


def _is_whole(text: str) -> bool:
    try:
        shlex.split(text, comments=True)
    except ValueError:  # no closing quotation
        return False
    return True
