"""The pages docs/coming-from/: every option of the references has its row, and every word of ours in a row exists.

The options of the references are in reference_options.py, taken from their parsers and not from the pages.
"""

import argparse
import inspect
import re
from collections import Counter
from collections.abc import Iterable
from functools import cache
from typing import NamedTuple

import pytest
from deit_fast.components import deit
from torchx.schedulers import get_scheduler_factories

from deit_fast.cli.main import build_parser
from deit_fast.cli.other_tools import EVALUATE
from deit_fast.recipe.other_names import meant_by
from deit_fast.recipe.parse import all_fields
from deit_fast.recipe.schema import SECTIONS
from deit_fast.recipe.table import get_recipe
from deit_fast.runtime.errors import RecipeError
from tests.conftest import ROOT
from tests.docs import reference_options

FOLDER = ROOT / "docs" / "coming-from"
PAGES = sorted(path.stem for path in FOLDER.glob("*.md"))
# Where a page has the options of a parser: sections whose titles begin so.
PARTS = {"deit3-jax: converters": "The converters", "mmpretrain: configs": "Config:"}
# Recipes of which one at least takes any word of the pages: RandAugment and AdamW, 3-Augment and LAMB, a teacher.
BASES = ("deit_base_1k_224", "deit3_base_1k_192", "deit_base_distilled_1k_224", "deit_base_distilled_1k_224_soft",
         "deit_base_cifar_224_ft")  # fmt: skip
TRAINERS = ("train.py", "main.py", "tools/train.py")
RECIPE_WORD = re.compile(r"([a-z]+)\.([a-z_]+)(?:=(.+))?")
PLACEHOLDER = re.compile(r"[A-Z][A-Z,]*")


class Row(NamedTuple):
    section: str
    theirs: list[str]
    ours: list[str]
    note: str


