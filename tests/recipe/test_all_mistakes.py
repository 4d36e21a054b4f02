"""Every mistake of a command is told at once, a line each, and rules over sections only where these are right."""

import subprocess
import sys
from pathlib import Path

import pytest

from deit_fast.recipe import get_recipe, parse_recipe
from deit_fast.recipe.rules import RULES, broken_rules
from deit_fast.recipe.sections import Distill, Loss, Model
from deit_fast.runtime.errors import RecipeError

WORDS = ["lr=1", "bar.x=1", "optim.lr=-1", "optim.zz=1", "optim.momentum=0.8", "run.global_batch=a", "run.seed=-1",
         "loss.smoothing=0.1", "loss.cosub=true", "augment.scale=1,0.5", "augment.ratio=3,2",
         "model.drop_path=0"]  # fmt: skip
STARTS = [  # of the lines, in order: the words', the sections' in the recipe's order, the rules over sections
    "'lr=1': expected section.key=value",
    "bar: no such section; expected one of model, data, ",
    "augment.scale=[1.0, 0.5]: expected low <= high",
    "augment.ratio=[3.0, 2.0]: expected low <= high",
    "loss.smoothing=0.1: expected 0 with loss.name='bce'",
    "optim.zz: no such key; expected one of ",
    "optim.momentum=0.8: no such key with optim.name='lamb'",
    "optim.lr=-1: expected greater than 0",
    "run.global_batch='a': expected integer",
    "run.seed=-1: expected greater than or equal to 0",
]


def lines_of(*words: str) -> list[str]:
    with pytest.raises(RecipeError) as error:
        get_recipe("deit3_base_1k_192", words)
    return str(error.value).split("\n")


def test_all_mistakes_are_told() -> None:
    lines = lines_of(*WORDS)
    assert len(lines) == len(STARTS), lines
    for line, start in zip(lines, STARTS, strict=True):
        assert line.startswith(start)


def test_all_broken_rules_are_told() -> None:
    assert lines_of("run.accumulation=3", "run.compute_copy=true", "optim.name=sgd", "schedule.min_lr=1",
                    "schedule.warmup_lr=1") == [
        "schedule.min_lr=1: expected at most optim.lr=0.003",
        "schedule.warmup_lr=1: expected at most optim.lr=0.003",
        "run.compute_copy=true: expected run.accumulation=1, got 3",
        "run.compute_copy=true: expected optim.name='lamb', got 'sgd'",
        "run.accumulation=3: expected a divisor of run.global_batch=2048",
    ]  # fmt: skip


def test_a_rule_is_held_where_its_sections_are_right() -> None:
    """A bad rate hides the rule about the rate, and not the one about the batch."""
    assert lines_of("optim.lr=-1", "schedule.min_lr=1", "run.accumulation=3") == [
        "optim.lr=-1: expected greater than 0",
        "run.accumulation=3: expected a divisor of run.global_batch=2048",
    ]


def test_a_value_with_two_mistakes_is_one_line() -> None:
    assert lines_of("optim.betas=2,3") == ["optim.betas.0=2: expected less than 1"]
    assert lines_of("augment.interpolation=x") == ["augment.interpolation='x': expected 'bicubic', 'bilinear' or "
                                                   "'random'"]  # fmt: skip


def test_a_files_lines_all_name_it(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('optm = 3\ndescription = 3\nmix = 4\n[optim]\nlr = 2020-01-01\n[schedule]\nepochs = "x"\n')
    with pytest.raises(RecipeError) as error:
        get_recipe(str(path))
    lines = [line.removeprefix(f"{path}: ") for line in str(error.value).split("\n")]
    for line, start in zip(lines, [
        "optm: no such key; expected one of name, ", "description=3: expected a text",
        "model: missing, and it has no default", "mix=4: expected a table of keys and values",
        "optim.lr='2020-01-01': expected number", "schedule.epochs='x': expected number",
        "run: missing, and it has no default",
    ], strict=True):  # fmt: skip
        assert line.startswith(start)


def test_a_file_and_words_are_told_together(tmp_path: Path) -> None:
    """A word's line does not name the file, and a word may give what the file lacks, or mend it."""
    path = tmp_path / "mine.toml"
    path.write_text("[model]\nname = 'deit3_nano_patch4'\nimage_size = 24\n[optim]\nlr = -1\n[mix]\nprob = 3\n")
    with pytest.raises(RecipeError) as error:
        get_recipe(str(path), ["optim.momentum=0.8", "schedule.epochs=x", "foo"])
    assert [line.split(": expected")[0].split("; expected")[0] for line in str(error.value).split("\n")] == [
        "'foo'", f"{path}: mix.prob=3", "optim.momentum=0.8: no such key with optim.name='lamb'",
        f"{path}: optim.lr=-1", "schedule.epochs='x'", f"{path}: run: missing, and it has no default",
    ]  # fmt: skip
    words = ["mix.prob=1", "optim.lr=1e-3", "run.global_batch=32"]
    assert get_recipe(str(path), words).run.global_batch == 32


def test_the_command_line_has_a_prefix_on_each() -> None:
    command = [sys.executable, "-m", "deit_fast.cli", "show", "demo_pretrain", "optim.lr=x", "run.seed=y"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "deit-fast: optim.lr='x': expected number", "deit-fast: run.seed='y': expected integer",
    ]  # fmt: skip
    assert not done.stdout


def test_rules_read_their_parameters_only() -> None:
    """Sections that are not given leave out the rules about them, and no others."""
    model = Model(name="deit_base_patch16", image_size=224)
    cosub = {"loss": Loss(cosub=True), "model": model}
    assert [line.split(":")[0] for line in broken_rules(cosub)] == ["loss.cosub=true"]
    assert len(list(broken_rules({**cosub, "distill": Distill(kind="hard")}))) == 3
    assert list(broken_rules({"loss": Loss(cosub=True)})) == []
    assert len({rule.__name__ for rule in RULES}) == len(RULES)


def test_half_a_character_is_refused() -> None:
    (line,) = lines_of('optim.trainable="\\ud800"')
    assert line.startswith("optim: expected values that JSON can hold (Invalid JSON: ")


def test_names_are_texts() -> None:
    content = get_recipe("demo_pretrain").model_dump(mode="json")
    with pytest.raises(RecipeError, match="name=None: expected a text"):
        parse_recipe({**content, "name": None})
