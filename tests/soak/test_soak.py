"""About one per cent of every kind of soak test, and the bugs that each has to find."""

import subprocess
import sys

import pytest

from tests.soak.__main__ import KINDS
from tests.training.test_train import environment

pytestmark = pytest.mark.soak

PLANTS = [(name, plant) for name, kind in KINDS.items() for plant in kind.plants]


def soak(*words: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: forks of one with other tests' threads would inherit their locks."""
    command = [sys.executable, "-m", "tests.soak", *words]
    return subprocess.run(command, env=environment(), capture_output=True, text=True)


# Shares of a core that other tests use too are no times to judge: stalls are measured in full, and for their bugs.
@pytest.mark.parametrize("name", [name for name in KINDS if name != "stalls"])
def test_one_per_cent(name: str) -> None:
    done = soak(name, "--share", "0.01")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| 0 wrong |" in done.stdout


@pytest.mark.parametrize(("name", "plant"), PLANTS)
def test_planted_bugs_are_found(name: str, plant: str) -> None:
    done = soak(name, "--share", "0.03" if name == "crashes" else "0.01", "--plant", plant)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "| 0 wrong |" not in done.stdout
    assert "Traceback" not in done.stderr
    assert "ended by" not in done.stdout
