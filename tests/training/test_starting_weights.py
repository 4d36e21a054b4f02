"""Where finetuning starts: never from random weights unsaid; from a run's folder; by functions as by the command."""

from pathlib import Path

import pytest
import torch

import deit_fast
from deit_fast.checkpoint.format import load_checkpoint, save_checkpoint
from deit_fast.cli.main import main
from deit_fast.models.build import build_model
from deit_fast.recipe.files import read_recipe_file
from deit_fast.recipe.schema import parse_recipe
from deit_fast.recipe.table import RECIPES
from deit_fast.runtime.errors import RecipeError

WORDS = ["model.num_classes=null", "run.global_batch=8", "run.precision=fp32", "schedule.epochs=1",
         "schedule.warmup_epochs=0", "run.compile=off", "model.image_size=8"]  # fmt: skip


def test_every_finetuning_recipe_says_so() -> None:
    finetuning = {name for name in RECIPES if {"ft", "finetune", "probe"} & set(name.split("_"))}
    assert len(finetuning) > 20
    assert {name for name, recipe in RECIPES.items() if recipe.run.start == "weights"} == finetuning


def test_a_recipe_based_on_one_finetunes_too(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('base = "deit3_base_1k_224_ft"\n[optim]\nlr = 2e-5\n')
    recipe = parse_recipe(read_recipe_file(tmp_path / "mine.toml", RECIPES))
    assert (recipe.name, recipe.run.start) == ("mine", "weights")


def test_finetuning_without_weights_is_refused(
    folder_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "ft"
    words = ["train", "demo_finetune", "--data", str(folder_data), "--out", str(out), *WORDS]
    assert main(words) == 2
    assert capsys.readouterr().err == (
        "deit-fast: run.start='weights': expected --init with the weights that demo_finetune finetunes, found none and "
        f"no checkpoint in {out}/checkpoints; --init none trains from random weights all the same\n"
    )
    assert main([*words, "--init", "none"]) == 0
    assert main(words) == 0  # it is finished, and needs none to say so
    capsys.readouterr()
    assert main([*words, "schedule.epochs=2"]) == 2
    way = f"choose another --out and --init {out}/checkpoints/"
    assert f"schedule.epochs=2.0: expected 1.0, with which {out}" in (error := capsys.readouterr().err)
    assert way in error


def test_weights_of_a_far_resolution_are_said(
    folder_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From 8 px to 16 nothing is said but the resampling; to 24 px the line names both resolutions and the factor."""
    init, recipe = (
        tmp_path / "weights.pt",
        deit_fast.get_recipe("demo_pretrain", WORDS).derive(model={"num_classes": 3}),
    )
    model = build_model(recipe.model, 0).state_dict()
    save_checkpoint(init, {"model": model, "recipe": recipe.model_dump(mode="json"), "ema": None, "classes": None})
    for size, says in ((16, 0), (24, 1)):
        words = [*WORDS, "schedule.epochs=0.1", f"model.image_size={size}"]
        deit_fast.train("demo_finetune", folder_data, tmp_path / f"{size}", val=0, init=init, overrides=words)
        said = capsys.readouterr().out
        assert "pos_embed  resampled  2 x 2" in said
        lines = [line for line in said.splitlines() if "a factor of" in line]
        assert len(lines) == says
        start = (
            f"{init}: the weights are of 8 px (2 x 2 patches) and the model is of 24 px (6 x 6 patches): a factor of 3"
        )
        assert all(line.startswith(start) and "model.image_size nearer to 8" in line for line in lines)


def test_functions_by_name_with_words(folder_data: Path, tmp_path: Path) -> None:
    """The same weights as a Recipe's; evaluated by the folder of the run, and finetuned from it."""
    first = deit_fast.train("demo_pretrain", folder_data, tmp_path / "a", overrides=WORDS)
    recipe = deit_fast.get_recipe("demo_pretrain", WORDS[:3])
    deit_fast.train(recipe, str(folder_data), str(tmp_path / "b"), overrides=WORDS[3:])
    one, other = (load_checkpoint(tmp_path / name / "checkpoints" / "last.pt", torch.device("cpu"))["model"]
                  for name in "ab")  # fmt: skip
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    scores = deit_fast.evaluate(tmp_path / "a", folder_data)
    assert scores["top1"] == pytest.approx(first["top1"])
    assert scores["images"] > 0
    assert deit_fast.train("demo_finetune", folder_data, tmp_path / "c", init=tmp_path / "a", overrides=WORDS)["step"]
    with pytest.raises(RecipeError, match=r"recipe 'demo_pretrian': expected a name .*did you mean 'demo_pretrain'"):
        deit_fast.train("demo_pretrian", folder_data, tmp_path / "d")
