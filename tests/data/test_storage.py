"""A read that fails is not a bad image: tried again, then the end of the process, in training as in evaluation."""

import errno
import os
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from deit_fast.data.loader.batches import Batch, EvalLoader, TrainLoader
from deit_fast.data.loader.order import FullOrder
from deit_fast.data.loader.sampler import TrainSampler
from deit_fast.data.sources.base import Source, read_bytes, read_image
from deit_fast.data.sources.open import open_source
from deit_fast.data.sources.salvage import SalvagedShards
from deit_fast.data.tools.check import check_source, open_to_check
from deit_fast.recipe.sections import Data
from deit_fast.runtime import patience
from deit_fast.runtime.errors import DataError, StorageError
from tests.hostile import AUGMENT
from tests.image_files import encode, samples, write, write_tar

CPU = torch.device("cpu")
SHORT = 0.05  # seconds of patience


@pytest.fixture(autouse=True)
def no_thread_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(patience, "PATIENCE_SECONDS", SHORT)
    yield
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("deit-fast")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """16 images of two classes."""
    for number in range(16):
        write(tmp_path / "set" / f"class{number % 2}" / f"{number:02}.jpg", encode(20 + number, 24))
    return tmp_path / "set"


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two shards of eight images each."""
    for number in range(2):
        write_tar(tmp_path / "set" / f"train-{number}.tar", samples(8 * number, 8))
    return tmp_path / "set"


Fail = Callable[..., None]


@pytest.fixture
def fail(monkeypatch: pytest.MonkeyPatch) -> Fail:
    """Lets a system call fail: `times` times for each path that it is asked for and `chosen` is true of."""

    def plant(call: str, number: int, times: float, chosen: Callable[[str], bool] = lambda path: True) -> None:
        plain, seen = getattr(os, call), Counter[str]()

        def planted(place: object, *rest: object, **options: object) -> object:
            path = os.readlink(f"/proc/self/fd/{place}") if isinstance(place, int) else os.fspath(place or ".")
            if path.endswith((".jpg", ".tar", "set", "class0")) and chosen(path):
                seen[path] += 1
                if seen[path] <= times:
                    raise OSError(number, os.strerror(number), path)
            return plain(place, *rest, **options)

        monkeypatch.setattr(os, call, planted)

    return plant


def batches(source: Source, steps: int = 4) -> list[Batch]:
    loader = TrainLoader(
        source, AUGMENT, 16, [TrainSampler(FullOrder(len(source), 0), 1, 8)], 0, CPU, 1, stop_step=steps, patience=SHORT
    )
    try:
        return list(loader)
    finally:
        loader.close()


def same(one: list[Batch], other: list[Batch]) -> bool:
    assert len(one) == len(other) > 0
    return all(
        torch.equal(a.images, b.images) and a.indices.tolist() == b.indices.tolist() and not b.bad
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize(
    ("call", "number"),
    [("pread", errno.EIO), ("pread", errno.ESTALE), ("open", errno.EMFILE), ("open", errno.ESTALE),
     ("fstat", errno.ETIMEDOUT), ("pread", errno.ENOMEM), ("pread", errno.EAGAIN), ("open", errno.ENOTCONN)],
)  # fmt: skip
def test_a_read_that_fails_for_a_while_changes_no_batch(folder: Path, fail: Fail, call: str, number: int) -> None:
    source = open_source(str(folder))
    undisturbed = batches(source, 2)
    fail(call, number, times=3)
    assert same(undisturbed, batches(source, 2))


def test_nor_of_shards(shards: Path, fail: Fail) -> None:
    source = open_source(str(shards))
    undisturbed = batches(source, 2)
    fail("pread", errno.ESTALE, times=5)
    assert same(undisturbed, batches(source, 2))


def test_a_short_read_is_read_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = os.pread
    monkeypatch.setattr(os, "pread", lambda file, size, at: plain(file, min(size, 100), at))
    path = next(folder.glob("*/*.jpg"))
    assert read_bytes(str(path)).tobytes() == path.read_bytes()
    assert read_bytes(str(path), 7, 300).tobytes() == path.read_bytes()[7:307]


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENFILE, errno.ECONNRESET])
def test_what_goes_on_failing_ends_training_and_evaluation(folder: Path, fail: Fail, number: int) -> None:
    source = open_source(str(folder))
    fail("pread", number, times=np.inf, chosen=lambda path: path.endswith("06.jpg"))
    message = rf"set/class0/06.jpg: cannot be read \({os.strerror(number)}\), tried \d times in \d s; run again when"
    with pytest.raises(StorageError, match=message):
        batches(source)
    loader = EvalLoader(source, Data(), 16, 4, CPU, 1, patience=SHORT)
    with pytest.raises(StorageError, match=message):
        list(loader)
    loader.close()
    with pytest.raises(StorageError, match=message):
        check_source(source, threads=2)


def test_a_file_that_vanished_is_a_bad_image(folder: Path) -> None:
    source = open_source(str(folder))
    (folder / "class0" / "06.jpg").unlink()
    (index,) = [index for index in range(16) if source.name(index).endswith("06.jpg")]
    found = batches(source)
    assert {image: reason for batch in found for image, reason in batch.bad.items()} == {
        index: "expected a readable file (No such file or directory)"
    }
    with pytest.raises(DataError, match=r"06.jpg: expected a readable file \(No such file"):
        read_image(source, index)


def test_so_is_one_that_may_not_be_read_any_more(folder: Path, fail: Fail) -> None:
    source = open_source(str(folder))
    fail("open", errno.EACCES, times=np.inf, chosen=lambda path: path.endswith("06.jpg"))
    reasons = {reason for batch in batches(source) for reason in batch.bad.values()}
    assert reasons == {"expected a readable file (Permission denied)"}


@pytest.mark.parametrize("leaves", [True, False], ids=["an empty mount point", "nothing"])
def test_a_mount_that_went_away_is_the_storage(folder: Path, leaves: bool) -> None:
    source = open_source(str(folder))
    shutil.rmtree(folder)
    if leaves:
        for name in source.classes:
            (folder / name).mkdir(parents=True)
    with pytest.raises(StorageError, match="No such file or directory, and nothing else in its folder either"):
        batches(source)


@pytest.mark.parametrize("open_shards", [SalvagedShards, None], ids=["salvaging", "strict"])
def test_shards_that_fail_to_open_for_a_while_are_not_damaged(
    shards: Path, fail: Fail, monkeypatch: pytest.MonkeyPatch, open_shards: type[SalvagedShards] | None
) -> None:
    plain = open_source(str(shards))
    fail("pread", errno.EIO, times=4)
    options = {"open_shards": open_shards} if open_shards else {}
    source = open_source(str(shards), **options)
    assert source.labels.tolist() == plain.labels.tolist()
    assert not getattr(source, "damaged", {})


def test_nor_are_those_that_go_on_failing(shards: Path, fail: Fail) -> None:
    open_source(str(shards))
    fail("pread", errno.EIO, times=np.inf)
    for open_it in (lambda: open_source(str(shards), open_shards=SalvagedShards), lambda: open_source(str(shards)),
                    lambda: open_to_check(str(shards), "train")):  # fmt: skip
        with pytest.raises(StorageError, match=r"train-\d.tar: cannot be read \(Input/output error\)"):
            open_it()


def test_a_listing_that_fails_for_a_while(folder: Path, fail: Fail) -> None:
    names = [open_source(str(folder)).name(index) for index in range(16)]
    fail("scandir", errno.ESTALE, times=3)
    source = open_source(str(folder))
    assert [source.name(index) for index in range(16)] == names
    fail("scandir", errno.ESTALE, times=np.inf)
    with pytest.raises(StorageError, match=rf"^{folder}: cannot be read \(Stale file handle\)"):
        open_source(str(folder))


def test_a_range_of_shards_that_fails_for_a_while_lacks_none(shards: Path, fail: Fail) -> None:
    fail("stat", errno.ESTALE, times=2, chosen=lambda path: path.endswith("train-1.tar"))
    assert len(open_source(f"{shards}/train-{{0..1}}.tar")) == 16
    with pytest.raises(DataError, match="expected 3 shards, 1 missing"):
        open_source(f"{shards}/train-{{0..2}}.tar")
