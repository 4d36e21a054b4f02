"""About one per cent of the long tests, without the timing, and the bugs each has to find."""

import subprocess
import sys

import pytest

from tests.test_train import environment


def soak(*words: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: forks of one with other tests' threads would inherit their locks."""
    command = [sys.executable, "-m", "tests.soak", *words]
    return subprocess.run(command, env=environment(), capture_output=True, text=True)


@pytest.mark.soak
@pytest.mark.parametrize("words", [("crashes", "--crashes", "10"), ("damages", "--damages", "10"),
                                   ("schedules", "--schedules", "1")], ids=lambda words: words[0])  # fmt: skip
def test_one_per_cent(words: tuple[str, ...]) -> None:
    done = soak(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| 0 wrong |" in done.stdout


@pytest.mark.soak
@pytest.mark.parametrize("bug", ["unsealed", "forgetful", "leaky"])
def test_planted_bugs_turn_the_crashes_red(bug: str) -> None:
    done = soak("crashes", "--crashes", "30", "--plant", bug)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "| 0 wrong |" not in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.soak
def test_a_planted_bug_turns_the_schedules_red() -> None:
    assert "| 1 wrong |" in soak("schedules", "--schedules", "1", "--plant", "forgetful").stdout
