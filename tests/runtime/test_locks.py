"""Folders held by one process, on file systems that have locks, have none, or fail."""

import errno
import fcntl
import multiprocessing
import os
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from deit_fast.runtime.errors import RunError, StorageError
from deit_fast.runtime.files import exclusive, locked

real_flock = fcntl.flock


def stand_in(monkeypatch: pytest.MonkeyPatch, number: int, only: Callable[[str], bool]) -> None:
    """Lets flock raise the error for files whose path is one of `only`."""

    def flock(file: object, operation: int) -> None:
        descriptor = file if isinstance(file, int) else file.fileno()  # type: ignore[attr-defined]
        if only(os.readlink(f"/proc/self/fd/{descriptor}")):
            raise OSError(number, os.strerror(number))
        real_flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.mark.parametrize("number", [errno.EWOULDBLOCK, errno.EACCES])
def test_a_held_lock_is_another_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    stand_in(monkeypatch, number, lambda path: True)
    with (
        pytest.raises(RunError, match=r"^/.*/run: another training is at work there$"),
        locked(tmp_path / "run", ".lock", "another training"),
    ):
        pytest.fail("was entered")


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
@pytest.mark.parametrize("everywhere", [False, True])
def test_no_locks_are_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int, everywhere: bool
) -> None:
    """On the mount alone, or in the temporary folder as well."""
    folder = tmp_path / "run"
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    stand_in(monkeypatch, number, lambda path: everywhere or str(folder) in path)
    with locked(folder, ".lock", "another training"):
        assert capsys.readouterr().err == (
            f"deit-fast: {folder}: its file system has no locks ({os.strerror(number)}), so that another training is "
            "kept out on this machine alone\n"
        )
        if not everywhere:
            with (
                pytest.raises(RunError, match="another training is at work there"),
                locked(folder, ".lock", "another training"),
            ):
                pytest.fail("was entered")
    with locked(folder, ".lock", "another training"):  # it ended with the block
        pass
    with pytest.raises(FileNotFoundError, match="inside"), locked(folder, ".lock", "x"):  # no error of the lock's
        raise FileNotFoundError(errno.EACCES, "inside")


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
def test_a_file_system_that_fails_is_not_another_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    stand_in(monkeypatch, number, lambda path: True)
    with pytest.raises(StorageError, match=os.strerror(number)), locked(tmp_path / "run", ".lock", "another training"):
        pytest.fail("was entered")


def test_what_waits_goes_on_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other on this machine, however many threads there are."""
    stand_in(monkeypatch, errno.ENOLCK, lambda path: str(tmp_path / "cache") in path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    inside: list[int] = []
    most = 0

    def work() -> None:
        nonlocal most
        for _ in range(20):
            with exclusive(tmp_path / "cache" / ".file.lock"):
                inside.append(1)
                most = max(most, len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def hold(folder: Path, held: object, release: object) -> None:
    with locked(folder, ".lock", "another training"):
        held.set()  # type: ignore[attr-defined]
        release.wait()  # type: ignore[attr-defined]


def test_the_lock_ends_with_its_process(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    held, release = context.Event(), context.Event()
    process = context.Process(target=hold, args=(tmp_path / "run", held, release))
    process.start()
    held.wait()
    with (
        pytest.raises(RunError, match="another training is at work there"),
        locked(tmp_path / "run", ".lock", "another training"),
    ):
        pytest.fail("was entered")
    process.kill()
    process.join()
    with locked(tmp_path / "run", ".lock", "another training"):
        pass


def test_a_full_disk_is_no_mistake_of_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, *_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(StorageError, match="No space left on device"), locked(tmp_path / "run", ".lock", "x"):
        pytest.fail("was entered")
