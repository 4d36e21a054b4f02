"""README's Python, run in a folder as `make demo` leaves it; a training there is one of an epoch."""

import functools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import deit_fast
from tests.conftest import ROOT

SHORT = ["schedule.epochs=1", "schedule.warmup_epochs=0", "run.global_batch=8"]


def digits(folder: Path) -> None:
    """Ten classes of images with README's names."""
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        for label in range(10):
            for name in ("0000.jpg", "0023.jpg"):
                path = folder / split / str(label) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(random.integers(0, 255, (24, 24, 3), np.uint8)).save(path)


def test_python_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digits(tmp_path / "runs" / "digits")
    monkeypatch.chdir(tmp_path)
    real = deit_fast.train

    @functools.wraps(real)
    def short(*arguments: Any, overrides: tuple[str, ...] = (), **options: Any) -> Any:
        return real(*arguments, overrides=[*overrides, *SHORT], **options)

    monkeypatch.setattr(deit_fast, "train", short, raising=False)
    short("demo_pretrain", "runs/digits", "runs/demo/pretrain")
    found = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    seen: dict[str, Any] = {}
    with pytest.warns(UserWarning, match="fitted to deit3_nano_patch4"):  # of another number of classes
        exec(found[0], seen)
    assert seen["features"].shape == (1, 128)
    assert seen["scores"]["images"] == 20
