import contextlib
import json
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deit_fast.errors import RecipeError
from deit_fast.recipe import SECTIONS, Recipe, load_recipe_file, parse_recipe
from deit_fast.recipes import RECIPES, get_recipe, list_recipes

# Typed in from the published commands: model, size, batch, epochs, lr, weight decay, drop path, repeats.
PRETRAINING = {
    "deit3_small_1k_224": ("deit3_small_patch16", 224, 2048, 800, 4e-3, 0.05, 0.05, 3),
    "deit3_base_1k_192": ("deit3_base_patch16", 192, 2048, 800, 3e-3, 0.05, 0.2, 3),
    "deit3_large_1k_192": ("deit3_large_patch16", 192, 2048, 800, 3e-3, 0.05, 0.45, 3),
    "deit3_huge_1k_160": ("deit3_huge_patch14", 160, 2048, 800, 3e-3, 0.05, 0.6, 3),
}
FINETUNING = {
    "deit3_base_1k_224_ft": ("deit3_base_patch16", 224, 512, 20, 1e-5, 0.1, 0.2, 1),
    "deit3_large_1k_224_ft": ("deit3_large_patch16", 224, 512, 20, 1e-5, 0.1, 0.45, 1),
    "deit3_huge_1k_224_ft": ("deit3_huge_patch14", 224, 512, 20, 1e-5, 0.1, 0.55, 1),
    "deit3_small_1k_384_ft": ("deit3_small_patch16", 384, 512, 20, 1e-5, 0.1, 0.0, 1),
    "deit3_base_1k_384_ft": ("deit3_base_patch16", 384, 512, 20, 1e-5, 0.1, 0.15, 1),
    "deit3_large_1k_384_ft": ("deit3_large_patch16", 384, 512, 20, 1e-5, 0.1, 0.4, 1),
    "deit3_small_1k_384_ft_lamb": ("deit3_small_patch16", 384, 512, 20, 1e-5, 0.1, 0.0, 3),
}


@pytest.mark.parametrize(("name", "published"), [*PRETRAINING.items(), *FINETUNING.items()])
def test_published_numbers(name: str, published: tuple) -> None:
    r = get_recipe(name)
    assert published == (
        r.model.name, r.model.image_size, r.run.global_batch, r.schedule.epochs,
        r.optim.lr, r.optim.weight_decay, r.model.drop_path, r.data.repeats,
    )  # fmt: skip
    assert (r.schedule.warmup_epochs, r.schedule.warmup_lr, r.schedule.min_lr) == (5, 1e-6, 1e-5)
    assert (r.mix.mixup, r.mix.cutmix, r.mix.prob, r.mix.switch_prob) == (0.8, 1.0, 1.0, 0.5)
    assert (r.optim.betas, r.optim.eps, r.optim.ema_decay) == ((0.9, 0.999), 1e-8, 0.99996)
    assert (r.model.initial_layer_scale, r.model.num_classes, r.data.eval_crop_ratio) == (1e-4, 1000, 1.0)
    if name in PRETRAINING:
        assert (r.loss.name, r.loss.smoothing, r.optim.name, r.optim.max_grad_norm) == ("bce", 0.0, "lamb", 1.0)
        assert (r.augment.crop, r.augment.policy, r.augment.color_jitter) == ("rrc", "three_augment", 0.3)
    else:
        lamb = name.endswith("lamb")
        assert (r.loss.name, r.loss.smoothing) == ("cross_entropy", 0.1)
        assert (r.optim.name, r.optim.max_grad_norm) == (("lamb", 1.0) if lamb else ("adamw", None))
        assert (r.augment.policy, r.augment.rand_magnitude, r.augment.rand_std) == ("rand_augment", 9, 0.5)


@pytest.mark.parametrize("name", list_recipes())
def test_every_row_survives_json_and_toml(name: str, tmp_path) -> None:
    recipe = get_recipe(name)
    content = recipe.model_dump(mode="json")
    as_json = tmp_path / "recipe.json"
    as_json.write_text(json.dumps(content))
    assert load_recipe_file(as_json) == recipe
    as_toml = tmp_path / "recipe.toml"
    as_toml.write_text(_toml(content))
    assert tomllib.loads(as_toml.read_text())["run"]["global_batch"] == recipe.run.global_batch
    assert load_recipe_file(as_toml) == recipe.model_copy(
        update={"optim": recipe.optim.model_copy(update=_defaults(content["optim"]))}
    )
    assert recipe.description
    assert list(RECIPES)


def _defaults(section: dict) -> dict:
    """TOML has no null: a key left out falls back to its default."""
    fields = SECTIONS["optim"].model_fields
    return {key: fields[key].default for key, value in section.items() if value is None}


