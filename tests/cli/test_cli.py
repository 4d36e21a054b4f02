import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deit_fast.recipe.table import get_recipe, list_recipes
from tests.conftest import ROOT

# Runs the command line and says on the last line of stderr whether torch or DALI had been imported by then.
PROBE = (
    "import sys\nfrom deit_fast.cli.main import main\n"
    "try:\n    code = main(sys.argv[1:])\nexcept SystemExit as stop:\n    code = stop.code or 0\n"
    "print('HEAVY' if {'torch', 'nvidia.dali'} & sys.modules.keys() else 'LIGHT', file=sys.stderr)\nsys.exit(code)"
)


def run(*words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", PROBE, *words], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["show", "deit3_smal_1k_224"], "did you mean 'deit3_small_1k_224'"),
        (["show", "demo_pretrain", "optim.lr=x"], "optim.lr='x': expected number"),
        (["show", "demo_pretrain", "--images", "0"], "--images: expected a number of 1 or more, got '0'"),
        (["show", "demo_pretrain", "--images", "9", "--json"], "--images 9: expected with a recipe's name and without"),
        (["show", "--images", "9"], "--images 9: expected with a recipe's name"),
        (["show", "demo_pretrain", "--jsn"], "--jsn: no such option"),
        (["train", "nope", "--data", "d", "--out", "o"], "recipe 'nope'"),
        (
            ["train", "demo_pretrain", "--data", "d", "--out", "o", "optim.name=adam"],
            "expected 'adamw', 'lamb' or 'sgd'",
        ),
        (["train", "demo_pretrain", "optim.lrr=1", "--data", "d", "--out", "o"], "did you mean 'lr'"),
        (["train", "demo_pretrain", "--out", "o"], "the following arguments are required: --data (see"),
        (["plan"], "the following arguments are required: recipe (see"),
        (
            ["train", "demo_pretrain", "--data", "d", "--out", "o", "--init", "absent.pt"],
            "absent.pt: no such checkpoint",
        ),
        (["train", "demo_pretrain", "--data", "d", "--out", "o", "--resume", "absent.pt"], "absent.pt: no such"),
        (["evaluate", "absent.pt", "--data", "d"], "absent.pt: no such checkpoint"),
        (["data", "preview", "demo_pretrain", "--data", "d", "--out", "x.png", "mix.mixup=-1"], "mix.mixup=-1"),
        (["trian"], "invalid choice"),
        ([], "expected one of train, evaluate, convert"),
    ],
)
def test_a_mistake_is_one_line_at_once(tmp_path: Path, words: list[str], says: str) -> None:
    result = run(*words, cwd=tmp_path)
    *message, weight = result.stderr.strip().splitlines()
    assert result.returncode == 2
    assert len(message) == 1, result.stderr
    assert says in message[0]
    assert weight == "LIGHT"
    assert not result.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "command", [[], ["train"], ["evaluate"], ["show"], ["data"], ["data", "demo"], ["data", "preview"]]
)
def test_help_has_an_example(command: list[str]) -> None:
    result = run(*command, "--help")
    assert result.returncode == 0
    if command != ["data"]:
        assert "Example: deit-fast" in " ".join(result.stdout.split())
    assert "LIGHT" in result.stderr


def test_missing_data_is_one_line(tmp_path: Path) -> None:
    result = run("train", "demo_pretrain", "--data", str(tmp_path / "absent"), "--out", str(tmp_path / "out"))
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert f"{tmp_path}/absent" in result.stderr
    assert not (tmp_path / "out").exists()


def test_show_lists_every_recipe() -> None:
    lines = run("show").stdout.splitlines()
    assert [line.split()[0] for line in lines if line.startswith("  ")] == list_recipes()
    assert "DeiT: PaddlePaddle/PASSL" in lines
    assert max(map(len, lines)) <= 100


def test_show_prints_words_that_can_be_given_back(tmp_path: Path) -> None:
    text = run("show", "deit3_base_1k_384_ft", "optim.lr=2e-5", "optim.ema_decay=null").stdout
    words = list(filter(None, (line.split("  #")[0].strip() for line in text.splitlines() if "  # " in line)))
    assert get_recipe("deit3_base_1k_384_ft", words) == get_recipe(
        "deit3_base_1k_384_ft", ["optim.lr=2e-5", "optim.ema_decay=null"]
    )


def test_show_counts_the_images_it_is_told() -> None:
    text = run("show", "deit3_small_1k_224", "--images", "1024000").stdout
    assert "  epoch             1,024,000 views of 341,334 images; 500 steps of 2,048 views" in text.splitlines()


def test_show_json_is_a_recipe_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(run("show", "deit3_base_1k_192", "optim.lr=1e-3", "--json").stdout)
    assert get_recipe(str(path)) == get_recipe("deit3_base_1k_192", ["optim.lr=1e-3"])
    assert json.loads(path.read_text())["optim"]["lr"] == 1e-3