def spans(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


@cache
def rows(page: str) -> list[Row]:
    """The rows of the tables `| theirs | here | note |` of a page."""
    found, section, is_table = [], "", False
    for line in (FOLDER / f"{page}.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            section = line[3:]
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            is_table = False
        elif cells[1:] == ["here", "note"]:
            is_table = True
        elif is_table and not set(line) <= set("|-"):
            found.append(Row(section, spans(cells[0]), spans(cells[1]), cells[2]))
    return found


@cache
def commands() -> dict[str, argparse.ArgumentParser]:
    """The parsers of the commands, of `data check` as well."""
    found: dict[str, argparse.ArgumentParser] = {}

    def collect(parser: argparse.ArgumentParser, name: str) -> None:
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for word, each in action.choices.items():
                    found[f"{name} {word}".strip()] = each
                    collect(each, f"{name} {word}".strip())

    collect(build_parser(), "")
    return found


def check_options(command: str, words: Iterable[str]) -> None:
    known = {option for action in commands()[command]._actions for option in action.option_strings}
    for word in words:
        assert not word.startswith("-") or word in known, f"deit-fast {command} {word}: no such option"


def check_torchx(words: list[str]) -> None:
    """Options of `torchx run`, of its scheduler slurm, and arguments of our components."""
    arguments = set(inspect.signature(deit.pretrain).parameters)
    for option, value in zip(words[::2], words[1::2], strict=True):
        if option == "-s":
            assert value in get_scheduler_factories(), value
        elif option == "-cfg":
            slurm = get_scheduler_factories()["slurm"]("docs").run_opts()
            assert slurm.get(value.partition("=")[0]) is not None, value
        else:
            assert option.lstrip("-") in arguments, option


def check_keys(text: str) -> None:
    """Each `section.key` in the text is a recipe's, of whichever optimizer."""
    for span in spans(text):
        for word in span.split():
            match = RECIPE_WORD.fullmatch(word)
            if match and match[1] in SECTIONS:
                base = get_recipe(BASES[0])
                kind = type(getattr(base, match[1]))
                fields = all_fields(kind.__mro__[1] if match[1] == "optim" else kind)
                assert match[2] in fields, f"{word}: no such key"


def check_values(words: list[str]) -> None:
    """Some recipe takes the words, together or each by itself."""
    given = [word for word in words if "=" in word and not PLACEHOLDER.fullmatch(word.partition("=")[2])]
    if given and not takes(given):
        for word in given:
            assert takes([word]), f"{word}: no recipe takes this"


def takes(words: list[str]) -> bool:
    for base in BASES:
        try:
            get_recipe(base, words)
        except RecipeError:
            continue
        return True
    return False


def check_row(ours: list[str]) -> None:
    recipe_words = []
    for span in ours:
        words = span.split()
        if words[0] == "deit-fast":
            name = " ".join(words[1:3]) if " ".join(words[1:3]) in commands() else words[1]
            check_options(name, words[1 + len(name.split()) :])
        elif words[:2] == ["torchx", "run"]:
            check_torchx(words[2:])
        elif words[0].startswith("--"):
            check_options("train", words[:1])
        elif RECIPE_WORD.fullmatch(span) and span.partition(".")[0] in SECTIONS:
            recipe_words.append(span)
        else:
            assert re.fullmatch(r"[A-Z]+_[A-Z]+", span), f"{span}: neither a word, an option nor a variable"
    check_keys(" ".join(f"`{word}`" for word in recipe_words))
    check_values(recipe_words)


@pytest.mark.parametrize("part", reference_options.OPTIONS)
def test_every_option_of_the_reference_has_one_row(part: str) -> None:
    page, _, parser = part.partition(": ")
    title = PARTS.get(part, parser)
    listed = Counter(name for row in rows(page) if row.section.startswith(title) for name in row.theirs)
    assert listed == Counter(reference_options.OPTIONS[part].split())


@pytest.mark.parametrize("page", PAGES)
def test_every_word_of_ours_exists(page: str) -> None:
    for row in rows(page):
        assert row.ours or row.note or "mode" in row.theirs[0], row
        check_row(row.ours)
        if not row.ours:
            assert re.match(r"not there|as for", row.note), f"{row.theirs}: {row.note}"


@pytest.mark.parametrize("page", PAGES)
def test_every_key_and_recipe_in_the_text_exists(page: str) -> None:
    text = re.sub(r"^```.*?^```", "", (FOLDER / f"{page}.md").read_text(encoding="utf-8"), flags=re.M | re.S)
    notes = " ".join(row.note for row in rows(page))
    outside = "\n".join(line for line in text.splitlines() if not line.startswith("|"))
    check_keys(notes + outside)
    recipes = [name for line in text.splitlines() if line.startswith("|") for name in spans(line)
               if re.fullmatch(r"(jax_|mmpretrain_)?deit3?_[a-z]+_[a-z0-9_]*1k[a-z0-9_]*", name)]  # fmt: skip
    for name in recipes:
        get_recipe(name)
    assert recipes or page == "timm"


@pytest.mark.parametrize("page", PAGES)
def test_the_pages_say_what_the_error_messages_say(page: str) -> None:
    """`deit-fast train --lr 1` names optim.lr, and so do the rows of --lr."""
    for row in rows(page):
        for name in row.theirs:
            if name in EVALUATE:
                assert row.ours[0] == "deit-fast evaluate"
            elif row.section.partition(":")[0] in TRAINERS and (meant := meant_by(name)):
                key = meant.partition("=")[0]
                assert any(word.partition("=")[0].partition(" ")[0] == key for word in row.ours), f"{name}: {row.ours}"


@pytest.mark.parametrize("ours", [
    ["optim.learning_rate=1"], ["optim.name=adam"], ["deit-fast evaluate --lr"], ["--lr"], ["torchx run -q 3"],
    ["torchx run -cfg gpus=3"], ["torchx run -s sge"], ["lr=3"], ["augment.policy=rand_augment", "augment.rand_n=2"],
])  # fmt: skip
def test_words_that_do_not_exist_are_found(ours: list[str]) -> None:
    with pytest.raises(AssertionError):
        check_row(ours)
