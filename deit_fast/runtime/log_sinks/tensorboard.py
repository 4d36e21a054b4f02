"""tensorboard/: a curve for each figure, and the pictures."""

import functools
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from deit_fast.runtime.log_sinks import LogSink, Sink
from deit_fast.runtime.log_sinks.tracked import read_hyperparameters

_SCORES = "eval/top1", "eval/loss", "train/loss"  # figures beside the hyperparameters in TensorBoard's table


class TensorBoard(Sink):
    """A TensorBoard event file in the run folder; entries after `step` are purged."""

    def __init__(self, folder: Path, step: int) -> None:
        self._folder, self._purge_step = folder / "tensorboard", step + 1 if step else 0
        self._pictures: list[tuple[str, Tensor, int]] = []

    def record(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        for key, value in values.items():
            self._board.add_scalar(f"{kind}/{key}", value, step)
        self._add_pictures()

    def image(self, name: str, grid: Tensor, step: int) -> None:
        """Adds a picture, uint8 [3, H, W], at the step; pictures before the first figures are added with these."""
        self._pictures.append((name, grid, step))
        if "_board" in vars(self):
            self._add_pictures()

    def close(self) -> None:
        if self._pictures or "_board" in vars(self):
            self._add_pictures()
            self._board.close()

    def _add_pictures(self) -> None:
        while self._pictures:
            self._board.add_image(*self._pictures.pop(0))

    @functools.cached_property
    def _board(self) -> Any:
        """torch's writer. Its import takes a third of a second, so it is imported after the first step."""
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        _quiet_writer()
        board: Any = SummaryWriter(str(self._folder), purge_step=self._purge_step)
        values = read_hyperparameters(self._folder.parent)
        for summary in hparams(values, dict.fromkeys(_SCORES, 0.0)):
            board.file_writer.add_summary(summary)
        rows = ["| key | value |", "|---|---|", *(f"| {key} | {value} |" for key, value in values.items())]
        board.add_text("recipe", "\n".join(rows))
        return board


@functools.cache
def _quiet_writer() -> None:
    """Silences the traceback of TensorBoard's own thread on a full disk: the next `record` raises the error."""
    others = threading.excepthook

    def hook(ended: threading.ExceptHookArgs) -> None:
        if not (isinstance(ended.exc_value, OSError) and type(ended.thread).__module__.startswith("tensorboard.")):
            others(ended)

    threading.excepthook = hook


LOG_SINK = LogSink(TensorBoard)
