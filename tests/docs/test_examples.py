"""The examples work on the demo's digits. docs/examples.md has their commands, which tests/docs/test_blocks.py runs."""

import importlib.util
import os
import re
from pathlib import Path
from types import ModuleType

import nbformat
import numpy as np
import pytest
import torch
from nbclient import NotebookClient

from tests.conftest import ROOT
from tests.docs.blocks import programs_of
from tests.docs.reader import Reader

EXAMPLES = ROOT / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_is_on_the_page() -> None:
    page = (ROOT / "docs" / "examples.md").read_text(encoding="utf-8")
    assert set(re.findall(r"examples/[\w.]+\w", page)) == {f"examples/{path.name}" for path in EXAMPLES.iterdir()}


def test_the_script_for_own_images_has_commands_that_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    reader = Reader(tmp_path, real=False)
    reader.variables |= {"1": "photos", "2": "runs/photos"}
    lines = (EXAMPLES / "finetune_own_images.sh").read_text(encoding="utf-8").splitlines()
    names = []
    for line in lines:
        for program in programs_of(line, reader.variables):
            if program.words[0] != "set":
                assert reader.follow_program(program) is False, line
                names.append(program.words[1])
    assert names == ["data", "train", "evaluate", "report", "predict", "convert"]


def test_neighbours_and_metrics_equal_counting() -> None:
    nearest = load("feature_extraction").nearest_accuracy
    angles = torch.tensor([0.0, 0.1, 0.2, 2.0, 2.1, 2.2])
    features = torch.stack([angles.cos(), angles.sin()], 1) * torch.arange(1.0, 7.0)[:, None]
    assert nearest(features, torch.tensor([0, 0, 0, 1, 1, 1]), k=1) == 100
    assert nearest(features, torch.tensor([0, 0, 1, 1, 1, 0]), k=1) == pytest.approx(400 / 6)

    metrics = load("own_metric")
    assert metrics.balanced_accuracy(["a", "a", "a", "b"], ["a", "a", "b", "b"]) == pytest.approx(100 * (2 / 3 + 1) / 2)
    # Bins of a half: in the lower one 1 of 2 is right at a mean confidence of 0.3, in the upper one 1 of 2 at 0.9.
    assert metrics.calibration_error([True, False, True, False], [0.2, 0.4, 0.8, 1.0], bins=2) == pytest.approx(30)


def test_a_pipeline_of_ones_own_has_a_training_and_an_evaluation_for_each_seed() -> None:
    from deit_fast.pipelines.stages import sort_stages

    stages = load("own_pipeline").seeded_stages("demo_pretrain", [3, 5], "digits", "out", ["schedule.epochs=1"])
    assert [stage.name for stage in sort_stages(stages)[:2]] == ["train_3", "train_5"]
    assert {"run.seed=5", "schedule.epochs=1"} <= set(stages[2].arguments)
    assert stages[3].needs == ("train_5",)


@pytest.mark.soak
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = nbformat.read(EXAMPLES / "notebook.ipynb", as_version=4)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    said = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    (top1,) = re.findall(r"top-1 after 4 epochs: ([\d.]+) %", said)
    assert float(top1) > 20  # of ten classes, after four epochs
    assert "(80, 128)" in said
    pictures = [output for cell in notebook.cells for output in cell.get("outputs", []) if "image/png" in str(output)]
    assert len(pictures) == 2
    assert np.isfinite(float(re.findall(r"top-5 ([\d.]+) %", said)[0]))