def _toml(content: dict) -> str:
    lines = [f"{key} = {json.dumps(value)}" for key, value in content.items() if not isinstance(value, dict)]
    for name, section in content.items():
        if isinstance(section, dict):
            lines += [f"[{name}]", *(f"{k} = {json.dumps(v)}" for k, v in section.items() if v is not None)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("optim.name=adam", "optim.name='adam': expected 'lamb', 'adamw' or 'sgd'"),
        ("optim.lrr=1", "(did you mean 'lr'?)"),
        ("optimm.lr=1", "(did you mean 'optim'?)"),
        ("optim.lr=abc", "optim.lr='abc': expected number"),
        ("optim.lr=-1", "optim.lr=-1: expected greater than 0"),
        ("optim.lr=NaN", "optim.lr='NaN': expected number"),
        ("optim.betas=0.9", "optim.betas=0.9: expected"),
        ("optim.betas=0.9,2", "optim.betas"),
        ("run.global_batch=2.5", "run.global_batch=2.5: expected integer"),
        ("run.global_batch=1e3", "run.global_batch=1000.0: expected integer"),
        ("run.global_batch=true", "run.global_batch=True: expected integer"),
        ("run.accumulation=3", "run.accumulation=3: expected a divisor of run.global_batch=2048"),
        ("run.global_batch=2047", "run.global_batch=2047: expected an even batch"),
        ("model.name=deit3_bas_patch16", "(did you mean 'deit3_base_patch16'?)"),
        ("model.image_size=8", "model.image_size=8: expected at least"),
        ("model.drop_path=1.0", "model.drop_path=1.0: expected less than 1"),
        ("loss.smoothing=0.1", "loss.smoothing=0.1: expected 0 with loss.name='bce'"),
        ("schedule.epochs=4", "schedule.warmup_epochs=5: expected less than schedule.epochs=4"),
        ("schedule.min_lr=1", "schedule.min_lr=1: expected at most optim.lr=0.004"),
        ("augment.policy=rand_augment", "augment.color_jitter=0.3: expected 0"),
        ("augment.scale=1.0,0.5", "augment.scale=[1.0, 0.5]: expected low <= high"),
        ("augment.scale=0.5,2.0", "augment.scale=[0.5, 2.0]: expected at most 1"),
        ("mix.group=3", "mix.group=3: expected a multiple of 2"),
        ("lr=1", "'lr=1': expected section.key=value"),
        ("optim.lr", "'optim.lr': expected section.key=value"),
        ("name=x", "'name=x': expected section.key=value"),
    ],
)
def test_a_bad_word_is_one_line(word: str, message: str) -> None:
    with pytest.raises(RecipeError) as error:
        get_recipe("deit3_small_1k_224", [word])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_good_words() -> None:
    recipe = get_recipe(
        "deit3_small_1k_224",
        ["optim.betas=0.9,0.95", "optim.max_grad_norm=null", "schedule.epochs=0.5", "schedule.warmup_epochs=0",
         "run.compile=off", "augment.scale=[0.5, 1]", "schedule.reference_epoch_steps=true", "optim.lr=1"],
    )  # fmt: skip
    assert recipe.optim.betas == (0.9, 0.95)
    assert recipe.optim.max_grad_norm is None
    assert recipe.schedule.epochs == 0.5
    assert recipe.run.compile == "off"
    assert recipe.augment.scale == (0.5, 1.0)
    assert recipe.schedule.reference_epoch_steps is True
    assert recipe.optim.lr == 1.0
    assert get_recipe("deit3_small_1k_224").optim.betas == (0.9, 0.999)


def test_unknown_recipe_and_files(tmp_path) -> None:
    with pytest.raises(RecipeError, match="did you mean 'deit3_small_1k_224'"):
        get_recipe("deit3_smal_1k_224")
    for name, text in (("a.json", "{"), ("b.toml", "x ="), ("c.json", "[1]"), ("d.json", '{"model": {}}')):
        (tmp_path / name).write_text(text)
        with pytest.raises(RecipeError, match=name):
            get_recipe(str(tmp_path / name))
    with pytest.raises(RecipeError, match=r"absent\.toml"):
        get_recipe(str(tmp_path / "absent.toml"))
    with pytest.raises(RecipeError, match="no such key"):
        parse_recipe({**get_recipe("demo_pretrain").model_dump(mode="json"), "modle": {}})


def test_a_recipe_cannot_be_changed() -> None:
    recipe = get_recipe("demo_pretrain")
    with pytest.raises(Exception, match="frozen"):
        recipe.optim.lr = 1.0  # type: ignore[misc]


def test_every_field_says_what_it_means() -> None:
    for name, section in SECTIONS.items():
        for key, field in section.model_fields.items():
            assert field.description, f"{name}.{key}"


@given(st.text(max_size=30), st.text(max_size=30))
def test_any_words_are_refused_in_one_line_or_make_a_recipe(key: str, value: str) -> None:
    with contextlib.suppress(RecipeError):  # anything else is a traceback
        assert isinstance(get_recipe("demo_pretrain", [f"optim.{key}={value}", value]), Recipe)
