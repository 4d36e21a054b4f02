"""tensorboard/: a curve for each figure, and the pictures."""

import functools
import threading
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from deit_fast.runtime.log_sinks import LogSink, Sink

_SCORES = "eval/top1", "eval/loss", "train/loss"  # figures beside the hyperparameters in TensorBoard's table


class TensorBoard(Sink):
    """A TensorBoard event file in the run folder; steps after `step` are purged."""

    def __init__(self, folder: Path, step: int) -> None:
        _quiet_writer()
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else 0)

    def record(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        for key, value in values.items():
            self._board.add_scalar(f"{kind}/{key}", value, step)

    def image(self, name: str, grid: Tensor, step: int) -> None:
        """Adds a picture, uint8 [3, H, W], at the step."""
        self._board.add_image(name, grid, step)

    def close(self) -> None:
        self._board.close()


@functools.cache
def _quiet_writer() -> None:
    """TensorBoard's own thread ends without a traceback where the disk is full: the next `record` raises its error."""
    others = threading.excepthook

    def hook(ended: threading.ExceptHookArgs) -> None:
        if not (isinstance(ended.exc_value, OSError) and type(ended.thread).__module__.startswith("tensorboard.")):
            others(ended)

    threading.excepthook = hook


LOG_SINK = LogSink(TensorBoard)
