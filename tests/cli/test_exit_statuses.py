"""Each status of the table, as the command line ends with it, and the line that says why."""

import errno
import os
import re
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from deit_fast.cli.main import main
from deit_fast.runtime.exit_status import STATUS_BOARD, ExitStatus
from deit_fast.training.objective import BatchBuilder
from tests.training.test_train import WORDS

Prepare = Callable[[Path, pytest.MonkeyPatch], None]


def stop(number: signal.Signals) -> Prepare:
    def prepare(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        build = BatchBuilder.__call__

        def signalled(self: BatchBuilder, batch: object) -> object:
            os.kill(os.getpid(), number)
            return build(self, batch)  # type: ignore[arg-type]

        monkeypatch.setattr(BatchBuilder, "__call__", signalled)

    return prepare


def spoil_images(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for image in sorted((data / "train").rglob("*.jpg"))[::2]:
        image.write_bytes(b"no image")


def fill_disk(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(10**9, 10**9, 1000))


def nothing(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipe alone decides."""


@pytest.mark.parametrize(
    ("status", "words", "prepare", "line"),
    [
        (2, [], lambda data, _: shutil.rmtree(data), "found nothing there"),
        (3, ["optim.name=sgd", "optim.lr=1e30", "optim.max_grad_norm=null", "run.nonfinite_limit=1"], nothing,
         "was not finite"),
        (65, [], spoil_images, "images cannot be used"),
        (74, ["schedule.epochs=1", "schedule.warmup_epochs=0"], fill_disk, r"the disk at .* has 1000 bytes free, \d+ "
         "bytes too few"),
        (75, [], stop(signal.SIGTERM), "stopped by a signal"),
    ],
)  # fmt: skip
def test_a_training_ends_with_the_tables_status(
    folder_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    status: int, words: list[str], prepare: Prepare, line: str,
) -> None:  # fmt: skip
    data, board = shutil.copytree(folder_data, tmp_path / "data"), tmp_path / "board"
    monkeypatch.setenv(STATUS_BOARD, str(board))
    prepare(data, monkeypatch)
    command = ["train", "demo_pretrain", "--data", str(data), "--out", str(tmp_path / "run"), *WORDS, *words]
    assert main(command) == status
    told = capsys.readouterr().err
    assert "Traceback" not in told
    last = told.splitlines()[-1]
    assert last.startswith("deit-fast: ")
    assert re.search(line, last), last
    assert board.read_text() == f"0 {status}\n"


def test_an_interrupt_and_a_limit_on_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before there is anything to save."""
    raised: list[BaseException] = [KeyboardInterrupt(), ImportError("libdali.so: failed to map segment"), MemoryError()]
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1 << 30, 1 << 30))

    def fail(*_: object) -> None:
        raise raised.pop(0)

    monkeypatch.setattr("deit_fast.data.tools.demo.write_demo", fail)
    assert main(["data", "demo", str(tmp_path / "d")]) == ExitStatus.INTERRUPTED
    for _ in range(2):
        assert main(["data", "demo", str(tmp_path / "d")]) == ExitStatus.REFUSED
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 3
    assert told[1] == (
        "deit-fast: ulimit -v 1048576: expected more memory, or unlimited (libdali.so: failed to map segment)"
    )


def test_a_full_disk_does_not_hide_a_divergence(
    folder_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither the list of images nor the curves can be written."""

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("deit_fast.training.guards.atomic_path", full)
    monkeypatch.setattr("deit_fast.training.periodic.plot_curves", full)
    words = ["optim.name=sgd", "optim.lr=1e30", "optim.max_grad_norm=null", "run.nonfinite_limit=1"]
    command = ["train", "demo_pretrain", "--data", str(folder_data), "--out", str(tmp_path / "run"), *WORDS, *words]
    assert main(command) == ExitStatus.DIVERGED
    printed = capsys.readouterr()
    assert "was not finite" in printed.err
    assert "nonfinite.txt: not in the run folder (No space left on device)" in printed.out
    assert "curves.png: not in the run folder (No space left on device)" in printed.out


def test_a_diverged_run_leaves_what_there_is_to_see_in_its_store(
    folder_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEIT_FAST_CACHE", str(tmp_path / "cache"))
    words = ["optim.name=sgd", "optim.lr=1e30", "optim.max_grad_norm=null", "run.nonfinite_limit=1"]
    command = ["train", "demo_pretrain", "--data", str(folder_data), "--out", f"file://{tmp_path}/store/run"]
    assert main([*command, *WORDS, *words]) == ExitStatus.DIVERGED
    left = {path.name for path in (tmp_path / "store" / "run").iterdir()}
    assert {"nonfinite.txt", "curves.png", "metrics.jsonl"} <= left
