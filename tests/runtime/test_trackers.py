"""W&B and MLflow through their own packages, offline: figures, hyperparameters, and one run over several starts."""

import json
from pathlib import Path

import pytest

from deit_fast.recipe.table import get_recipe
from deit_fast.runtime.errors import RunError
from deit_fast.runtime.log_sinks import LogSink, Sink, chosen_sinks
from deit_fast.runtime.log_sinks.json_lines import read_metrics
from deit_fast.runtime.metrics_log import MetricsLog


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


def test_a_server_that_goes_away_costs_a_line(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """MLflow's and W&B's own errors, as of a server that is restarted, end no run."""
    mlflow = pytest.importorskip("mlflow", reason="needs mlflow, from the extra mlflow")
    wandb = pytest.importorskip("wandb", reason="needs wandb, from the extra wandb")

    def fail(*_: object, **__: object) -> None:
        raise failure

    with MetricsLog(run, 0, chosen_sinks(["mlflow", "wandb"])) as log:
        failure: Exception = mlflow.exceptions.MlflowException("API request failed:\nMax retries exceeded")
        monkeypatch.setattr(mlflow.MlflowClient, "log_batch", fail)
        log.record("train", 10, {"loss": 0.5})
        failure = wandb.errors.CommError("the service is gone")
        monkeypatch.setattr(wandb.Run, "log", fail)
        monkeypatch.setattr(mlflow.MlflowClient, "log_batch", lambda *_, **__: None)
        log.record("train", 20, {"loss": 0.4})
        failure = mlflow.exceptions.MlflowException("gone")
        monkeypatch.setattr(mlflow.MlflowClient, "set_terminated", fail)
    said = [line for line in capsys.readouterr().out.splitlines() if "not in" in line]
    assert said == ["step 10: not in mlflow (API request failed: Max retries exceeded)",
                    "step 20: not in wandb (the service is gone)"]  # fmt: skip
    assert [each["step"] for each in read_metrics(run / "metrics.jsonl")] == [10, 20]


def test_a_tracker_that_refuses_leaves_no_other_running(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracking = pytest.importorskip("mlflow", reason="needs mlflow, from the extra mlflow")
    sinks = chosen_sinks(["mlflow"])
    refusing = LogSink(lambda folder, step: opened("wandb", folder, step))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "wandb" else True)
    with pytest.raises(RunError, match="expected the package wandb"):
        MetricsLog(run, 0, {**sinks, "wandb": refusing})
    client = tracking.MlflowClient(f"sqlite:///{run / 'mlflow.db'}")
    (found,) = client.search_runs([client.get_experiment_by_name("deit_fast").experiment_id])
    assert found.info.status == "FINISHED"


def test_a_server_that_is_not_there(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason="needs mlflow, from the extra mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(RunError, match=r"^run.trackers='mlflow': .*(127\.0\.0\.1|refused)"):
        opened("mlflow", run, 0)


@pytest.mark.parametrize(("name", "package"), [("wandb", "wandb"), ("mlflow", "mlflow")])
def test_a_package_that_is_missing(name: str, package: str, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(RunError, match=rf"^run.trackers='{name}': expected the package {package}: pip install"):
        opened(name, run, 0)


def test_a_tracker_that_is_none() -> None:
    with pytest.raises(RunError, match=r"^run.trackers='wandbb': expected names of .*\(did you mean 'wandb'\?\)"):
        chosen_sinks(["wandbb"])
