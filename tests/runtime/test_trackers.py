"""W&B and MLflow through their own packages, offline: figures, hyperparameters, and one run over several starts."""

import json
from pathlib import Path

import pytest

from deit_fast.recipe.table import get_recipe
from deit_fast.runtime.errors import RunError
from deit_fast.runtime.log_sinks import Sink, chosen_sinks


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "recipe.json").write_text(json.dumps(get_recipe("demo_pretrain").model_dump(mode="json")))
    for key, value in {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "HOME": str(tmp_path)}.items():
        monkeypatch.setenv(key, value)
    for key in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "WANDB_PROJECT"):
        monkeypatch.delenv(key, raising=False)
    return folder


def opened(name: str, folder: Path, step: int) -> Sink:
    return chosen_sinks([name])[name].open(folder, step)


def test_mlflow(run: Path) -> None:
    tracking = pytest.importorskip("mlflow", reason="needs mlflow, from the extra mlflow")
    for step in (10, 20):  # two starts of one run
        sink = opened("mlflow", run, step - 10)
        sink.record("train", step, {"loss": 1 / step, "lr": float("nan")})
        sink.close()
    client = tracking.MlflowClient(f"sqlite:///{run / 'mlflow.db'}")
    (found,) = client.search_runs([client.get_experiment_by_name("deit_fast").experiment_id])
    assert found.info.run_name == "photos"
    assert found.info.status == "FINISHED"
    assert found.data.params["optim.name"] == "lamb"
    history = client.get_metric_history(found.info.run_id, "train/loss")
    assert [(each.step, each.value) for each in history] == [(10, 0.1), (20, 0.05)]


def test_wandb(run: Path) -> None:
    wandb = pytest.importorskip("wandb", reason="needs wandb, from the extra wandb")
    for step in (10, 20):
        sink = opened("wandb", run, step - 10)
        sink.record("train", step, {"loss": 1 / step})
        sink.close()
    wandb.teardown()  # as a process does at its end: finish() of wandb 0.31 may return before the file is written
    kept = json.loads((run / "trackers.json").read_text())["wandb"]
    files = sorted(run.glob("wandb/offline-run-*/run-*.wandb"))
    assert [path.name for path in files] == [f"run-{kept}.wandb"] * 2  # both starts are parts of one run
    assert all(b"train/loss" in path.read_bytes() for path in files)
    assert b"optim.lr" in files[0].read_bytes()


@pytest.mark.parametrize(("name", "package"), [("wandb", "wandb"), ("mlflow", "mlflow")])
def test_a_package_that_is_missing(name: str, package: str, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(RunError, match=rf"^run.trackers='{name}': expected the package {package}: pip install"):
        opened(name, run, 0)


def test_a_tracker_that_is_none() -> None:
    with pytest.raises(RunError, match=r"^run.trackers='wandbb': expected names of .*\(did you mean 'wandb'\?\)"):
        chosen_sinks(["wandbb"])
