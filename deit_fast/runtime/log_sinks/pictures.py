"""NAME.png in the run folder, for each picture."""

from pathlib import Path

from torch import Tensor
from torchvision.utils import save_image

from deit_fast.runtime.log_sinks import LogSink, Sink


class Pictures(Sink):
    """A PNG file for each picture, in the run folder."""

    def __init__(self, folder: Path, step: int) -> None:
        self._folder = folder

    def image(self, name: str, grid: Tensor, step: int) -> None:
        """Writes NAME.png from a picture, uint8 [3, H, W]."""
        save_image(grid.float() / 255, self._folder / f"{name}.png")


LOG_SINK = LogSink(Pictures, always=True)
