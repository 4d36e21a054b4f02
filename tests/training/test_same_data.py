"""A run goes on with the data that it began with, the same on all its processes; a failing evaluation loses nothing."""

import errno
import json
import os
import pickle
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from deit_fast.checkpoint.format import load_checkpoint, save_checkpoint, verify_checkpoint
from deit_fast.cli import main as cli
from deit_fast.data.sources.identity import identify
from deit_fast.data.sources.open import open_source
from deit_fast.runtime import patience
from deit_fast.runtime.errors import DataError
from deit_fast.runtime.world import World
from deit_fast.training import same_data
from deit_fast.training.periodic import Checkpoints, Evaluation
from deit_fast.training.same_data import agree_on_data, check_same_data
from tests.data.test_cifar import write_binary
from tests.image_files import samples, write_tar
from tests.training.test_train import WORDS, last_weights

CPU = torch.device("cpu")
SHORT = [*WORDS, "schedule.epochs=2", "run.eval_every=1", "run.checkpoint_every=4"]  # 12 steps, 6 an epoch


class Killed(BaseException):
    pass


def start(data: Path, out: Path, *words: str) -> int:
    return cli.main(["train", "demo_pretrain", "--data", str(data), "--out", str(out), *SHORT, *words])


def killed(data: Path, out: Path, step: int, after: Callable[..., Any] = Checkpoints.save) -> None:
    """A run that ends right after its checkpoint (or what is given) of a step."""
    owner = Checkpoints if after.__qualname__.startswith("Checkpoints") else Evaluation

    def kill(self: Any) -> None:
        after(self)
        if self._state.step == step:
            self._saver.finish() if owner is Checkpoints else None
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, after.__name__, kill)
        with pytest.raises(Killed):
            start(data, out)


