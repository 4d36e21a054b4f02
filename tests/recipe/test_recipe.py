import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deit_fast.recipe.parse import all_fields
from deit_fast.recipe.schema import SECTIONS, Recipe, parse_recipe
from deit_fast.recipe.table import get_recipe
from deit_fast.runtime.errors import RecipeError


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("optim.name=adam", "optim.name='adam': expected 'adamw', 'lamb' or 'sgd'"),
        ("optim.lrr=1", "(did you mean 'lr'?)"),
        ("optimm.lr=1", "(did you mean 'optim.lr'?)"),
        ("optim.lr=abc", "optim.lr='abc': expected number"),
        ("optim.lr=-1", "optim.lr=-1: expected greater than 0"),
        ("optim.lr=NaN", "optim.lr='NaN': expected number"),
        ("optim.betas=0.9", "optim.betas=0.9: expected"),
        ("optim.betas=0.9,2", "optim.betas"),
        ("run.global_batch=2.5", "run.global_batch=2.5: expected integer"),
        ("run.global_batch=1e3", "run.global_batch=1000.0: expected integer"),
        ("run.global_batch=true", "run.global_batch=True: expected integer"),
        ("run.accumulation=3", "run.accumulation=3: expected a divisor of run.global_batch=2048"),
        (
            "run.global_batch=2047",
            "run.global_batch=2047: expected an even batch for each of run.accumulation=1 passes, "
            "which mix.mixup and mix.cutmix pair up",
        ),
        ("model.name=deit3_bas_patch16", "(did you mean 'deit3_base_patch16'?)"),
        ("model.image_size=8", "model.image_size=8: expected at least"),
        ("model.drop_path=1.0", "model.drop_path=1.0: expected less than 1"),
        ("loss.smoothing=0.1", "loss.smoothing=0.1: expected 0 with loss.name='bce'"),
        (
            "model.pool=avg model.name=deit_base_distilled_patch16",
            "model.pool='avg': expected 'token' with model.name=",
        ),
        ("schedule.epochs=4", "schedule.warmup_epochs=5: expected less than schedule.epochs=4"),
        ("schedule.warmup_lr=1", "schedule.warmup_lr=1: expected at most optim.lr=0.004"),
        ("model.name=resmlp_12 optim.trainable=attention", "expected 'all' with model.name='resmlp_12'"),
        ("model.name=S60 optim.split_qkv=true", "split_qkv=true: expected false with model.name='patchconvnet_s60'"),
        ("model.name=S60 optim.layer_decay=0.5", "decay=0.5: expected null with model.name='patchconvnet_s60'"),
        ("schedule.min_lr=1", "schedule.min_lr=1: expected at most optim.lr=0.004"),
        ("augment.policy=rand_augment", "augment.color_jitter=0.3: expected 0"),
        ("augment.scale=1.0,0.5", "augment.scale=[1.0, 0.5]: expected low <= high"),
        ("augment.scale=0.5,2.0", "augment.scale=[0.5, 2.0]: expected at most 1"),
        ("mix.group=3", "mix.group=3: expected a multiple of 2"),
        ("lr=1", "'lr=1': expected section.key=value"),
        ("optim.lr", "'optim.lr': expected section.key=value"),
        (
            "optim.trainable=attention distill.kind=hard model.name=deit_base_distilled_patch16",
            "optim.trainable='attention': expected 'all' with distill.kind='hard'",
        ),
        ("name=x", "'name=x': expected section.key=value"),
    ],
)
def test_a_bad_word_is_one_line(word: str, message: str) -> None:
    with pytest.raises(RecipeError) as error:
        get_recipe("deit3_small_1k_224", word.split())
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


def test_null_in_a_toml_file_is_a_word(tmp_path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        '[model]\nname = "deit3_nano_patch4"\nimage_size = 24\nnum_classes = "null"\n'
        '[optim]\nlr = 1e-3\nmax_grad_norm = "null"\n[run]\nglobal_batch = 32\n'
    )
    recipe = get_recipe(str(path))
    assert (recipe.model.num_classes, recipe.optim.max_grad_norm) == (None, None)
    path.write_text(path.read_text().replace("lr = 1e-3", 'lr = "null"'))
    with pytest.raises(RecipeError, match=r"optim\.lr=None"):
        get_recipe(str(path))


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
        for key, field in all_fields(section).items():
            assert field.description, f"{name}.{key}"


@given(st.text(max_size=30), st.text(max_size=30))
def test_any_words_are_refused_in_one_line_or_make_a_recipe(key: str, value: str) -> None:
    with contextlib.suppress(RecipeError):  # anything else is a traceback
        assert isinstance(get_recipe("demo_pretrain", [f"optim.{key}={value}", value]), Recipe)
