"""Weights & Biases, through its own package: project WANDB_PROJECT or deit_fast; offline with WANDB_MODE=offline.

Offline, wandb 0.31 completes the run's file at the end of the process, and not always before `finish` returns.
"""

import importlib.util
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from deit_fast.runtime.errors import RunError, one_line
from deit_fast.runtime.log_sinks import LogSink, Sink
from deit_fast.runtime.log_sinks.tracked import kept_id, read_hyperparameters


class WeightsAndBiases(Sink):
    """One W&B run for a run folder, across all starts: its id is kept in the folder."""

    def __init__(self, folder: Path, step: int) -> None:
        if importlib.util.find_spec("wandb") is None:
            raise RunError("run.trackers='wandb': expected the package wandb: pip install 'deit_fast[wandb]'")
        import wandb

        self._wandb = wandb
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "deit_fast"), dir=str(folder), name=folder.resolve().name,
                id=kept_id(folder, "wandb", lambda: secrets.token_hex(4)), resume="allow",
                config=read_hyperparameters(folder),
            )  # fmt: skip
        except (wandb.errors.Error, OSError) as error:
            raise RunError(f"run.trackers='wandb': {one_line(error)[:300]} (offline: WANDB_MODE=offline)") from None

    def record(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        self._run.log({f"{kind}/{key}": value for key, value in values.items()}, step=step)

    def image(self, name: str, grid: Tensor, step: int) -> None:
        """Adds a picture, uint8 [3, H, W], at the step."""
        self._run.log({name: self._wandb.Image(grid.permute(1, 2, 0).numpy())}, step=step)

    def close(self) -> None:
        self._run.finish()


LOG_SINK = LogSink(WeightsAndBiases)
