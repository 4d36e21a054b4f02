"""Sections whose fields depend on their kind: what is refused, what stays when the kind changes, what was stored."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from deit_fast.checkpoint.format import check_same_recipe
from deit_fast.recipe import RECIPES, Recipe, get_recipe, parse_recipe
from deit_fast.recipe.sections import AdamWOptim, Augment, Distill, LambOptim, Loss, Optim, SGDOptim
from deit_fast.runtime.errors import RecipeError

LAMB = "deit3_base_1k_192"
TOKEN = "model.name=deit_base_distilled_patch16"


def lines_of(*words: str, name: str = LAMB) -> list[str]:
    """What the words are refused with; fails where they are not."""
    with pytest.raises(RecipeError) as error:
        get_recipe(name, words)
    return str(error.value).split("\n")


@pytest.mark.parametrize(
    ("words", "start", "end"),
    [
        ("optim.momentum=0.8", "optim.momentum=0.8: no such key with optim.name='lamb'; expected one of name, lr, ",
         " (it is of optim.name='sgd')"),
        ("optim.name=sgd optim.eps=1e-6", "optim.eps=1e-06: no such key with optim.name='sgd'; expected one of ",
         ", momentum (it is of optim.name='adamw' or 'lamb')"),
        ("optim.name=adamw optim.split_qkv=false", "optim.split_qkv=False: no such key with optim.name='adamw'; ",
         "(it is of optim.name='lamb')"),
        ("augment.rand_ops=2", "augment.rand_ops=2: no such key with augment.policy='three_augment'; ",
         "(it is of augment.policy='rand_augment')"),
        ("augment.crop=center augment.scale=0.5,1", "augment.scale=[0.5, 1]: no such key with augment.crop='center'; ",
         "(it is of augment.crop='rrc' or 'rrc_linear')"),
        ("augment.erase_mode=const", "augment.erase_mode='const': no such key with augment.erase=0.0; ",
         "(it is of augment.erase other than 0.0)"),
        ("distill.alpha=0.1", "distill.alpha=0.1: no such key with distill.kind='none'; expected one of kind", ""),
        ("distill.teacher=resnet50", "distill.teacher='resnet50': no such key with distill.kind='none'; ", ""),
        (f"{TOKEN} distill.kind=hard distill.tau=3", "distill.tau=3: no such key with distill.kind='hard'; ",
         "expected one of kind, teacher, alpha (it is of distill.kind='soft')"),
    ],
)  # fmt: skip
def test_what_a_kind_ignores_is_refused(words: str, start: str, end: str) -> None:
    (line,) = lines_of(*words.split())
    assert line.startswith(start)
    assert line.endswith(end)


@pytest.mark.parametrize(("text", "names"), [("Color", ["Color"]), ("Color,Sharpness", ["Color", "Sharpness"]),
                                             ('["Color"]', ["Color"]), ("[]", [])])  # fmt: skip
def test_names_need_no_quotes_of_a_shell(text: str, names: list[str]) -> None:
    words = ["augment.policy=rand_augment", "augment.color_jitter=0", f"augment.rand_extra={text}"]
    assert list(get_recipe(LAMB, words).augment.rand_extra) == names


def test_keys_of_other_kinds_are_no_part_of_a_recipe() -> None:
    content = get_recipe(LAMB).model_dump(mode="json")
    assert list(content["optim"]) == ["name", "lr", "weight_decay", "layer_decay", "trainable", "max_grad_norm",
                                      "ema_decay", "split_qkv", "betas", "eps"]  # fmt: skip
    assert list(content["distill"]) == ["kind"]
    assert not {key for key in content["augment"] if key.startswith(("rand_", "erase_"))}
    assert not hasattr(get_recipe(LAMB).optim, "momentum")


def test_the_order_of_words_is_of_no_importance() -> None:
    recipe = get_recipe(LAMB, ["optim.momentum=0.8", "optim.name=sgd"])
    assert isinstance(recipe.optim, SGDOptim)
    assert recipe.optim.momentum == 0.8
    assert recipe == get_recipe(LAMB, ["optim.name=sgd", "optim.momentum=0.8"])


def test_values_that_both_kinds_have_stay() -> None:
    lamb = get_recipe(LAMB, ["optim.lr=2e-3", "optim.betas=0.8,0.9", "optim.split_qkv=true", "optim.max_grad_norm=7"])
    adamw = lamb.override(["optim.name=adamw"]).optim
    assert adamw == AdamWOptim(lr=2e-3, weight_decay=0.05, betas=(0.8, 0.9), max_grad_norm=7.0)
    back = lamb.override(["optim.name=sgd"]).override(["optim.name=lamb"]).optim
    assert back == LambOptim(lr=2e-3, max_grad_norm=7.0)  # what sgd lacks is the default again
    views = get_recipe("deit_base_1k_224", ["augment.rand_ops=3", "augment.scale=0.3,1"])
    crops = views.override(["augment.policy=none", "augment.crop=center", "augment.erase=0"]).augment
    assert crops == Augment(crop="center", policy="none", color_jitter=0.0)
    soft = get_recipe("deit_base_distilled_1k_224_soft", ["distill.alpha=0.1", "distill.tau=3"])
    assert soft.override(["distill.kind=hard"]).distill == Distill(kind="hard", alpha=0.1)


@pytest.mark.parametrize(
    "build",
    [
        lambda: Augment(rand_ops=3),
        lambda: Augment(crop="src", scale=(0.5, 1.0)),
        lambda: Distill(kind="hard", tau=2.0),
        lambda: LambOptim.model_validate({"lr": 1.0, "momentum": 0.9}),
        lambda: Optim(lr=1.0),
        lambda: Loss(smoothing=0.1),
    ],
)
def test_python_cannot_build_one_either(build: Any) -> None:
    with pytest.raises(ValueError, match=r"no such key with|momentum|LambOptim|loss\.smoothing"):
        build()


@pytest.mark.parametrize("name", RECIPES)
def test_a_file_of_all_that_differs_from_nothing(name: str) -> None:
    """Every value as a word: none is refused, and nothing changes."""
    recipe = RECIPES[name]
    words = [f"{section}.{key}={json.dumps(value) if not isinstance(value, str) else value}"
             for section, part in recipe.model_dump(mode="json").items() if isinstance(part, dict)
             for key, value in part.items()]  # fmt: skip
    assert recipe.override(words) == recipe


# What was stored when recipes held every field of every kind.


def old_dump(recipe: Recipe, **inert: dict[str, Any]) -> dict[str, Any]:
    """The recipe as dumped then, with values for what it ignored."""
    content = recipe.model_dump(mode="json")
    content["optim"] = {"momentum": 0.9, "split_qkv": False, "betas": [0.9, 0.999], "eps": 1e-8} | content["optim"]
    content["distill"] = {"teacher": "regnety_160", "alpha": 0.5, "tau": 1.0} | content["distill"]
    content["augment"] = {
        "scale": [0.08, 1.0], "ratio": [0.75, 4 / 3], "rand_ops": 2, "rand_magnitude": 9.0, "rand_std": 0.5,
        "erase_mode": "pixel", "erase_count": 1,
    } | content["augment"]  # fmt: skip
    for name, values in inert.items():
        content[name] |= values
    return content


@pytest.mark.parametrize("name", RECIPES)
def test_old_dumps_are_read_without_what_they_ignored(name: str) -> None:
    assert parse_recipe(old_dump(RECIPES[name])) == RECIPES[name]


def test_an_old_run_is_the_same_run(tmp_path: Path) -> None:
    recipe = get_recipe(LAMB)
    stored = old_dump(recipe, optim={"momentum": 0.8}, distill={"alpha": 0.1}, augment={"rand_ops": 7})
    check_same_recipe(recipe, parse_recipe(stored), tmp_path)
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(stored))
    assert get_recipe(str(path)) == recipe
    assert get_recipe(str(path), ["optim.name=sgd"]).optim == get_recipe(LAMB, ["optim.name=sgd"]).optim
    with pytest.raises(RecipeError, match=r"optim\.momentum=0\.8: no such key"):
        get_recipe(str(path), ["optim.momentum=0.8"])
    stored["optim"]["lrr"] = 1
    with pytest.raises(RecipeError, match=r"optim\.lrr: no such key"):
        parse_recipe(stored)


REMOVED = {"cuda_graph": True, "roi_decode": True, "hw_decoder_load": "auto"}


def test_fields_that_are_no_more_are_dropped_where_they_were_stored(tmp_path: Path) -> None:
    """In a checkpoint, in a run's recipe.json, and in files that say a base; never in what is typed now."""
    recipe = get_recipe(LAMB)
    stored = recipe.model_dump(mode="json")
    stored["run"] |= REMOVED
    check_same_recipe(recipe, parse_recipe(stored, source="last.pt"), tmp_path)
    path, mine = tmp_path / "recipe.json", tmp_path / "mine.toml"
    path.write_text(json.dumps(stored))
    assert get_recipe(str(path)) == recipe
    mine.write_text(f'base = "{LAMB}"\n[run]\ncuda_graph = true\nhw_decoder_load = "auto"\n')
    assert get_recipe(str(mine)).run == recipe.run
    for key, value in REMOVED.items():
        word = f"run.{key}={json.dumps(value)}"
        for refuses in (partial(get_recipe, str(path), [word]), partial(get_recipe, LAMB, [word]),
                        partial(recipe.derive, run={key: value})):  # fmt: skip
            with pytest.raises(RecipeError, match=rf"^run\.{key}(: no such key|='auto': expected )"):
                refuses()
    assert recipe.derive(run={"hw_decoder_load": 0.9}).run.hw_decoder_load == 0.9


def test_a_users_file_is_no_old_dump(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    for section, values in {"optim": {"momentum": 0.9}, "distill": {"tau": 1.0}, "augment": {"rand_ops": 2}}.items():
        content = get_recipe(LAMB).model_dump(mode="json")
        content[section] |= values
        path.write_text(json.dumps(content))
        with pytest.raises(RecipeError, match=f"{path}: {section}.{next(iter(values))}=.*: no such key with"):
            get_recipe(str(path))


@pytest.mark.parametrize("words", [["optim.name=sgd"], ["augment.crop=center"], ["augment.erase=0.1"]])
def test_a_run_of_another_kind_is_another_run(words: list[str], tmp_path: Path) -> None:
    one, other = get_recipe(LAMB), get_recipe(LAMB, words)
    key, _, value = words[0].partition("=")
    for mine, theirs in ((one, other), (other, one)):
        with pytest.raises(RecipeError, match=f"{key}=.*: expected .*, with which {tmp_path} was started") as error:
            check_same_recipe(mine, theirs, tmp_path)
        assert value in str(error.value)
