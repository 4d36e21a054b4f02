"""optim.lr=auto: the recipe's rate for another batch, wherever words or files are put over a recipe."""

import json
import math
from pathlib import Path

import pytest

from deit_fast.cli.main import main
from deit_fast.recipe.table import RECIPES, get_recipe
from deit_fast.runtime.errors import RecipeError


@pytest.mark.parametrize(
    ("name", "batch", "share"),
    [
        ("deit3_base_1k_192", 512, math.sqrt(512 / 2048)),  # LAMB
        ("deit3_base_1k_192", 6144, math.sqrt(3)),
        ("deit_base_1k_224", 256, 256 / 1024),  # AdamW, as facebookresearch/deit scales it
        ("deit3_base_1k_192", 2048, 1.0),
    ],
)
def test_the_rate_follows_the_batch(name: str, batch: int, share: float) -> None:
    rate = RECIPES[name].optim.lr
    words = [f"run.global_batch={batch}", "optim.lr=auto"]
    found = get_recipe(name, words)
    assert found.optim.lr == pytest.approx(rate * share, rel=1e-5)
    assert found == get_recipe(name, words[::-1])
    assert found.describe_batch(RECIPES[name]) == ""
    unasked = get_recipe(name, words[:1])
    assert unasked.optim.lr == rate
    line = unasked.describe_batch(RECIPES[name])
    assert (f"optim.lr=auto makes it {found.optim.lr:g}" in line) == (share != 1)


def test_over_a_base_and_over_a_file(tmp_path: Path) -> None:
    derived = tmp_path / "mine.toml"
    derived.write_text('base = "deit3_base_1k_192"\n[run]\nglobal_batch = 512\n[optim]\nlr = "auto"\n')
    assert get_recipe(str(derived)).optim.lr == 0.0015
    assert get_recipe(str(derived), ["run.global_batch=128", "optim.lr=auto"]).optim.lr == 0.00075
    above = tmp_path / "above.toml"
    above.write_text('base = "mine.toml"\n[run]\nglobal_batch = 32\n[optim]\nlr = "auto"\n')
    assert get_recipe(str(above)).optim.lr == 0.000375
    whole = tmp_path / "whole.json"
    whole.write_text(json.dumps(RECIPES["deit3_base_1k_192"].model_dump(mode="json")))
    assert get_recipe(str(whole), ["run.global_batch=512", "optim.lr=auto"]).optim.lr == 0.0015


@pytest.mark.parametrize(
    ("words", "lines"),
    [
        (["optim.name=adamw"], ["optim.lr='auto': expected a number, because the recipe's is for optim.name='lamb'"]),
        (["run.global_batch=x"], ["run.global_batch='x': expected integer"]),
        (["run.global_batch=-2"], ["run.global_batch=-2: expected greater than or equal to 1"]),
        (["optim.name=adamw", "run.seed=x"], ["optim.lr='auto': expected a number, because the recipe's is for "
         "optim.name='lamb'", "run.seed='x': expected integer"]),
    ],
)  # fmt: skip
def test_what_cannot_be_scaled(words: list[str], lines: list[str]) -> None:
    with pytest.raises(RecipeError) as error:
        get_recipe("deit3_base_1k_192", ["optim.lr=auto", *words])
    assert str(error.value).splitlines() == lines


def test_a_whole_file_has_nothing_to_scale(tmp_path: Path) -> None:
    content = RECIPES["deit3_base_1k_192"].model_dump(mode="json")
    content["optim"]["lr"] = "auto"
    path = tmp_path / "whole.json"
    path.write_text(json.dumps(content))
    with pytest.raises(RecipeError) as error:
        get_recipe(str(path))
    assert "optim.lr='auto': expected a number, or words over a recipe that has one" in str(error.value)


def test_show_says_what_a_batch_does(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "deit3_base_1k_192", "run.global_batch=512"]) == 0
    assert "optim.lr=auto makes it 0.0015" in " ".join(capsys.readouterr().out.split())
    assert main(["show", "deit3_base_1k_192", "run.global_batch=512", "optim.lr=auto"]) == 0
    text = capsys.readouterr().out
    assert "optim.lr=0.0015" in text
    assert "run.accumulation=auto" in text


def test_a_file_of_ones_own_has_the_rate_of_its_own_batch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = tmp_path / "own.toml"
    own.write_text('base = "demo_pretrain"\nname = "mine"\n[optim]\nlr = 4e-3\n[run]\nglobal_batch = 64\n')
    line = "run.global_batch=16: the recipe's is 64, and optim.lr=0.004 is for that; optim.lr=auto makes it 0.002"
    for command in (["show", str(own)], ["plan", str(own), "--gpus", "1xa100"]):
        assert main([*command, "run.global_batch=16"]) == 0
        assert line in " ".join("".join(capsys.readouterr()).split())
        assert main(command) == 0
        assert "optim.lr=auto makes it" not in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("run.accumulation=x", "run.accumulation='x': expected integer or 'auto'"),
        ("run.accumulation=0", "run.accumulation=0: expected greater than or equal to 1 or 'auto'"),
        ("run.grad_checkpointing=5", "run.grad_checkpointing=5: expected boolean or 'selective'"),
        ("run.device=gpu", "run.device='gpu': expected 'auto', 'cpu' or 'cuda'"),
        ("optim.betas=2,3", "optim.betas.0=2: expected less than 1"),
    ],
)
def test_every_kind_of_value_that_a_key_takes_is_named(word: str, line: str) -> None:
    with pytest.raises(RecipeError) as error:
        get_recipe("deit3_base_1k_192", [word])
    assert str(error.value) == line
