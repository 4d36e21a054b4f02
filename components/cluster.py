"""Access to Kubernetes' API for the schedulers. The client is imported on use, because few installations have it."""

import contextlib
import json
import math
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

from deit_fast.runtime.errors import one_line

FOLLOW_SECONDS = 5.0  # between two reads of a pod's log
_OVERLAP_SECONDS = 60  # overlap of two reads, as the clocks of this machine and of a node may differ
_STAMP = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[.\d]*Z) ?")


def connect() -> Any:
    """A client for the cluster in the kubeconfig, or for the cluster in which this process runs as a pod.

    Raises the client's ConfigException where there is neither.
    """
    from kubernetes import client, config

    try:
        return config.new_client_from_config()
    except config.ConfigException:
        configuration = client.Configuration()
        config.load_incluster_config(client_configuration=configuration)
        return client.ApiClient(configuration)


def explain_error(error: BaseException) -> str:
    """An error of the client as one line: Kubernetes' answer without its headers, if there was an answer."""
    if body := getattr(error, "body", None):
        with contextlib.suppress(ValueError, TypeError, KeyError):
            return one_line(f"Kubernetes: {json.loads(body)['message']}")
    return one_line(f"{type(error).__name__}: {error}")


def context_namespace() -> str:
    """The namespace of the kubeconfig's current context."""
    from kubernetes import config

    try:
        _, active = config.list_kube_config_contexts()
    except config.ConfigException:
        return "default"
    return str(active["context"].get("namespace") or "default")


def read_log(namespace: str, pod: str, since_seconds: int | None = None) -> list[str]:
    """The lines that a pod has printed so far, each preceded by its time (see split_time).

    Clients before version 37 return, for the text that TorchX asks for, the printed form of the bytes in one line.
    """
    from kubernetes import client

    api, since = client.CoreV1Api(connect()), {} if since_seconds is None else {"since_seconds": since_seconds}
    answer: Any = api.read_namespaced_pod_log(pod, namespace, timestamps=True, _preload_content=False, **since)
    return answer.data.decode(errors="replace").splitlines()


def follow_log(read: Callable[[int | None], list[str]], ended: Callable[[], bool]) -> Iterator[str]:
    """The lines of a pod's log as they arrive, until the job has `ended`; continues with pods that replace the pod.

    read: returns the lines of the last seconds (None: all) of the present pod, each preceded by its time.
    """
    last, since = "", time.monotonic()
    while True:
        over, seen, now = ended(), last, time.monotonic()  # before the log is read: more lines may follow
        try:
            lines = read(math.ceil(now - since) + _OVERLAP_SECONDS if seen else None)
        except Exception:  # no pod yet, or no longer
            lines = []
        for line in lines:
            at, text = split_time(line)
            if at > seen:
                last, since = at, now
                yield text
        if over:
            return
        time.sleep(FOLLOW_SECONDS)


def split_time(line: str) -> tuple[str, str]:
    """The time that Kubernetes puts before a line, and the line itself."""
    stamp = _STAMP.match(line)
    return (stamp[1], line[stamp.end() :].rstrip()) if stamp else ("", line.rstrip())
