"""A cluster with the claims that a training needs; tests skip with a reason where it cannot run."""

from collections.abc import Iterator

import pytest

from deit_fast.data.tools.demo import write_demo

pytest.importorskip("kubernetes", reason="needs the client of Kubernetes, from the extra: test")
pytest.importorskip("kubernetes_validate", reason="needs the extra: test")

from tests.kubernetes.cluster import Cluster, image_environment, running
from tests.kubernetes.pods import missing


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if reason := missing():
        pytest.skip(reason)
    with running(tmp_path_factory.mktemp("kubernetes"), image_environment()) as started:
        write_demo(started.add_claim("imagenet") / "digits")
        started.add_claim("runs")
        yield started
