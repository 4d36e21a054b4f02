"""Which checkpoint is resumed from: never a damaged one, always the same on every process, and why is said."""

from pathlib import Path

import pytest
import torch

from deit_fast.checkpoint.format import link_checkpoint, seal_checkpoint, verify_checkpoint, write_checkpoint
from deit_fast.checkpoint.resume import agree_on_checkpoint, find_checkpoints, kept_steps
from deit_fast.checkpoint.save import step_path
from deit_fast.runtime.errors import RunError
from deit_fast.runtime.world import World
from tests.soak import damages

ALONE = World(0, 1, torch.device("cpu"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three steps' checkpoints; the first was the best."""
    damages.write_checkpoints(tmp_path, steps=(1, 20, 300), best=1)
    return tmp_path


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_the_newest_first(folder: Path) -> None:
    assert [path.name for path in find_checkpoints(folder)] == ["step-0000300.pt", "step-0000020.pt", "step-0000001.pt"]
    assert agree_on_checkpoint(folder, "auto", ALONE) == (folder / "step-0000300.pt", [])
    assert agree_on_checkpoint(folder, "never", ALONE) == (None, [])
    assert kept_steps(folder, 20) == [1, 20]
    assert agree_on_checkpoint(folder / "empty", "auto", ALONE) == (None, [])


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".sha256"])
def test_damaged_ones_are_passed_over_and_said(folder: Path, suffix: str) -> None:
    damage((folder / "step-0000300.pt").with_suffix(suffix))
    path, lines = agree_on_checkpoint(folder, "auto", ALONE)
    assert path == folder / "step-0000020.pt"
    assert len(lines) == 1
    assert "step-0000300" in lines[0]
    assert "\n" not in lines[0]


def test_down_to_the_best_and_then_an_error(folder: Path) -> None:
    for step in (300, 20):
        step_path(folder, step).write_bytes(b"")
    for suffix in (".pt", ".safetensors", ".sha256"):
        step_path(folder, 1).with_suffix(suffix).unlink()
    path, lines = agree_on_checkpoint(folder, "auto", ALONE)
    assert path == folder / "best.pt"
    assert len(lines) == 2
    damage(folder / "best.safetensors")
    with pytest.raises(RunError, match=r"no checkpoint there is whole: .* --resume never"):
        agree_on_checkpoint(folder, "auto", ALONE)


def test_a_last_without_links_is_another_chance(folder: Path) -> None:
    content = (folder / "last.pt").read_bytes()
    (folder / "last.pt").unlink()
    (folder / "last.pt").write_bytes(content)
    step_path(folder, 300).write_bytes(b"")
    step_path(folder, 20).write_bytes(b"")
    step_path(folder, 1).unlink()
    assert agree_on_checkpoint(folder, "auto", ALONE)[0] == folder / "last.pt"


def test_a_path_is_taken_or_refused(folder: Path) -> None:
    assert agree_on_checkpoint(folder, str(folder / "best.pt"), ALONE)[0] == folder / "best.pt"
    damage(folder / "best.pt")
    with pytest.raises(RunError, match=r"best\.pt: damaged, or of another step than best\.sha256"):
        agree_on_checkpoint(folder, str(folder / "best.pt"), ALONE)
    (folder / "best.sha256").unlink()
    with pytest.raises(RunError, match=r"best\.pt: expected its checksums beside it, in best\.sha256"):
        agree_on_checkpoint(folder, str(folder / "best.pt"), ALONE)


def test_files_without_seals_are_no_fresh_start(folder: Path) -> None:
    for path in folder.glob("*.sha256"):
        path.unlink()
    with pytest.raises(RunError, match=r"last\.pt: expected its checksums beside it"):
        agree_on_checkpoint(folder, "auto", ALONE)


class SeenElsewhere(World):
    """The first of two processes, of which the other cannot read step 300 and sees another file at step 20."""

    def gather(self, value: tuple[str, str]) -> list[tuple[str, str]]:
        self.asked.append(value)
        other = [("", "stale"), ("f" * 64, ""), value][len(self.asked) - 1]
        return [value, other]

    def broadcast(self, value: object) -> object:
        return value


def test_all_processes_take_the_same(folder: Path) -> None:
    world = SeenElsewhere(0, 2, torch.device("cpu"))
    object.__setattr__(world, "asked", [])
    path, lines = agree_on_checkpoint(folder, "auto", world)
    assert path == folder / "step-0000001.pt"
    assert lines == ["stale (rank 1)", f"{folder / 'step-0000020.pt'}: not the same file on every process"]


def test_a_crash_between_two_links_is_seen(folder: Path) -> None:
    """last.pt of one step beside last.safetensors of another, the seal of either."""
    digests = write_checkpoint(folder / "x.pt", damages.content(7))
    seal_checkpoint(folder / "x.pt", digests)
    seal = (folder / "last.sha256").read_bytes()
    link_checkpoint(folder / "x.pt", folder / "last.pt", digests)
    verify_checkpoint(folder / "last.pt")
    (folder / "last.sha256").write_bytes(seal)
    with pytest.raises(RunError, match="or of another step"):
        verify_checkpoint(folder / "last.pt")


def test_a_thousand_damages_are_all_seen(tmp_path: Path) -> None:
    assert damages.damages(tmp_path, 1000, seed=0, plant="").wrong == []


def test_planted_seals_that_hash_the_first_block_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damages.plant_short_hash(monkeypatch.setattr)
    assert damages.damages(tmp_path, 100, seed=0, plant="").wrong
