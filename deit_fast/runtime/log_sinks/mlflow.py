"""MLflow, through its own client: the server at MLFLOW_TRACKING_URI, or mlflow.db in the run folder.

Releases of MLflow from 2026 refuse the file store, a plain folder of runs, unless MLFLOW_ALLOW_FILE_STORE=true is set.
"""

import importlib.util
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path

from deit_fast.runtime.errors import RunError, one_line
from deit_fast.runtime.log_sinks import LogSink, Sink
from deit_fast.runtime.log_sinks.tracked import kept_id, read_hyperparameters, tolerated

_EXPERIMENT = "deit_fast"
_BATCH = 100  # most parameters in one call
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
"""Defaults here: with MLflow's own a server that is gone would hold a run up for four minutes at each line."""


class MLflow(Sink):
    """One MLflow run for a run folder, across all starts: its id is kept in the folder."""

    def __init__(self, folder: Path, step: int) -> None:
        if importlib.util.find_spec("mlflow") is None:
            raise RunError("run.trackers='mlflow': expected the package mlflow: pip install 'deit_fast[mlflow]'")
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        folder = folder.resolve()
        for name, value in _PATIENCE.items():
            os.environ.setdefault(name, value)
        self._error = MlflowException
        try:
            self._client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder / 'mlflow.db'}")
            self._id = kept_id(folder, "mlflow", lambda: self._create(folder))
            self._client.update_run(self._id, status="RUNNING")
        except (MlflowException, OSError, ImportError) as error:
            raise RunError(f"run.trackers='mlflow': {one_line(error)[:300]}") from None

    def record(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = round(1000 * time.time())
        metrics = [Metric(f"{kind}/{key}", value, now, step) for key, value in values.items() if math.isfinite(value)]
        with tolerated(self._error):
            self._client.log_batch(self._id, metrics=metrics)

    def close(self) -> None:
        with tolerated(self._error):
            self._client.set_terminated(self._id)

    def _create(self, folder: Path) -> str:
        from mlflow.entities import Param

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _EXPERIMENT)
        experiment = self._client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment is not None else self._client.create_experiment(name)
        run = self._client.create_run(number, run_name=folder.name).info.run_id
        params = [Param(key, str(value)[:500]) for key, value in read_hyperparameters(folder).items()]
        for start in range(0, len(params), _BATCH):
            self._client.log_batch(run, params=params[start : start + _BATCH])
        return run


LOG_SINK = LogSink(MLflow)
