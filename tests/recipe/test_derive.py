"""Recipes from others: rows of the table, and files that say their base."""

import json
from pathlib import Path

import pytest

from deit_fast.recipe import RECIPES, Recipe, get_recipe
from deit_fast.recipe.sections import AdamWOptim, LambOptim, SGDOptim
from deit_fast.runtime.errors import RecipeError


def test_a_row_cannot_hold_a_misspelt_key() -> None:
    base = RECIPES["demo_pretrain"]
    copied = base.run.model_copy(update={"eval_evry": 2})  # what rows were made with: pydantic says nothing
    assert copied.model_dump() == base.run.model_dump()
    with pytest.raises(RecipeError, match=r"run\.eval_evry: no such key.*did you mean 'eval_every'"):
        base.derive(run={"eval_evry": 2})
    with pytest.raises(RecipeError, match="rnu: no such key"):
        base.derive(rnu={"eval_every": 2})
    with pytest.raises(RecipeError, match=r"optim\.momentum=0\.8: no such key with optim\.name='lamb'"):
        base.derive(optim={"momentum": 0.8})
    with pytest.raises(RecipeError, match=r"schedule\.warmup_epochs=2: expected less than schedule\.epochs=1"):
        base.derive(schedule={"epochs": 1})


def test_a_row_is_its_base_and_what_differs() -> None:
    base = RECIPES["demo_pretrain"]
    row = base.derive(name="mine", optim=AdamWOptim(lr=1.0), run={"eval_every": 7}, augment={"scale": (0.5, 1.0)})
    assert (row.name, row.description, row.optim) == ("mine", base.description, AdamWOptim(lr=1.0))
    assert (row.run.eval_every, row.run.log_every, row.augment.scale) == (7, base.run.log_every, (0.5, 1.0))
    assert row.augment.flip == base.augment.flip


def test_no_row_is_made_without_validation() -> None:
    for path in (Path(__file__).parents[2] / "deit_fast" / "recipe" / "table").glob("*.py"):
        assert "model_copy" not in path.read_text(), path
        assert "model_construct" not in path.read_text(), path


def write(path: Path, text: str) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return str(path)


def test_a_file_may_say_its_base_and_what_differs(tmp_path: Path) -> None:
    mine = write(tmp_path / "mine.toml", 'base = "deit3_base_1k_192"\n[optim]\nlr = 1e-3\n[schedule]\nepochs = 400\n'
                                         'min_lr = 0\n')  # fmt: skip
    recipe = get_recipe(mine, ["run.seed=3"])
    words = ["optim.lr=1e-3", "schedule.epochs=400", "schedule.min_lr=0", "run.seed=3"]
    assert recipe == get_recipe("deit3_base_1k_192", words).derive(name="mine", description=recipe.description)
    assert recipe.description == "As deit3_base_1k_192 but for optim.lr, schedule.epochs, schedule.min_lr."
    named = write(tmp_path / "n.toml", 'base = "demo_pretrain"\nname = "x"\ndescription = "y"\n')
    assert (get_recipe(named).name, get_recipe(named).description) == ("x", "y")


def test_a_base_may_be_a_file_beside_it_with_a_base_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "bases" / "a.json", json.dumps({"base": "deit3_base_1k_192", "optim": {"name": "sgd", "lr": 0.1}}))
    write(tmp_path / "bases" / "b.toml", 'base = "a.json"\n[optim]\nmomentum = 0.5\nmax_grad_norm = "null"\n')
    last = write(tmp_path / "c.toml", 'base = "bases/b.toml"\n[model]\nimage_size = 224\n')
    monkeypatch.chdir(tmp_path.parent)  # relative to the file, not to where the command is given
    recipe = get_recipe(last)
    assert recipe.optim == SGDOptim(lr=0.1, momentum=0.5, max_grad_norm=None)
    assert recipe.model == get_recipe("deit3_base_1k_192", ["model.image_size=224"]).model
    assert recipe.name == "c"


def test_a_base_of_another_kind(tmp_path: Path) -> None:
    """The kind changes as by a word: shared values stay, and the old kind's are no longer keys."""
    text = 'base = "jax_deit3_base_1k_192_800ep"\n[optim]\nname = "adamw"\n'
    optim = get_recipe(write(tmp_path / "a.toml", text)).optim
    assert optim == AdamWOptim(lr=3e-3, weight_decay=0.05, max_grad_norm=1.0, ema_decay=None)
    with pytest.raises(RecipeError, match=r"a\.toml: optim\.split_qkv=True: no such key with optim\.name='adamw'"):
        get_recipe(write(tmp_path / "a.toml", f"{text}split_qkv = true\n"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            'base = "deit3_bas_1k_192"',
            "base='deit3_bas_1k_192': expected a name that .*did you mean 'deit3_base_1k_192'",
        ),
        ("base = 3", "base=3: expected a name that `deit-fast show` lists, or a .toml or .json file"),
        ('base = "absent.toml"', r"absent\.toml: expected a readable"),
        ('base = "a.toml"', "base='a.toml': expected a file that does not come back to itself"),
        ('base = "b.json"', "base='a.toml': expected a file that does not come back to itself"),
        ('base = "x\\u0000.toml"', "base='x.x00.toml': expected a name"),
        ('base = "demo_pretrain"\noptim = 3', "optim=3: expected a table"),
        ('base = "demo_pretrain"\nbse = 3', "bse: no such key"),
    ],
)
def test_a_bad_base_is_one_line(tmp_path: Path, text: str, says: str) -> None:
    write(tmp_path / "b.json", '{"base": "a.toml"}')
    with pytest.raises(RecipeError, match=says) as error:
        get_recipe(write(tmp_path / "a.toml", text))
    assert len(str(error.value).splitlines()) == 1
    assert str(tmp_path) in str(error.value)


def test_what_is_kept_of_a_derived_recipe_stands_alone(tmp_path: Path) -> None:
    recipe = get_recipe(write(tmp_path / "mine.toml", 'base = "demo_pretrain"\n[optim]\nlr = 1e-4\n'))
    assert recipe.optim == LambOptim(lr=1e-4, ema_decay=0.99)
    assert Recipe.model_validate(dict(recipe)) == recipe
    again = write(tmp_path / "recipe.json", json.dumps(recipe.model_dump(mode="json")))
    assert get_recipe(again) == recipe
