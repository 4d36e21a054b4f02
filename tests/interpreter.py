"""Triton's interpreter: the cases of a test file run on a GPU, or in a child process on the CPU if there is no GPU.

Triton decides at import whether to interpret. A file that uses `case` and `DEVICE` from here runs its kernels in the
process that `run_interpreted` starts; in any other process its cases are marked gpu.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
case: Any = (lambda test: test) if INTERPRETED else pytest.mark.gpu


def run_interpreted(*files: str) -> None:
    """Runs the tests of these files in a process in which Triton interprets."""
    if INTERPRETED:
        pytest.skip("this is the interpreter")
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *files]
    done = subprocess.run(
        command, cwd=Path(__file__).resolve().parents[1], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout


class Accesses:
    """Addresses that kernels read and write from its creation on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from triton.runtime.interpreter import InterpreterBuilder

        self.bytes = 0
        self.read: set[int] = set()
        self.written: set[int] = set()
        for name, addresses in (("load", self.read), ("store", self.written)):
            self._watch(monkeypatch, InterpreterBuilder, f"create_masked_{name}", addresses)

    @property
    def distinct(self) -> int:
        """The number of bytes accessed; a byte counts once if it is read and once if it is written."""
        return len(self.read) + len(self.written)

    def _watch(self, monkeypatch: pytest.MonkeyPatch, builder: Any, name: str, addresses: set[int]) -> None:
        plain = getattr(builder, name)

        def watched(own: Any, ptrs: Any, *rest: Any) -> Any:
            mask = rest[0 if name.endswith("load") else 1]
            size = ptrs.get_element_ty().primitive_bitwidth // 8
            found = np.asarray(ptrs.data)[np.asarray(mask.data, bool)]
            self.bytes += size * found.size
            addresses.update((found.astype(np.int64)[:, None] + np.arange(size)).ravel().tolist())
            return plain(own, ptrs, *rest)

        monkeypatch.setattr(builder, name, watched)
