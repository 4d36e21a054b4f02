"""The recipe table against the numbers typed in from its sources, and against the schema."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from deit_fast.recipe.parse import all_fields
from deit_fast.recipe.schema import SECTIONS
from deit_fast.recipe.table import GROUPS, RECIPES, get_recipe, list_recipes, training_images
from deit_fast.zoo import find_architecture
from tests.conftest import ROOT
from tests.oracles.published import published_numbers

PUBLISHED = published_numbers()
DEMO = {"demo_pretrain", "demo_finetune"}
OWN = {"finetune_small", "finetune_base", "probe", "scratch_small"}


def test_every_row_has_published_numbers_and_the_other_way_round() -> None:
    assert set(RECIPES) == PUBLISHED.keys() | DEMO | OWN
    assert len(RECIPES) == sum(len(rows) for rows in GROUPS.values()) == len(list_recipes())
    # 1.1 to 1.4 and the older command; 1.5; 1.6; PASSL's and mmpretrain's three each; own images' four; the demo's two.
    assert [len(rows) for rows in GROUPS.values()] == [19, 9, 33, 3, 3, 4, 2]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_numbers(name: str) -> None:
    recipe = get_recipe(name)
    content = recipe.model_dump(mode="json")
    actual: dict[str, Any] = {"layer_scale": recipe.model.initial_layer_scale, "run.passes": recipe.run.passes}
    for key in PUBLISHED[name].keys() - actual.keys():
        section, _, field = key.partition(".")
        # Only LAMB has a trust ratio to split.
        actual[key] = content[section][field] if key != "optim.split_qkv" else content[section].get(field, False)
    assert actual == PUBLISHED[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_every_source_has(name: str) -> None:
    recipe = get_recipe(name)
    assert recipe.schedule.warmup_lr == 1e-6
    assert recipe.schedule.reference_epoch_steps is False
    moments = {"betas": (0.9, 0.999), "eps": 1e-8} if recipe.optim.name != "sgd" else {"momentum": 0.9}
    assert moments.items() <= recipe.optim.model_dump().items()
    assert (recipe.mix.prob, recipe.mix.switch_prob, recipe.mix.mode, recipe.mix.cutmix_minmax) == (
        1,
        0.5,
        "batch",
        None,
    )
    assert (recipe.augment.rand_ops, recipe.augment.rand_magnitude, recipe.augment.rand_std) == (2, 9, 0.5)
    assert (recipe.augment.erase_mode, recipe.augment.erase_count) == ("pixel", 1)
    assert (recipe.augment.scale, recipe.augment.ratio) == ((0.08, 1.0), (3 / 4, 4 / 3))
    assert (recipe.distill.teacher, recipe.distill.alpha, recipe.distill.tau) == ("regnety_160", 0.5, 1.0)
    assert (recipe.model.dropout, recipe.model.position, recipe.model.pool) == (0.0, "learned", "token")
    assert (recipe.optim.layer_decay, recipe.optim.trainable, recipe.loss.cosub) == (None, "all", False)
    assert recipe.run.global_batch % (8 * recipe.run.passes) == 0
    assert recipe.run.global_batch // recipe.run.passes % recipe.mix.group == 0


def test_descriptions_say_source_result_and_budget() -> None:
    for name in PUBLISHED:
        title, source, *rest = RECIPES[name].description.splitlines()
        assert len(title) <= 60, name
        assert source.startswith("Source: "), name
        assert "Budget of the source: " in "".join(rest), name
        for key in re.findall(r"\b([a-z]+\.[a-z_]+)=", RECIPES[name].description):
            section, _, field = key.partition(".")
            assert field in all_fields(SECTIONS[section]), f"{name}: {key}"
        for start in re.findall(r"Start: (\w+)", RECIPES[name].description):
            assert RECIPES[start].model.name == RECIPES[name].model.name, name


def test_the_page_on_models_has_every_row() -> None:
    _, _, page = (ROOT / "docs" / "zoo.md").read_text().partition("| trainings | recipes |")
    table = [line for line in page.partition("\n\n")[0].splitlines() if "`" in line]
    names = [name for line in table for pattern in re.findall(r"`(.+?)`", line) for name in _expand(pattern)]
    assert sorted(names) == sorted(PUBLISHED)
    titles = {name: RECIPES[name].description.splitlines()[0] for name in names}
    for line in table:
        _, _, patterns, results, _ = line.split("|")
        numbers = re.findall(r"\d+\.\d+", results)
        rows = [name for pattern in re.findall(r"`(.+?)`", patterns) for name in _expand(pattern)]
        published = [m[1] for name in rows if (m := re.search(r": (\d+\.\d+) %", titles[name]))]
        assert sorted(numbers) == sorted(published), line


def _expand(pattern: str) -> list[str]:
    """a_{b,c} as a shell expands it."""
    start, brace, rest = pattern.partition("{")
    if not brace:
        return [pattern]
    choices, _, end = rest.partition("}")
    return [start + choice + tail for choice in choices.split(",") for tail in _expand(end)]


@pytest.mark.parametrize("name", list_recipes())
def test_names_say_what_the_row_is(name: str) -> None:
    model = RECIPES[name].model
    if name in DEMO | OWN:
        return
    assert f"_{model.image_size}" in name
    assert find_architecture(model.name).distilled == ("distilled" in name)
    expected = {"21k": 13_151_276, "1k": 1_281_167, "cifar": 50_000, "inat": 437_513}
    data = re.search(r"_(1k|21k|cifar|inat)_\d{3}", name)
    assert data
    assert training_images(RECIPES[name])[1] == expected[data[1]]
    assert (model.num_classes is None) == (data[1] != "1k")


def test_training_images_of_the_others() -> None:
    assert training_images(RECIPES["demo_finetune"]) == ("the demo's digits", 1_437)
    assert training_images(RECIPES["finetune_small"]) == ("an example of own images", 1_000)
    assert training_images(RECIPES["demo_pretrain"].derive(name="mine")) == ("ImageNet-1k", 1_281_167)


@pytest.mark.parametrize("name", list_recipes())
def test_every_row_survives_json_and_toml(name: str, tmp_path: Path) -> None:
    recipe = get_recipe(name)
    content = recipe.model_dump(mode="json")
    as_json = tmp_path / "recipe.json"
    as_json.write_text(json.dumps(content))
    assert get_recipe(str(as_json)) == recipe
    as_toml = tmp_path / "recipe.toml"
    as_toml.write_text(_toml(content))
    read = tomllib.loads(as_toml.read_text())
    assert read["run"]["global_batch"] == recipe.run.global_batch
    assert read["description"] == recipe.description
    assert get_recipe(str(as_toml)) == recipe


def _toml(content: dict[str, Any]) -> str:
    """The content as TOML, which has no null: the word stands for it."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in content.items() if not isinstance(value, dict)]
    for name, section in content.items():
        if isinstance(section, dict):
            lines += [f"[{name}]", *(f"{k} = {json.dumps('null' if v is None else v)}" for k, v in section.items())]
    return "\n".join(lines)
