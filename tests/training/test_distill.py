"""The teacher: which files it takes, which it refuses in one line, and a run with it from the command line."""

import json
import re
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.deit import VisionTransformerDistilled

import deit_fast.training.prepare
from deit_fast.cli.main import main
from deit_fast.recipe.schema import Recipe
from deit_fast.recipe.sections import Model
from deit_fast.recipe.table import get_recipe
from deit_fast.runtime.errors import RecipeError, RunError
from deit_fast.training.distill import load_teacher
from deit_fast.training.periodic import Checkpoints
from deit_fast.training.run import train
from tests.training.test_train import WORDS

CPU = torch.device("cpu")
TEACHER = "test_efficientnet"  # timm's smallest, for tests
DISTIL = ["model.name=deit_tiny_distilled_patch16", "model.drop_path=0", "distill.kind=soft",
          f"distill.teacher={TEACHER}"]  # fmt: skip


def recipe_with(*words: str) -> Recipe:
    return get_recipe("demo_pretrain", [*WORDS, "schedule.epochs=2", *DISTIL, *words])


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return timm.create_model(TEACHER, num_classes=3).state_dict()


@pytest.fixture
def teacher_file(tmp_path: Path, weights: dict[str, torch.Tensor]) -> Path:
    torch.save({"model": weights, "epoch": 3}, tmp_path / "teacher.pth")
    return tmp_path / "teacher.pth"


def build_small(section: Model, seed: int = 0) -> VisionTransformerDistilled:
    """Stands for build_model: the smallest published distilled model has 5.9 M parameters."""
    torch.manual_seed(seed)
    return VisionTransformerDistilled(img_size=section.image_size, patch_size=4, embed_dim=32, depth=2, num_heads=2,
                                      num_classes=section.classes)  # fmt: skip


@pytest.mark.parametrize("form", ["reference", "timm", "bare", "ddp", "safetensors"])
def test_files_it_takes(form: str, tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    path = tmp_path / ("teacher.safetensors" if form == "safetensors" else "teacher.pth")
    average = {name: torch.zeros_like(value) for name, value in weights.items()}
    if form == "safetensors":
        save_file(weights, path)
    else:
        content = {
            "reference": {"model": weights},
            "timm": {"state_dict": weights, "state_dict_ema": average, "epoch": 1},
            "bare": weights,
            "ddp": {"state_dict": {f"module.{name}": value for name, value in weights.items()}},
        }
        torch.save(content[form], path)
    teacher = load_teacher(recipe_with(), path, CPU)
    assert all(torch.equal(value, weights[name]) for name, value in teacher.model.state_dict().items())
    assert not teacher.model.training
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())


def test_files_it_refuses(
    tmp_path: Path, teacher_file: Path, weights: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, message: str, *words: str, kind: type[Exception] = RunError) -> None:
        with pytest.raises(kind, match=message) as caught:
            load_teacher(recipe_with(*words), path, CPU)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 600

    named = rf"--teacher {re.escape(str(tmp_path))}"
    refuse(tmp_path / "none.pth", f"{named}/none.pth: no such file")
    (tmp_path / "text.pth").write_text("no weights")
    refuse(tmp_path / "text.pth", f"{named}/text.pth: expected a file of weights")
    (tmp_path / "text.safetensors").write_text("no weights")
    refuse(tmp_path / "text.safetensors", f"{named}/text.safetensors: expected a file of weights")
    torch.save({"model": weights, "code": Path("x")}, tmp_path / "code.pth")
    refuse(tmp_path / "code.pth", f"{named}/code.pth: expected a file of weights .*weights_only")
    torch.save({name: value for name, value in weights.items() if "conv_head" not in name}, tmp_path / "part.pth")
    refuse(tmp_path / "part.pth", f"expected weights of timm's {TEACHER} .*conv_head")
    torch.save([1, 2], tmp_path / "list.pth")
    refuse(tmp_path / "list.pth", f"{named}/list.pth: expected a file of weights")
    first = next(iter(weights))
    torch.save({**weights, first: torch.full_like(weights[first], torch.nan)}, tmp_path / "nan.pth")
    refuse(tmp_path / "nan.pth", f"{named}/nan.pth: has NaN or infinity in {re.escape(first)}, ")
    refuse(teacher_file, "knows 3 classes, expected 4, the student's", "model.num_classes=4")
    refuse(teacher_file, "distill.teacher='regnety_016x': expected a model of timm .did you mean 'regnety_016'",
           "distill.teacher=regnety_016x", kind=RecipeError)  # fmt: skip
    vit = timm.create_model("vit_tiny_patch16_224", depth=1, num_classes=3)
    torch.save(vit.state_dict(), tmp_path / "vit.pth")
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: vit)
    refuse(tmp_path / "vit.pth", "expected a model that takes images of model.image_size=16 .Input height .16. doesn't",
           "distill.teacher=vit_tiny_patch16_224", kind=RecipeError)  # fmt: skip


def test_it_is_given_exactly_where_it_is_needed(
    folder_data: Path, tmp_path: Path, teacher_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "demo_pretrain", "--data", str(folder_data), "--out", str(tmp_path / "run"), *WORDS]
    for words, message in (
        ([*DISTIL], f"distill.kind='soft': expected --teacher with weights of distill.teacher='{TEACHER}'"),
        (["--teacher", str(teacher_file)], f"--teacher {teacher_file}: expected none with distill.kind='none'"),
        ([*DISTIL, "--teacher", "absent.pth"], "absent.pth: no such checkpoint"),
    ):
        assert main([*command, *words]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("word", ["loss.cosub=true", "distill.kind=soft"])
def test_evaluation_mode_has_no_second_pass_and_no_second_head(word: str) -> None:
    words = ["model.name=deit_tiny_distilled_patch16", "model.drop_path=0.1", "loss.name=bce", word]
    with pytest.raises(RecipeError, match=r"model\.train_mode=false: expected true with "):
        get_recipe("demo_pretrain", [*words, "model.train_mode=false"])


def test_a_run_with_a_teacher_resumes_with_one(
    folder_data: Path, tmp_path: Path, teacher_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deit_fast.training.prepare, "build_model", build_small)
    out, recipe = tmp_path / "run", recipe_with("run.checkpoint_every=3")

    class Killed(Exception):
        pass

    def kill(checkpoints: Checkpoints) -> None:
        save(checkpoints)
        raise Killed

    save = Checkpoints.save
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", kill)
        with pytest.raises(Killed):
            train(recipe, str(folder_data), out, teacher=teacher_file)
    saved = torch.load(out / "checkpoints" / "last.pt", weights_only=True)
    assert saved["step"] == 3
    assert set(saved["model"]) == set(build_small(recipe.model).state_dict())
    with pytest.raises(RecipeError, match="expected --teacher"):
        train(recipe, str(folder_data), out)
    train(recipe, str(folder_data), out, teacher=teacher_file)
    train(recipe, str(folder_data), tmp_path / "straight", teacher=teacher_file)
    one, two = (torch.load(f / "checkpoints" / "last.pt", weights_only=True) for f in (out, tmp_path / "straight"))
    assert all(torch.equal(value, two["model"][name]) for name, value in one["model"].items())
    assert json.loads((out / "result.json").read_text())["skipped"] == 0
