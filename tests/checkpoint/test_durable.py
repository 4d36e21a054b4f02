"""Whole runs whose checkpoints fail or get damaged: what is said, where they go on, and the same weights at the end."""

from pathlib import Path

import pytest
import torch

from deit_fast.checkpoint.format import verify_checkpoint
from deit_fast.cli import main as cli
from deit_fast.runtime.exit_status import ExitStatus
from tests.training.test_train import WORDS, last_weights

LENGTH = [*WORDS, "schedule.epochs=2", "run.checkpoint_every=4", "run.log_every=1", "run.eval_every=9"]


def run(data: Path, out: Path, *words: str) -> int:
    return cli.main(["train", "demo_pretrain", "--data", str(data), "--out", str(out), *LENGTH, *words])


@pytest.fixture(scope="module")
def expected(folder_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    out = tmp_path_factory.mktemp("straight") / "run"
    assert run(folder_data, out) == 0
    return last_weights(out)


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(weight, other[name]) for name, weight in one.items())


def test_a_full_disk_and_its_end(
    folder_data: Path,
    tmp_path: Path,
    expected: dict[str, torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, save = tmp_path / "run", torch.save

    def full_from_step_8(content: dict, path: Path) -> None:
        if content["step"] >= 8:
            raise OSError(28, "No space left on device")
        save(content, path)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full_from_step_8)
        assert run(folder_data, out) == ExitStatus.STORAGE_FAILED
    printed = capsys.readouterr()
    (line,) = [line for line in printed.out.splitlines() if "cannot be written" in line]
    assert "step-0000008.pt: cannot be written ([Errno 28] No space left on device); the one before it is whole" in line
    assert "step 12/12  " in printed.out  # the training went on
    (line,) = printed.err.splitlines()
    assert "step-0000012.pt: cannot be written" in line
    assert not (out / "result.json").exists()
    assert run(folder_data, out) == 0
    assert f"resumed from {out}/checkpoints/step-0000004.pt at step 4 of 12" in capsys.readouterr().out
    assert equal(last_weights(out), expected)


def test_a_crash_between_the_last_seal_and_its_links(folder_data: Path, tmp_path: Path) -> None:
    assert run(folder_data, tmp_path) == 0
    checkpoints = tmp_path / "checkpoints"
    (tmp_path / "result.json").unlink()
    before = (checkpoints / "step-0000008.sha256").read_text().replace("step-0000008", "last")
    for suffix, content in ((".pt", (checkpoints / "step-0000008.pt").read_bytes()), (".sha256", before.encode())):
        (checkpoints / f"last{suffix}").unlink()
        (checkpoints / f"last{suffix}").write_bytes(content)
    assert run(folder_data, tmp_path) == 0
    verify_checkpoint(checkpoints / "last.pt")
    assert (checkpoints / "last.pt").samefile(checkpoints / "step-0000012.pt")


def test_a_damaged_checkpoint_is_passed_over(
    folder_data: Path, tmp_path: Path, expected: dict[str, torch.Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert run(folder_data, out, "run.keep_checkpoints=3") == 0
    checkpoints = out / "checkpoints"
    kept = sorted(path.name for path in checkpoints.glob("*.pt"))
    assert kept == ["best.pt", "last.pt", "step-0000004.pt", "step-0000008.pt", "step-0000012.pt"]
    (out / "result.json").unlink()
    with open(checkpoints / "last.pt", "r+b") as file:
        file.truncate(1000)
    (checkpoints / "step-0000008.safetensors").write_bytes((checkpoints / "step-0000004.safetensors").read_bytes())
    for suffix in (".pt", ".safetensors", ".sha256"):
        (checkpoints / f"best{suffix}").unlink()
    capsys.readouterr()
    assert run(folder_data, out) == 0
    told = capsys.readouterr().out.splitlines()
    lines = [line for line in told if "step-00000" in line]
    assert lines[0].endswith(
        "step-0000012.pt: damaged, or of another step than step-0000012.sha256: its SHA-256 differs"
    )
    assert "step-0000008.safetensors: damaged" in lines[1]
    assert lines[2].endswith("step-0000004.pt at step 4 of 12")
    assert equal(last_weights(out), expected)
    assert sorted(path.name for path in checkpoints.glob("step*.pt")) == ["step-0000008.pt", "step-0000012.pt"]
