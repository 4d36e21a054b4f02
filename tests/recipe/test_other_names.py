"""Other trainers' names of settings are found in words, in recipe files and as options, by one table."""

import argparse
import inspect
from collections import Counter
from pathlib import Path

import pytest
from deit_fast.components import deit
from deit_fast.components.manifest import _build_parser as manifest_parser

from deit_fast.cli import completion
from deit_fast.cli.main import build_parser
from deit_fast.cli.other_tools import refuse_options_of_others
from deit_fast.recipe import get_recipe, other_names
from deit_fast.recipe.other_names import ABSENT, NAMES, hint, meant_by
from deit_fast.recipe.parse import all_fields
from deit_fast.recipe.schema import SECTIONS
from deit_fast.runtime.errors import RecipeError


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    return {option for action in completion.actions_of(parser) for option in action.option_strings}


def refusal(words: list[str], recipe: str = "demo_pretrain") -> str:
    with pytest.raises(RecipeError) as error:
        get_recipe(recipe, words)
    return str(error.value)


@pytest.mark.parametrize("meant", NAMES)
def test_every_meaning_exists(meant: str) -> None:
    if meant.startswith("--"):
        assert meant in options_of(build_parser())
    else:
        section, _, key = meant.partition("=")[0].partition(".")
        assert key in all_fields(SECTIONS[section])


def test_no_name_stands_twice_or_for_nothing_new() -> None:
    """A key of exactly one section is found by its own name, except where timm's `--interpolation` means another."""
    names = [other_names._plain(name) for text in (*NAMES.values(), *ABSENT.values()) for name in text.split()]
    assert [name for name, count in Counter(names).items() if count > 1] == []
    owners = Counter(key for base in SECTIONS.values() for key in all_fields(base))
    single = {f"{section}.{key}" for section, base in SECTIONS.items() for key in all_fields(base) if owners[key] == 1}
    others = {key: meant for key in single if (meant := meant_by(key.partition(".")[2])) != key}
    assert others == {"augment.interpolation": "data.eval_interpolation"}
    assert {key for key, count in owners.items() if count > 1 and meant_by(key)} == set()
    own = {other_names._plain(key.partition(".")[2]) for key in single}
    assert own & set(names) == {"interpolation"}


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("optim.learning_rate=1", "optim.lr"), ("optim.lrate=1", "optim.lr"), ("lr=1", "optim.lr"),
        ("optim.weightdecay=1", "optim.weight_decay"), ("run.batch_size=8", "run.global_batch"),
        ("schedule.num_epochs=3", "schedule.epochs"), ("optim.epochs=3", "schedule.epochs"),
        ("model.drop_path_rate=0", "model.drop_path"), ("augment.mixup=1", "mix.mixup"),
        ("train.batch_size=8", "run.global_batch"), ("cfg.optim.lr=1", "optim.lr"), ("run.output_dir=x", "--out"),
        ("loss.bce=1", "loss.name=bce"), ("run.gradient_acumulation_steps=3", "run.accumulation"),
    ],
)  # fmt: skip
def test_a_word(word: str, meant: str) -> None:
    line = refusal([word])
    assert line.endswith(f" (did you mean {meant!r}?)")
    assert "\n" not in line


def test_a_setting_that_does_not_exist() -> None:
    assert refusal(["run.num_workers=8"]).endswith("(there is no such setting: a process uses its share of the cores)")


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("base = 'demo_pretrain'\nepochs = 3\n[optimizer]\ntype = 'x'\nlr = 3\n[run]\nbatchsize = 3\n")
    lines = refusal([], str(path)).split("\n")
    assert [(line.split(": ")[1], line.rpartition(" (")[2]) for line in lines] == [
        ("epochs", "did you mean 'schedule.epochs'?)"), ("optimizer", "did you mean 'optim.lr'?)"),
        ("run.batchsize", "did you mean 'run.global_batch'?)"),
    ]  # fmt: skip


def test_our_own_options_are_not_refused() -> None:
    """Those of all commands, of the components and of `deit-fast manifest`, which pass through the same command."""
    parser = build_parser()
    ours = options_of(parser) | set(options_of(manifest_parser("pretrain")))
    ours |= {f"--{name}" for each in (deit.pretrain, deit.finetune, deit.evaluate)
             for name in inspect.signature(each).parameters}  # fmt: skip
    refuse_options_of_others(sorted(ours), parser)
    with pytest.raises(RecipeError, match="did you mean"):
        refuse_options_of_others(["--learning_rate"], parser)


def test_an_unknown_name_has_no_hint() -> None:
    assert hint("zzz") == "" == meant_by("name")
