"""Kubernetes, with jobs in a queue of Kueue, through deit_fast's own TorchX scheduler."""

from collections.abc import Iterator
from typing import Any

from deit_fast.components.kueue import list_jobs
from torchx.specs import AppState

from ._cluster import ClusterScheduler


class Kueue(ClusterScheduler):
    """The driver starts each stage when its needs have succeeded, since Kueue orders jobs by priority and time only."""

    def list_jobs(self, namespace: str) -> Iterator[tuple[dict[str, Any], AppState]]:
        return ((resource, kind.state(resource)) for kind, resource in list_jobs(namespace))


SCHEDULER = Kueue()
