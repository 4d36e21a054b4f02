"""Storage that fails for a while: which errors are of it, how long it is waited for, and how that ends."""

import errno
import os
from collections.abc import Callable
from itertools import pairwise

import pytest

from deit_fast.runtime import patience as module
from deit_fast.runtime.errors import StorageError
from deit_fast.runtime.exit_status import ExitStatus
from deit_fast.runtime.patience import may_pass, patience, patiently

PASSING = ["EIO", "ESTALE", "ETIMEDOUT", "EINTR", "EMFILE", "ENFILE", "ENOMEM", "EAGAIN", "ECONNRESET", "ECONNREFUSED",
           "EHOSTDOWN", "EHOSTUNREACH", "ENETUNREACH", "ENOTCONN", "EPIPE", "EREMOTEIO", "ESHUTDOWN", "EBUSY",
           "ENODEV", "ENOLINK", "EPROTO", "ECOMM"]  # fmt: skip
LASTING = ["ENOENT", "EACCES", "EPERM", "ENOTDIR", "EISDIR", "ELOOP", "ENAMETOOLONG", "EINVAL", "ENXIO"]


def error_of(name: str) -> OSError:
    number = getattr(errno, name)
    return OSError(number, os.strerror(number))


def failing(error: BaseException, times: int) -> Callable[[], str]:
    """An action that raises `error` the first `times` times."""
    left = [error] * times

    def action() -> str:
        if left:
            raise left.pop()
        return "content"

    return action


@pytest.mark.parametrize("name", PASSING)
def test_what_the_machine_fails_at_is_tried_again(name: str) -> None:
    assert may_pass(error_of(name))
    assert patiently(failing(error_of(name), 7), "a.jpg", pause=lambda _: None) == "content"


@pytest.mark.parametrize("name", LASTING)
def test_what_a_path_or_a_right_makes_is_not(name: str) -> None:
    waits: list[float] = []
    with pytest.raises(OSError, match=os.strerror(getattr(errno, name))):
        patiently(failing(error_of(name), 1), "a.jpg", pause=waits.append)
    assert not waits


def test_nor_what_a_library_says_of_the_content() -> None:
    assert not may_pass(OSError("image file is truncated (3 bytes not processed)"))
    assert not may_pass(ValueError("no header"))
    assert may_pass(MemoryError())
    assert may_pass(TimeoutError("timed out"))


def test_a_minute_of_growing_pauses_and_then_the_storages_status() -> None:
    waits: list[float] = []
    with pytest.raises(StorageError) as error:
        patiently(failing(error_of("ESTALE"), 99), "/data/a\n.jpg", pause=waits.append)
    assert sum(waits) == pytest.approx(60, abs=0.5)
    assert all(later > 1.9 * earlier for earlier, later in pairwise(waits[:-1]))
    assert str(error.value).startswith(r"/data/a\n.jpg: cannot be read (Stale file handle), tried 8 times in ")
    assert error.value.status == ExitStatus.STORAGE_FAILED == 74
    assert not error.value.status.final


def test_an_attempt_that_takes_minutes_has_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a soft mount of NFS, which reports a time-out after three minutes."""
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    attempts = []

    def slow() -> None:
        attempts.append(now[0])
        now[0] += 180
        raise error_of("ETIMEDOUT")

    with pytest.raises(StorageError, match=r"Connection timed out\), tried 2 times in 18\d s"):
        patiently(slow, "a.jpg", pause=lambda seconds: now.__setitem__(0, now[0] + seconds))
    assert len(attempts) == 2
    assert now[0] < 600  # before run.hang_timeout


def test_it_ends_before_the_watchdog_and_when_it_is_told() -> None:
    assert (patience(600), patience(15)) == (60, 7.5)
    with pytest.raises(StorageError, match="tried 1 times"):
        patiently(failing(error_of("EIO"), 99), "a.jpg", pause=lambda _: True)


def test_an_outage_is_said_once(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_last_said", [-60.0])
    for name in ("a.jpg", "b.jpg"):
        patiently(failing(error_of("EIO"), 5), name, pause=lambda _: None)
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "deit-fast: a.jpg: Input/output error; trying again for 60 s"
