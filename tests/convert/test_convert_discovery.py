"""A codebase is one file: what happens where two recognise the same weights."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.oracles.foreign_checkpoints import DEIT3
from tests.training.test_train import environment

RIVAL = """
from deit_fast.convert.names import Codebase, TimmWeights, facebook

CODEBASE = Codebase("a rival", lambda tensors: "blocks.0.gamma_1" in tensors, facebook.CODEBASE.to_timm, priority={})
"""
LOAD = """
import sys
from pathlib import Path

from deit_fast.convert import names
from deit_fast.convert.detect import load_weights

names.__path__.append(sys.argv[1])
try:
    print(load_weights(Path(sys.argv[2])).source)
except RuntimeError as error:
    print(error)
"""


@pytest.mark.parametrize(("priority", "found"), [
    (-1, "facebookresearch/deit"),
    (0, "recognised by facebook and rival: expected one of them to have the higher priority"),
    (1, "a rival"),
])  # fmt: skip
def test_the_highest_priority_wins_and_a_tie_is_refused(tmp_path: Path, priority: int, found: str) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "rival.py").write_text(RIVAL.format(priority))
    torch.save({"model": DEIT3}, tmp_path / "x.pth")
    command = [sys.executable, "-c", LOAD, str(tmp_path / "more"), str(tmp_path / "x.pth")]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith(found)
