"""A cluster for the tests marked slurm; they skip with a reason where it cannot run."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from deit_fast.data.tools.demo import write_demo
from tests.slurm.cluster import Cluster, missing, running


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    if reason := missing():
        pytest.skip(reason)
    # Not below pytest's folder, because paths of sockets have to be short.
    with tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp") as folder, running(Path(folder)) as started:
        yield started


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demo(tmp_path_factory.mktemp("data") / "digits")
