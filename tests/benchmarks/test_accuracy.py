"""What `benchmarks accuracy` measures, and that it goes on: with commands that stand in for the trainings."""

import json
import sys
import time
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.accuracy_cases import Cut, Ours, Timm, cases
from benchmarks.accuracy_images import write_images
from benchmarks.timed_command import time_command
from deit_fast.recipe.sections import LambOptim
from deit_fast.recipe.table import get_recipe
from deit_fast.runtime.errors import RunError

BURNT = 0.4
HELD_MB = 60
BURN = f"""
import sys, time
held = b"x" * ({HELD_MB} << 20)
while time.process_time() < {BURNT}: pass
time.sleep(1.5)
"""
_STAND_IN = """
import json, pathlib, sys
words = sys.argv[1:]
pathlib.Path({calls!r}).open("a").write(json.dumps(words) + "\\n")
if "--experiment" in words:
    out = pathlib.Path(words[words.index("--output") + 1], words[words.index("--experiment") + 1])
    out.mkdir()
    (out / "summary.csv").write_text("epoch,train_loss,eval_top1\\n0,2,10.5\\n7,1,60.5\\n")
else:
    out = pathlib.Path(words[words.index("--out") + 1])
    (out / "checkpoints").mkdir(parents=True)
    (out / "checkpoints" / "last.safetensors").write_text("weights of seed " + words[-2])
    (out / "result.json").write_text(json.dumps({{"top1": 62.5}}))
"""


def test_the_cost_of_a_command_counts_its_children(tmp_path: Path) -> None:
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {BURN!r}], check=True)"
    before = time.perf_counter()
    cost = time_command([sys.executable, "-c", code], tmp_path / "log", 0.05)  # many samples, also on a busy machine
    assert 1.5 < cost.seconds <= time.perf_counter() - before
    assert BURNT < cost.cpu_seconds < 10 * BURNT
    assert HELD_MB < cost.peak_pss_mb < HELD_MB + 60


def test_a_command_that_fails_is_told_with_its_last_line(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"status 3: no such model$"):
        time_command([sys.executable, "-c", "print('a\\nno such model'); raise SystemExit(3)"], tmp_path / "log")


def test_a_cut_has_the_first_images_of_its_classes_as_they_are(folder_data: Path, tmp_path: Path) -> None:
    assert write_images(str(folder_data), Cut(per_class=5, first=0, step=2), tmp_path) == 10
    made: dict[str, list[bytes]] = {str(path.relative_to(tmp_path).parent): [] for path in tmp_path.rglob("*.jpg")}
    for path in sorted(tmp_path.rglob("*.jpg")):
        made[str(path.relative_to(tmp_path).parent)].append(path.read_bytes())
    wanted = {f"{split}/{name}": [each.read_bytes() for each in sorted((folder_data / split / name).iterdir())[:count]]
              for split, count in (("train", 5), ("val", 11)) for name in ("class0", "class2")}  # fmt: skip
    assert made == wanted


def test_recipes_and_words_are_ones_that_exist() -> None:
    for case in cases(100).values():
        for contender in case.contenders.values():
            if isinstance(contender, Ours):
                recipe = get_recipe(contender.recipe, contender.words)
                assert recipe.schedule.epochs == case.epochs
                assert (recipe.run.start == "weights") == contender.starts
            else:
                assert contender.flags[contender.flags.index("--epochs") + 1] == str(case.epochs)


