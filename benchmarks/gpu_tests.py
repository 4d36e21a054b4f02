"""Runs the tests marked gpu that import no DALI, to see whether this GPU works; writes each outcome as it comes."""

from pathlib import Path

import pytest

from deit_fast.runtime.errors import RunError

from .measure import Session

ROOT = Path(__file__).resolve().parents[1]
FILES = (
    "tests/optim/test_lamb_cuda.py",
    "tests/optim/test_lamb_triton.py",
    "tests/optim/test_lamb_copy.py",
    "tests/models/test_block.py",
    "tests/training/test_step.py",
    "tests/training/test_compute_copy.py",
    "tests/data/test_erase.py",
)


class _Outcomes:
    """A pytest plugin that notes 1 for a passed and 0 for a failed test."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed or (report.when == "call" and report.passed):
            self._session.note(report.nodeid.removeprefix("tests/"), float(report.passed), "passed")


def run(session: Session) -> bool:
    """Whether all tests passed, or were skipped because there is no GPU. Raises RunError outside a checkout."""
    if not (ROOT / "tests").is_dir():
        raise RunError(f"{ROOT}: expected a checkout with tests/, found none")
    files = [str(ROOT / name) for name in FILES]
    # A package that one test file needs and that is missing must not stop the other files.
    selected = ["-m", "gpu", "--continue-on-collection-errors"]
    options = ["-q", "-rfE", "-p", "no:cacheprovider", "--rootdir", str(ROOT)]
    return pytest.main([*selected, *options, *files], plugins=[_Outcomes(session)]) == pytest.ExitCode.OK
