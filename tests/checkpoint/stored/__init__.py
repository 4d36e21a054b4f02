"""A small, interrupted run for each number of the checkpoints' format: `python -m tests.checkpoint.stored`.

The command writes format-N.tar.xz for today's number, once: the archive of a released version never changes.
"""

import lzma
import os
import tarfile
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from deit_fast.convert.own_format import FORMAT
from deit_fast.recipe.schema import Recipe
from deit_fast.recipe.table import get_recipe
from deit_fast.runtime.errors import StoppedError
from deit_fast.training import loop
from deit_fast.training.run import train
from deit_fast.zoo import ARCHITECTURES, Architecture

FOLDER = Path(__file__).parent
STEP, STEPS = 2, 4
MODEL = Architecture(embed_dim=2, depth=1, num_heads=1, patch_size=4, family="deit3", layer_scale=1e-4)
_WORDS = ["model.name=stored", "model.image_size=8", "model.num_classes=2", "run.global_batch=8", "optim.lr=1e-3",
          "schedule.epochs=2", "schedule.warmup_epochs=1", "run.precision=fp32", "run.log_every=1", "run.eval_every=1",
          "data.repeats=1", "mix.group=8", "run.keep_checkpoints=1",
          "data.may_change=true"]  # fmt: skip


def archive(number: int) -> Path:
    return FOLDER / f"format-{number}.tar.xz"


def unpack(number: int, folder: Path) -> Path:
    """The run folder."""
    with tarfile.open(fileobj=BytesIO(lzma.decompress(archive(number).read_bytes()))) as file:
        file.extractall(folder, filter="data")
    return folder / "run"


def recipe() -> Recipe:
    """The run's recipe. MODEL has to be in the zoo, as "stored"."""
    return get_recipe("demo_pretrain", _WORDS)


def write_images(folder: Path) -> None:
    """The data: enough for two steps."""
    for split in ("train", "val"):
        for number in range(16):
            path = folder / split / f"class{number % 2}" / f"{number:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((16, 16, 3), 10 * number, np.uint8)).save(path)


def write(folder: Path) -> None:
    """Writes the archive of this version's format from a run in `folder`."""
    ARCHITECTURES["stored"] = MODEL
    write_images(folder / "images")
    rate = loop.learning_rate

    def stop_in_time(schedule: object, lr: float, step: int, steps: int) -> float:
        if step == STEP - 1:
            os.kill(os.getpid(), 15)
        return rate(schedule, lr, step, steps)  # type: ignore[arg-type]

    loop.learning_rate = stop_in_time  # type: ignore[assignment]
    try:
        train(recipe(), str(folder / "images"), folder / "run")
    except StoppedError:
        content = BytesIO()
        with tarfile.open(fileobj=content, mode="w") as file:
            for name in ("recipe.json", "metrics.jsonl", *(f"checkpoints/step-000000{STEP}{s}" for s in _SUFFIXES)):
                file.add(folder / "run" / name, f"run/{name}", filter=_anonymous)
        archive(FORMAT).write_bytes(lzma.compress(content.getvalue(), preset=9 | lzma.PRESET_EXTREME))


_SUFFIXES = (".pt", ".safetensors", ".sha256")


def _anonymous(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = info.mtime = 0
    info.uname = info.gname = ""
    return info