def test_ours_and_timms_train_the_same_model_by_the_same_recipe() -> None:
    """Values of the two command lines that mean the same."""
    ours, timm = cases(None)["scratch"].contenders.values()
    assert isinstance(ours, Ours)
    assert isinstance(timm, Timm)
    recipe, flags = get_recipe(ours.recipe, ours.words), " ".join(timm.flags)
    model, optim, schedule = recipe.model, recipe.optim, recipe.schedule
    assert isinstance(optim, LambOptim)
    for flag, value in {
        "--img-size": model.image_size, "--lr": optim.lr, "--weight-decay": optim.weight_decay,
        "--opt-eps": optim.eps, "--epochs": schedule.epochs, "--warmup-epochs": schedule.warmup_epochs,
        "--warmup-lr": schedule.warmup_lr, "--min-lr": schedule.min_lr, "--batch-size": recipe.run.global_batch,
        "--smoothing": recipe.loss.smoothing,
        "--crop-pct": recipe.data.eval_crop_ratio,
    }.items():  # fmt: skip
        assert float(flags.split(f"{flag} ")[1].split()[0]) == value
    for flag, values in {"--mean": recipe.data.mean, "--std": recipe.data.std, "--scale": recipe.augment.scale}.items():
        assert tuple(map(float, flags.split(f"{flag} ")[1].split()[: len(values)])) == values
    assert f"--opt {optim.name}" in flags
    assert recipe.augment.flip == 0.5  # timm's default


def test_it_goes_on_with_what_is_missing(
    folder_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls, timm = tmp_path / "calls", tmp_path / "checkout"
    (timm / "timm").mkdir(parents=True)
    (timm / "timm" / "version.py").write_text("__version__ = '1.2.3'\n")
    (timm / "train.py").write_text(_STAND_IN.format(calls=str(calls)))
    monkeypatch.setattr(Ours, "command", lambda self, images, out, seed, weights: [
        sys.executable, str(timm / "train.py"), "train", str(images), "--out", str(out), self.recipe, str(seed),
        str(weights)])  # fmt: skip
    words = ["accuracy", "--data", str(folder_data), "--out", str(tmp_path), "--cases", "scratch", "small_10_finetune"]
    assert main([*words, "--seeds", "0"]) == 0
    rows = {row["case"]: row for row in json.loads((tmp_path / "accuracy-cpu.json").read_text())["rows"]}
    assert [(run["contender"], run["seed"]) for run in rows["scratch"]["runs"]] == [("ours", 0)]
    assert rows["scratch"]["ratios"] == {}
    first = len(calls.read_text().splitlines())

    assert main([*words, "--seeds", "0", "1", "--timm", str(timm)]) == 0
    content = json.loads((tmp_path / "accuracy-cpu.json").read_text())
    rows = {row["case"]: row for row in content["rows"]}
    done = [(run["contender"], run["seed"]) for run in rows["scratch"]["runs"]]
    assert done == [("ours", 0), ("timm", 0), ("ours", 1), ("timm", 1)]
    assert rows["scratch"]["images"] == 96
    assert rows["scratch"]["contenders"]["ours"]["top1"] == {"mean": 62.5, "deviation": 0, "min": 62.5, "max": 62.5}
    assert rows["scratch"]["contenders"]["timm"]["top1"]["mean"] == 60.5
    assert rows["scratch"]["ratios"]["top1_difference"] == 2
    assert set(rows["small_10_finetune"]["contenders"]) == {"ours", "timm", "probe"}
    assert content["settings"]["timm"] == "1.2.3"
    lines = [json.loads(line) for line in calls.read_text().splitlines()[first:]]
    weights = [line[line.index("--pretrained-path") + 1] for line in lines if "--pretrained-path" in line]
    assert weights == [str(tmp_path / "accuracy-pretrained.safetensors")] * 2
    assert (tmp_path / "accuracy-pretrained.safetensors").read_bytes() == b"weights of seed 0"


@pytest.mark.parametrize(("words", "message"), [
    (["--cases", "scratsh"], "--cases scratsh: expected some of scratch, drop_path"),
    (["--timm", "nowhere"], "--timm nowhere: expected a checkout of huggingface/pytorch-image-models"),
    (["--device", "cuda"], "--device cuda: expected cpu"),
])  # fmt: skip
def test_mistakes_are_told(words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["accuracy", "--data", "data", "--out", str(tmp_path), *words]) == 2
    assert message in capsys.readouterr().err
