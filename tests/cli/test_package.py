"""What users expect of a package: its version, completion, hints for what other trainers call options, quiet pipes."""

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import deit_fast
from deit_fast.checkpoint.format import save_checkpoint
from deit_fast.cli import completion
from deit_fast.cli.main import main
from deit_fast.convert.detect import load_weights
from deit_fast.models.build import build_model
from deit_fast.recipe.table import get_recipe, list_recipes
from deit_fast.runtime.errors import RunError
from tests.conftest import ROOT


def test_the_version_is_the_installed_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"deit-fast {version('deit_fast')}\n"
    assert deit_fast.__version__ == version("deit_fast")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--lr=3e-3"], ["--lr=3e-3: no such option (did you mean the word optim.lr=3e-3?)"]),
        (["--lr", "1", "--output_dir", "x"], ["the word optim.lr=VALUE?", "did you mean '--out'?"]),
        (["--bce-loss"], ["the word loss.name=bce?"]),
        (["--num-workers=8"], ["--num-workers=8: no such option (there is no such setting: a process uses its share"]),
        (["--eval"], ["did you mean deit-fast evaluate?"]),
        (["--data", "d", "--out", "o", "--resum-e"], ["no such option of this command (did you mean '--resume'?)"]),
        (["--data", "d", "--out", "o", "--batch", "8"], ["the word run.global_batch=VALUE?) (see --help)"]),
    ],
)  # fmt: skip
def test_options_of_other_tools(words: list[str], says: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "demo_pretrain", *words]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(says)
    assert all(text in line for text, line in zip(says, lines, strict=True))


def test_a_command_that_is_mistyped(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["evalaute", "x"])
    assert ended.value.code == 2
    assert "(did you mean 'evaluate'?)" in capsys.readouterr().err


def completed(line: str, folder: Path) -> set[str]:
    """What a shell gets for a line, by argcomplete's protocol."""
    asked = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_TYPE": "9",
             "_ARGCOMPLETE_STDOUT_FILENAME": str(folder / "found"), "_ARGCOMPLETE_IFS": "\n"}  # fmt: skip
    environment = {**os.environ, **asked, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-m", "deit_fast.cli"], cwd=folder, env=environment, check=True, timeout=60)
    return {each.strip() for each in (folder / "found").read_text().split("\n")}


def test_completion(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").touch()
    assert completed("deit-fast ev", tmp_path) == {"evaluate"}
    found = completed("deit-fast train deit3_s", tmp_path)
    assert found == {name for name in list_recipes() if name.startswith("deit3_s")}
    assert completed("deit-fast train mi", tmp_path) == {"mine.toml"}
    assert completed("deit-fast train demo_pretrain optim.l", tmp_path) == {"optim.lr=", "optim.layer_decay="}
    assert "--init" in completed("deit-fast train --in", tmp_path)


def test_completion_of_choices() -> None:
    assert completion.complete_word("run.precision=") == [f"run.precision={each}" for each in ("auto", "bf16", "fp32")]
    assert set(completion.complete_word("optim.name=")) == {f"optim.name={each}" for each in ("lamb", "adamw", "sgd")}
    assert completion.complete_word("optim.nothing=") == []


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_completion_code(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    assert "deit-fast" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words", [["show"], ["show", "demo_pretrain"], ["zoo"], ["zoo", "--json"], ["completion", "zsh"]]
)
def test_a_reader_that_leaves(words: list[str]) -> None:
    """As `| head -c 0`: nothing on stderr, and no failure."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "deit_fast.cli", *words], stdout=writing, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True, timeout=120,
    )  # fmt: skip
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("command", ["pipeline", "benchmark"])
def test_commands_of_other_modules(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: deit-fast {command}")


def test_names_that_are_no_utf8_are_printed(folder_data: Path, tmp_path: Path) -> None:
    """Files of an old disk, in a locale of UTF-8: Python's own streams would refuse to print their names."""
    image = tmp_path / os.fsdecode(b"Stra\xdfe.jpg")
    shutil.copyfile(next((folder_data / "val").rglob("*.jpg")), image)
    recipe = get_recipe("demo_pretrain", ["model.num_classes=3", "model.image_size=32"])
    run = tmp_path / os.fsdecode(b"r\xfcn")
    (run / "checkpoints").mkdir(parents=True)
    (run / "recipe.json").write_text(json.dumps(recipe.model_dump(mode="json")))
    with pytest.raises(RunError, match="is the folder of a run without a checkpoint"):
        load_weights(run)
    content = {"model": build_model(recipe.model).state_dict(), "recipe": recipe.model_dump(mode="json"), "ema": None}
    classes = sorted(each.name for each in (folder_data / "val").iterdir())
    save_checkpoint(tmp_path / "last.pt", content | {"classes": classes})
    shutil.copyfile(tmp_path / "last.pt", run / "checkpoints" / "last.pt")
    csv = tmp_path / "scores.csv"
    words = [["predict", str(run), str(image)], ["predict", str(run), str(image), "--csv"],
             ["evaluate", str(run), "--data", str(folder_data), "--csv", str(csv)],
             ["report", str(run), "--no-images"], ["convert", str(run), str(run) + "-timm"],
             ["train", "demo_pretrain", "--data", str(folder_data), "--out", str(run)]]  # fmt: skip
    code = f"from deit_fast.cli.main import main\nprint([main(each) for each in {words!r}])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8:strict"},
    )  # fmt: skip
    lines = done.stdout.decode().splitlines()
    assert re.findall(r"\d", lines[-1]) == list("000022"), done.stderr.decode()
    assert [line.split(": ")[-1] for line in done.stderr.decode().splitlines()] == ["expected a path in UTF-8"] * 2
    assert sum(r"Stra\xdfe.jpg" in line for line in lines) == 1
    assert sum(r"Stra\udcdfe.jpg" in line for line in lines) == 3  # of the table for programs
    assert os.fsencode(run) in csv.read_bytes()


def test_a_command_of_the_benchmarks_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["benchmark", "throughputs"])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("deit-fast benchmark: argument command: invalid choice: 'throughputs'")
    assert "(did you mean 'throughput'?)" in line


def test_what_words_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "deit3_base_1k_192", "--changed", "optim.lr=1e-3", "data.repeats=1"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [["data.repeats=1", "#", "was", "3"], ["optim.lr=0.001", "#", "was", "0.003"]]
    (tmp_path / "mine.toml").write_text('base = "demo_pretrain"\n[schedule]\nepochs = 7\n')
    assert main(["show", str(tmp_path / "mine.toml"), "--changed"]) == 0
    assert capsys.readouterr().out.startswith("schedule.epochs=7.0 ")
    assert main(["show", "demo_pretrain", "--changed"]) == 0
    assert capsys.readouterr().out == "as demo_pretrain\n"
    assert main(["show", "--changed"]) == 2
    assert "--changed: expected with a recipe's name" in capsys.readouterr().err
