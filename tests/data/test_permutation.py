"""The full shuffle of a large set: one file for a machine, and never more than a help."""

import errno
import os
import subprocess
import sys
import time
import zlib
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from deit_fast.data.loader import permutation

IMAGES = 5000


@pytest.fixture
def shuffles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The epochs for which images were shuffled, of sets that count as large from 1000 images on."""
    made: list[int] = []
    shuffle = permutation._shuffle

    def count(num_images: int, seed: int, epoch: int) -> np.ndarray:
        made.append(epoch)
        return shuffle(num_images, seed, epoch)

    monkeypatch.setattr(permutation, "_SHARED", 1000)
    monkeypatch.setattr(permutation, "_shuffle", count)
    monkeypatch.setenv("DEIT_FAST_CACHE", str(tmp_path / "cache"))
    return made


def expected(epoch: int, seed: int = 7) -> list[int]:
    bits = np.random.Philox(key=np.array([seed, 0], np.uint64), counter=np.array([0, epoch, 0, 0], np.uint64))
    return np.random.RandomState(bits).permutation(IMAGES).tolist()


def orders(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache/orders").glob("*.order"))


def test_it_is_made_once_and_mapped(tmp_path: Path, shuffles: list[int]) -> None:
    first, second = (permutation.epoch_permutation(IMAGES, 7, 3) for _ in range(2))
    assert first.tolist() == second.tolist() == expected(3)
    assert shuffles == [3]
    assert first.dtype == np.uint32
    assert orders(tmp_path)[0].stat().st_size == 4 * IMAGES + 4
    maps = Path("/proc/self/maps").read_text()
    assert maps.count(str(orders(tmp_path)[0])) == 2


def test_a_new_epoch_takes_the_place_of_the_one_before(tmp_path: Path, shuffles: list[int]) -> None:
    earlier = permutation.epoch_permutation(IMAGES, 7, 3)
    other = permutation.epoch_permutation(IMAGES, 8, 3)
    later = permutation.epoch_permutation(IMAGES, 7, 4)
    assert [path.name for path in orders(tmp_path)] == ["5000-7-4.order", "5000-8-3.order"]
    assert earlier.tolist() == expected(3)  # who has it mapped keeps it
    assert later.tolist() == expected(4)
    assert other.tolist() == expected(3, 8)
    old = time.time() - 48 * 3600
    os.utime(orders(tmp_path)[1], (old, old))
    (tmp_path / "cache/orders/.5000-8-3.order.99-1.tmp").write_bytes(b"of a process killed while it wrote")
    permutation.epoch_permutation(IMAGES, 7, 5)
    assert {path.name for path in (tmp_path / "cache/orders").iterdir()} == {"5000-7-5.order", ".lock"}
    assert shuffles == [3, 3, 4, 5]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def garble(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)


def zero(path: Path) -> None:
    path.write_bytes(bytes(4 * IMAGES + 4))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def odd(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


@pytest.mark.parametrize("damage", [cut, garble, zero, empty, odd])
def test_a_damaged_one_is_made_anew(damage: object, tmp_path: Path, shuffles: list[int]) -> None:
    permutation.epoch_permutation(IMAGES, 7, 3)
    path = orders(tmp_path)[0]
    assert callable(damage)
    damage(path)
    assert permutation.epoch_permutation(IMAGES, 7, 3).tolist() == expected(3)
    assert permutation.epoch_permutation(IMAGES, 7, 3).tolist() == expected(3)
    assert shuffles == [3, 3]


@pytest.mark.parametrize("fault", ["a file for a folder", "no space", "no lock", "no rename"])
def test_without_the_folder_each_process_has_its_own(
    fault: str, tmp_path: Path, shuffles: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if fault == "a file for a folder":
        (tmp_path / "cache").write_text("")
    elif fault == "no space":
        monkeypatch.setattr("os.fsync", fail)
    elif fault == "no rename":
        monkeypatch.setattr("os.replace", fail)
    else:
        monkeypatch.setattr(permutation, "exclusive", fail)
    assert permutation.epoch_permutation(IMAGES, 7, 3).tolist() == expected(3)
    assert len(shuffles) == 1  # what could not be written is not made twice
    assert not list(tmp_path.rglob("*.tmp"))


def test_one_that_is_there_serves_where_nothing_can_be_written(
    shuffles: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    permutation.epoch_permutation(IMAGES, 7, 3)

    def fail(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(permutation, "exclusive", fail)
    assert permutation.epoch_permutation(IMAGES, 7, 3).tolist() == expected(3)
    assert shuffles == [3]


def test_several_processes_make_one(tmp_path: Path) -> None:
    """All ask at once for each of four epochs; none has a part of the file or a file of another epoch."""
    program = f"""
import zlib, sys
from deit_fast.data.loader import permutation
shuffle, made = permutation._shuffle, []
permutation._SHARED, permutation._shuffle = 1000, lambda *words: made.append(words) or shuffle(*words)
for epoch in range(4):
    sys.stdin.readline()
    found = permutation.epoch_permutation({IMAGES}, 7, epoch)
    print(epoch, zlib.crc32(found), len(made), flush=True)
"""
    environment = {**os.environ, "DEIT_FAST_CACHE": str(tmp_path)}
    command = [sys.executable, "-c", program]
    with ExitStack() as stack:
        started = [
            stack.enter_context(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
            )
            for _ in range(3)
        ]
        for epoch in range(4):
            for process in started:
                assert process.stdin is not None
                process.stdin.write("\n")
                process.stdin.flush()
            told = [process.stdout.readline().split() for process in started if process.stdout is not None]
            assert [each[:2] for each in told] == [[str(epoch), str(zlib.crc32(np.uint32(expected(epoch))))]] * 3
        assert sum(int(each[2]) for each in told) == 4


def test_small_sets_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEIT_FAST_CACHE", str(tmp_path / "cache"))
    assert permutation.epoch_permutation(IMAGES, 7, 3).tolist() == expected(3)
    assert not (tmp_path / "cache").exists()