@pytest.fixture
def data(folder_data: Path, tmp_path: Path) -> Path:
    shutil.copytree(folder_data, tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture(scope="module")
def undisturbed(folder_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    assert start(folder_data, out) == 0
    return out


def evaluations(out: Path) -> list[tuple[int, float]]:
    records = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [(each["step"], each["top1"]) for each in records if each["kind"] == "eval"]


def check_as(out: Path, undisturbed: Path) -> None:
    expected = last_weights(undisturbed)
    assert all(torch.equal(weight, expected[name]) for name, weight in last_weights(out).items())
    assert evaluations(out) == evaluations(undisturbed)
    mine, theirs = (json.loads((each / "result.json").read_text()) for each in (out, undisturbed))
    assert (mine["top1"], mine["best_top1"]) == (theirs["top1"], theirs["best_top1"])
    best = [load_checkpoint(each / "checkpoints" / "best.pt", CPU)["step"] for each in (out, undisturbed)]
    assert best[0] == best[1]


def test_other_training_images_are_refused_until_allowed(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    killed(data, out, 4)
    for number in range(80):
        shutil.copy(data / "train" / "class1" / "000.jpg", data / "train" / "class1" / f"more{number}.jpg")
    capsys.readouterr()
    assert start(data, out) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"deit-fast: {data}: expected the training images that {out}/checkpoints/step-0000004.pt was trained with: "
        "80 images added, class 'class1' has 112 images, 32 before; data.may_change=true goes on all the same, "
        "another --out starts afresh"
    )
    assert start(data, out, "data.may_change=true") == 0
    said = capsys.readouterr().out
    assert "step-0000004.pt at step 4 of 22" in said
    assert "goes on with other training images than before: 80 images added, class 'class1' has 112" in said
    assert start(data, out) == 0  # the last checkpoint is of these


def test_so_are_other_validation_images(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    killed(data, out, 8)
    before = evaluations(out)
    next((data / "val" / "class2").iterdir()).unlink()
    assert start(data, out) == 2
    assert "expected the validation images that" in (err := capsys.readouterr().err)
    assert "1 image removed, class 'class2' has 10 images, 11 before; data.may_change=true" in err
    assert start(data, out, "data.may_change=true") == 0
    result = json.loads((out / "result.json").read_text())
    assert len(before) == 1
    assert result["best_top1"] == result["top1"]  # what the other images scored is no rival


def test_a_moved_folder_and_a_checkpoint_of_an_earlier_version_go_on(
    data: Path, tmp_path: Path, undisturbed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    killed(data, out, 8)
    data = data.rename(tmp_path / "moved")
    path = out / "checkpoints" / "step-0000008.pt"
    state = load_checkpoint(path, CPU)
    del state["data"], state["scored_step"], state["format"]
    save_checkpoint(path, state)
    assert start(data, out) == 0
    assert f"{path} has no digest of its data (an earlier version wrote it)" in capsys.readouterr().out
    check_as(out, undisturbed)


@pytest.mark.parametrize("step", [6, 12])
def test_a_validation_image_that_cannot_be_read_loses_nothing(
    data: Path, tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch, step: int,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(patience, "PATIENCE_SECONDS", 0.05)
    out, plain, evaluated = tmp_path / "run", os.pread, []
    name = next((data / "val" / "class0").iterdir()).name

    def pread(file: int, size: int, at: int) -> bytes:
        path = os.readlink(f"/proc/self/fd/{file}")
        if path.endswith(f"val/class0/{name}"):
            evaluated.append(path)
            if len(evaluated) > (step // 6 - 1) * 2:  # the model and its average
                raise OSError(errno.EIO, os.strerror(errno.EIO))
        return plain(file, size, at)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", pread)
        assert start(data, out) == 74
    assert f"val/class0/{name}: cannot be read (Input/output error), tried" in capsys.readouterr().err
    verify_checkpoint(out / "checkpoints" / f"step-{step:07}.pt")
    assert start(data, out) == 0
    check_as(out, undisturbed)


def test_a_kill_after_the_evaluation_neither_repeats_nor_forgets_it(
    data: Path, tmp_path: Path, undisturbed: Path
) -> None:
    killed(data, tmp_path / "run", 6, Evaluation.run)
    assert start(data, tmp_path / "run") == 0
    check_as(tmp_path / "run", undisturbed)


class Elsewhere(World):
    """The first of two processes; the other has the data of the folder OTHER[0]."""

    def gather(self, value: Any) -> list[Any]:
        source = open_source(str(OTHER[0]), "train")
        found = agree_on_data(source, None, World(0, 1, CPU))
        if isinstance(value, tuple):
            return [value, ("second", {"train": source.uri}, found)]
        return [value, {split: each.digest for split, each in found.items()}]


OTHER: list[Path] = []


class Together:
    """Ranks as threads, three on each of two nodes; every rank's data are its own."""

    def __init__(
        self, place_of: Callable[[int], Path], val_of: Callable[[int], Path | None] = lambda rank: None
    ) -> None:
        self._barrier, self._values = threading.Barrier(6), dict[int, Any]()
        self._place_of, self._val_of = place_of, val_of

    def gather(self, rank: int, value: Any) -> list[Any]:
        self._values[rank] = value
        self._barrier.wait(60)
        found = [self._values[each] for each in range(6)]
        self._barrier.wait(60)
        return found

    def run(self) -> list[Any]:
        def work(rank: int) -> Any:
            val = self._val_of(rank)
            sources = open_source(str(self._place_of(rank)), "train"), open_source(str(val), "val") if val else None
            try:
                return agree_on_data(*sources, RankOf(rank, 6, CPU, together=self))
            except DataError as error:
                return str(error)

        with ThreadPoolExecutor(6) as pool:
            return list(pool.map(work, range(6)))


@dataclass(frozen=True)
class RankOf(World):
    together: Any = None

    @property
    def node_ranks(self) -> range:
        return range(self.rank // 3 * 3, self.rank // 3 * 3 + 3)

    def gather(self, value: Any) -> list[Any]:
        return self.together.gather(self.rank, pickle.loads(pickle.dumps(value)))

    def broadcast(self, value: Any) -> Any:
        return self.gather(value)[0]


@pytest.fixture
def identified(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    seen, plain = [], same_data.identify
    monkeypatch.setattr(same_data, "identify", lambda source: seen.append(source.uri) or plain(source))
    return seen


@pytest.mark.parametrize("kind", ["folder", "cifar"])
def test_one_process_of_a_node_finds_out_what_the_data_are(
    folder_data: Path, tmp_path: Path, identified: list[str], kind: str
) -> None:
    place = folder_data if kind == "folder" else write_binary(tmp_path / "cifar", 10)
    val = place / "val" if kind == "folder" else place
    found = Together(lambda rank: place, lambda rank: val).run()
    assert len(identified) == 4  # training and validation images, on two nodes
    expected = {"train": identify(open_source(str(place), "train")), "val": identify(open_source(str(val), "val"))}
    assert found == [expected] * 6


CHANGED: dict[str, tuple[Callable[[Path], object], str]] = {
    "removed": (lambda root: (root / "class0/003.jpg").unlink(), "1 image removed, class 'class0' has 31 images"),
    "renamed": (lambda root: (root / "class0/003.jpg").rename(root / "class0/x.jpg"), "1 image added, 1 image removed"),
    "relabelled": (lambda root: (root / "class0/003.jpg").rename(root / "class1/x.jpg"), "1 image added, 1 image remo"),
}


@pytest.mark.parametrize("rank", [1, 2, 3, 5])
@pytest.mark.parametrize("kind", CHANGED)
def test_any_process_with_other_images_is_told(folder_data: Path, tmp_path: Path, rank: int, kind: str) -> None:
    shutil.copytree(folder_data / "train", tmp_path / "copy")
    change, words = CHANGED[kind]
    change(tmp_path / "copy")
    found = Together(lambda each: tmp_path / "copy" if each == rank else folder_data / "train").run()
    assert len(set(found)) == 1
    assert found[0].startswith(f"{tmp_path / 'copy'} (rank {rank}, ")
    assert words in found[0]


def test_so_is_a_node_with_other_sizes_and_one_without_validation_images(folder_data: Path, tmp_path: Path) -> None:
    shutil.copytree(folder_data / "train", tmp_path / "copy")
    (tmp_path / "copy/class0/003.jpg").write_bytes(b"another")
    found = Together(lambda rank: tmp_path / "copy" if rank > 2 else folder_data / "train").run()
    assert len(set(found)) == 1
    assert "(rank 3, " in found[0]
    assert "1 image of other content" in found[0]
    found = Together(lambda rank: folder_data, lambda rank: None if rank == 4 else folder_data / "val").run()
    assert len(set(found)) == 1
    assert "(rank 4, " in found[0]
    assert "expected the validation images of rank 0" in found[0]


def test_the_same_images_under_other_names_of_folders_are_the_same(folder_data: Path, tmp_path: Path) -> None:
    shutil.copytree(folder_data / "train", tmp_path / "copy")
    found = Together(lambda rank: tmp_path / "copy" if rank in (1, 3, 4) else folder_data).run()
    assert found == [{"train": identify(open_source(str(folder_data / "train")))}] * 6


def test_node_local_copies_have_to_be_the_same(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two = Elsewhere(0, 2, CPU)
    monkeypatch.setattr(f"{__name__}.OTHER", [tmp_path / "copy"])
    shutil.copytree(data, tmp_path / "copy")
    source = open_source(str(data), "train")
    assert agree_on_data(source, None, two).keys() == {"train"}
    (tmp_path / "copy" / "train" / "class0" / "003.jpg").unlink()
    with pytest.raises(DataError) as error:
        agree_on_data(source, None, two)
    message = str(error.value)
    assert message.startswith(f"{tmp_path / 'copy'} (rank 1, second): expected the training images of rank 0 (")
    assert message.endswith(
        "): 1 image removed, class 'class0' has 31 images, 32 before; the processes of a run need the same data"
    )


def test_a_checkpoint_that_knows_shards_by_their_names_goes_on(tmp_path: Path) -> None:
    write_tar(tmp_path / "train-0.tar", samples(0, 9))
    source = open_source(str(tmp_path), "train")
    now = identify(source)
    by_name = replace(now, digest="0" * 64, images=[9] + [0] * 1023, names=[5] * 1024, labels=[6] * 1024).as_plain()
    del by_name["key"]  # as versions without an index wrote it
    path = tmp_path / "last.pt"
    (line,) = check_same_data({"train": now}, {"data": {"train": by_name}}, {"train": source.uri}, False, path)
    assert line.startswith(f"{path} knows its training images by name")
    one_more = {**by_name, "class_sizes": [3, 3, 4], "images": [10] + [0] * 1023}
    with pytest.raises(DataError, match=r"9 images, 10 before, class '2' has 3 images, 4 before; data.may_change"):
        check_same_data({"train": now}, {"data": {"train": one_more}}, {"train": source.uri}, False, path)
    moved = {**by_name, "class_sizes": [3, 2, 4]}
    with pytest.raises(DataError, match="class '1' has 3 images, 2 before, as 1 more have other numbers"):
        check_same_data({"train": now}, {"data": {"train": moved}}, {"train": source.uri}, False, path)
