"""What a run tells: metrics.jsonl, TensorBoard, curves.png, a progress bar or plain lines."""

import contextlib
import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torchvision.utils import make_grid, save_image
from tqdm import tqdm

from deit_fast.runtime.files import atomic_path, finite

Record = dict[str, Any]


def read_metrics(path: Path) -> list[Record]:
    """Records of a metrics.jsonl; a last line cut off by a crash is left out."""
    records = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return records


@dataclass
class Window:
    """Wall time since the last log."""

    start: float = field(default_factory=time.perf_counter)
    steps: int = 0
    waited: float = 0.0
    is_first: bool = True


class MetricsLog:
    """The metrics of one run folder, from `step` on: what a crash left behind later than that is dropped."""

    def __init__(self, folder: Path, step: int, total: int) -> None:
        self.path = folder / "metrics.jsonl"
        kept = [record for record in read_metrics(self.path) if record["step"] <= step]
        with atomic_path(self.path) as temporary:
            temporary.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
        self._file = open(self.path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 (open for the whole run)
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else 0)
        self._bar = tqdm(total=total, initial=step, unit="step", dynamic_ncols=True) if sys.stderr.isatty() else None

    def record(self, kind: str, step: int, values: dict[str, float]) -> None:
        """Appends {"kind", "step", **values}; non-finite values become null, which JSON can hold.

        On a full disk the values are only said: a run of days does not end for want of a line.
        """
        try:
            self._file.write(json.dumps({"kind": kind, "step": step, **finite(values)}) + "\n")
            for key, value in values.items():
                self._board.add_scalar(f"{kind}/{key}", value, step)
        except OSError as error:
            self.say(f"step {step}: not in metrics.jsonl and TensorBoard ({error.strerror})")
        self.say(f"step {step}  " + "  ".join(f"{key} {value:.4g}" for key, value in values.items()))

    def images(self, name: str, images: Tensor, step: int) -> None:
        """A grid of images [B, 3, H, W] uint8, to TensorBoard and NAME.png."""
        grid = make_grid(images, nrow=8)
        self._board.add_image(name, grid, step)
        save_image(grid.float() / 255, self.path.with_name(f"{name}.png"))

    def say(self, line: str) -> None:
        if self._bar is None:
            print(line, flush=True)
        else:
            self._bar.write(line)

    def advance(self) -> None:
        if self._bar is not None:
            self._bar.update()

    def close(self) -> None:
        with contextlib.suppress(OSError):  # what `record` said already
            self._file.close()
            self._board.close()
        if self._bar is not None:
            self._bar.close()


def plot_curves(folder: Path, title: str) -> Path:
    """Draws loss, learning rate, accuracy and throughput of metrics.jsonl over the steps, as curves.png."""
    from matplotlib.figure import Figure  # half a second that only the end of a run needs

    records = read_metrics(folder / "metrics.jsonl")
    panels = (
        ("loss", "train", ("loss",)),
        ("learning rate", "train", ("lr",)),
        ("accuracy, %", "eval", ("top1", "top5", "ema_top1")),
        ("images per second", "train", ("images_per_second",)),
    )
    figure = Figure(figsize=(11, 7), layout="constrained")
    figure.suptitle(title)
    for axes, (label, kind, keys) in zip(figure.subplots(2, 2).flat, panels, strict=True):
        for key in keys:
            points = [(r["step"], r[key]) for r in records if r["kind"] == kind and r.get(key) is not None]
            if points:
                axes.plot(*zip(*points, strict=True), label=key, marker="o" if kind == "eval" else None)
        axes.set(xlabel="step", ylabel=label)
        axes.grid(alpha=0.3)
        if label == "images per second":
            axes.set_ylim(bottom=0)
        if len(keys) > 1 and axes.lines:
            axes.legend()
    path = folder / "curves.png"
    figure.savefig(path, dpi=110)
    return path
