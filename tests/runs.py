"""A training on a cluster, seen through its files and its log, for any scheduler."""

import json
import subprocess
import sys
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.conftest import ROOT

COMPONENTS = ROOT / "components" / "deit.py"


class Run:
    """A training of the demo's recipe."""

    out: Path
    """Its folder as this machine sees it."""

    @abstractmethod
    def log(self) -> str:
        """The processes' output of all attempts."""

    @abstractmethod
    def states(self) -> list[str]:
        """The states that the scheduler reports."""

    def step(self) -> int:
        """The last step in the metrics."""
        path = self.out / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)

    def wait_until(self, condition: Callable[[], object], seconds: float, what: str) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"{what}: not after {seconds:g} s; {self.states()}\n{self.log()}"
            time.sleep(0.3)

    def wait_for_checkpoint(self) -> None:
        """Waits until a disturbance could lose work, while work is left to do."""
        path = self.out / "checkpoints" / "last.pt"
        self.wait_until(path.exists, 90, "the first checkpoint")

    def result(self) -> dict[str, object]:
        return json.loads((self.out / "result.json").read_text())

    def weights(self) -> dict[str, torch.Tensor]:
        return load_file(self.out / "checkpoints" / "last.safetensors")

    def restarts(self) -> int:
        return self.log().count("resumed from")


def check_same(run: Run, undisturbed: Run) -> None:
    """Checks that the weights are bit-identical, and that the metrics have every step exactly once."""
    assert run.result()["step"] == undisturbed.result()["step"]
    expected, found = undisturbed.weights(), run.weights()
    different = [name for name in expected if not torch.equal(expected[name], found[name])]
    assert not different, f"{len(different)} of {len(expected)} tensors differ"
    steps = [line for line in (run.out / "metrics.jsonl").read_text().splitlines() if '"train"' in line]
    assert len(steps) == len(set(steps)) == len((undisturbed.out / "metrics.jsonl").read_text().split('"train"')) - 1


def run_torchx(*words: str, cwd: Path, environment: Mapping[str, str]) -> str:
    """The output of TorchX's command line, which has to succeed."""
    command = [str(Path(sys.executable).with_name("torchx")), *words]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr  # logs go to stderr
