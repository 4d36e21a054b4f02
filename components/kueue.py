"""TorchX's scheduler `kueue`: jobs of JobSet or of Kubeflow's Trainer, in a queue of Kueue.

    torchx run -s kueue -cfg namespace=research,queue=gpus deit.pretrain ...

A job's id is NAMESPACE:NAME. A stopped job waits in the queue and is PENDING, as it was before its first start.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import yaml
from deit_fast.components.arguments import refuse
from deit_fast.components.cluster import connect, context_namespace, explain_error, follow_log, read_log, split_time
from deit_fast.components.manifests import Kind, Object, find_kinds
from deit_fast.components.manifests.jobset import RESTARTS
from deit_fast.components.manifests.pods import HELP, MANAGER, ROLE, Job, Place, object_name
from torchx.schedulers.api import DescribeAppResponse, ListAppResponse, Scheduler, Stream, filter_regex
from torchx.schedulers.ids import make_unique
from torchx.specs import (
    AppDef,
    AppDryRunInfo,
    AppState,
    ReplicaState,
    ReplicaStatus,
    Role,
    RoleStatus,
    is_terminal,
    runopts,
)  # fmt: skip

KINDS = ("jobset", "trainjob")
"""The kinds of jobs that Kueue queues; the first one is the default."""
_INDEX = "batch.kubernetes.io/job-completion-index"


@dataclass
class Request:
    """The objects of a job in the order of their creation; the last one is the job itself."""

    kind: str
    objects: list[Object]

    @property
    def resource(self) -> Object:
        return self.objects[-1]

    def __str__(self) -> str:
        return yaml.safe_dump_all(self.objects, sort_keys=False, width=120)


class Kueue(Scheduler[Any]):
    def __init__(self, session_name: str) -> None:
        super().__init__("kueue", session_name)

    def _run_opts(self) -> runopts:
        options = runopts()
        options.add("kind", type_=str, default=KINDS[0], help=f"kind of the job: {' or '.join(KINDS)}")
        for name, default in Place._field_defaults.items():
            options.add(name, type_=str, default=default, help=HELP[name])
        return options

    def _submit_dryrun(self, app: AppDef, cfg: Any) -> AppDryRunInfo[Request]:
        kind = cfg.get("kind") or KINDS[0]
        if kind not in KINDS:
            refuse(f"kind={kind!r}: expected {' or '.join(KINDS)}")
        place = Place(**{name: cfg.get(name) or default for name, default in Place._field_defaults.items()})
        # TorchX draws a random name, so that the same command makes another job.
        return AppDryRunInfo(build_request(app, kind, place, make_unique(app.name)), str)

    def schedule(self, dryrun_info: AppDryRunInfo[Request]) -> str:
        """Creates all objects of a job, or none. If Kubernetes refuses, a line says why."""
        metadata = dryrun_info.request.resource["metadata"]
        namespace, name, created = metadata["namespace"], metadata["name"], []
        try:
            from kubernetes import client

            api = client.CustomObjectsApi(connect())
            for each in dryrun_info.request.objects:
                api.create_namespaced_custom_object(**_where(each), namespace=namespace, body=each)
                created.append(_where(each))
        except Exception as error:  # the client may be missing, and may raise anything
            for where in created:
                _delete(api, where, namespace, name)
            refuse(f"kueue: {namespace}:{name}: {explain_error(error)}")
        return f"{namespace}:{name}"

    def describe(self, app_id: str) -> DescribeAppResponse | None:
        namespace, name = app_id.split(":")
        found = find_job(namespace, name)
        if found is None:
            return None
        kind, resource = found
        state, status = kind.state(resource), resource.get("status", {})
        role = resource["metadata"].get("labels", {}).get(ROLE, "")
        told = [f"{each['type']}: {each.get('message', '')}" for each in status.get("conditions", ())
                if each["status"] == "True"]  # fmt: skip
        if state is AppState.PENDING:
            told = _why_pending(namespace, resource) or told
        return DescribeAppResponse(
            app_id=app_id,
            state=state,
            num_restarts=status.get("restarts", -1),
            msg="; ".join(told),
            roles=[Role(name=role, image="", num_replicas=kind.nodes(resource))],
            roles_statuses=[RoleStatus(role, _replicas(namespace, name, role))],
        )

    def list(self, cfg: Any = None) -> list[ListAppResponse]:
        """TorchX's jobs in the current context's namespace."""
        namespace = context_namespace()
        return [ListAppResponse(app_id=f"{namespace}:{resource['metadata']['name']}", state=kind.state(resource))
                for kind, resource in list_jobs(namespace)]  # fmt: skip

    def _cancel_existing(self, app_id: str) -> None:
        """Deletes the job. Its pods have their grace period to end."""
        from kubernetes import client

        namespace, name = app_id.split(":")
        found = find_job(namespace, name)
        if found is not None:
            api = client.CustomObjectsApi(connect())
            _delete(api, found[0].api, namespace, name)
            if reference := found[1]["spec"].get("runtimeRef"):
                _delete(api, {**found[0].api, "plural": "trainingruntimes"}, namespace, reference["name"])

    def log_iter(
        self,
        app_id: str,
        role_name: str,
        k: int = 0,
        regex: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        should_tail: bool = False,
        streams: Stream | None = None,
    ) -> Iterable[str]:
        """The lines of a node's newest pod; with should_tail, also those of pods that replace it."""
        if streams not in (None, Stream.COMBINED) or until is not None:
            raise ValueError("kueue: expected the combined stream of a pod, and no --until")
        namespace, name = app_id.split(":")
        seconds = None if since is None else max(1, int((datetime.now() - since).total_seconds()))

        def read(last: int | None = seconds) -> list[str]:
            return read_log(namespace, find_pod(namespace, name, k), last)

        def ended() -> bool:
            described = self.describe(app_id)
            return described is None or is_terminal(described.state)

        lines: Iterable[str] = follow_log(read, ended) if should_tail else (split_time(line)[1] for line in read())
        lines = (f"{line}\n" for line in lines)
        return filter_regex(regex, lines) if regex else lines


def create_scheduler(session_name: str, **_: object) -> Kueue:
    return Kueue(session_name)


def build_request(app: AppDef, kind: str, place: Place, name: str) -> Request:
    """The objects of an app. name: of the job; it is shortened to what Kubernetes allows."""
    if len(app.roles) != 1:
        refuse(f"{app.name}: expected an app of one role, got {len(app.roles)}")
    return Request(kind, find_kinds()[kind].build(Job(object_name(name), app.name, app.roles[0], place)))


def find_job(namespace: str, name: str) -> tuple[Kind, Object] | None:
    """A job and its kind.

    A TrainJob takes precedence over the JobSet of the same name that the Trainer makes from it.
    """
    from kubernetes import client

    api = client.CustomObjectsApi(connect())
    for kind in (find_kinds()[name] for name in reversed(KINDS)):
        try:
            return kind, api.get_namespaced_custom_object(**kind.api, namespace=namespace, name=name)
        except client.ApiException as error:
            if error.status != 404:  # no such job, or a cluster without this kind of jobs
                raise
    return None


def list_jobs(namespace: str) -> list[tuple[Kind, Object]]:
    """TorchX's jobs in a namespace, oldest first."""
    from kubernetes import client

    api, found = client.CustomObjectsApi(connect()), []
    selector = ",".join(f"{key}={value}" for key, value in MANAGER.items())
    for kind in (find_kinds()[name] for name in KINDS):
        try:
            items = api.list_namespaced_custom_object(**kind.api, namespace=namespace, label_selector=selector)["items"]
        except client.ApiException as error:
            if error.status != 404:  # a cluster without this kind of jobs
                raise
            continue
        found += [(kind, each) for each in items if not each["metadata"].get("ownerReferences")]
    return sorted(found, key=lambda pair: str(pair[1]["metadata"].get("creationTimestamp")))


def find_pod(namespace: str, name: str, index: int) -> str:
    """The newest pod of a job's node. Raises ValueError where there is none."""
    pods = [pod for pod in _list_pods(namespace, name) if pod.metadata.labels[_INDEX] == str(index)]
    if not pods:
        raise ValueError(f"{namespace}:{name}: no pod of node {index}")
    return str(pods[-1].metadata.name)


def _list_pods(namespace: str, name: str) -> list[Any]:
    """The pods of a job's nodes, oldest first."""
    from kubernetes import client

    selector = f"jobset.sigs.k8s.io/jobset-name={name},{_INDEX}"
    pods = client.CoreV1Api(connect()).list_namespaced_pod(namespace, label_selector=selector).items
    # Creation times are whole seconds, within which a job may start twice.
    return sorted(pods, key=lambda pod: (pod.metadata.creation_timestamp, int(pod.metadata.labels.get(RESTARTS, 0))))


def _replicas(namespace: str, name: str, role: str) -> list[ReplicaStatus]:
    """The state of each node, which is the state of its newest pod."""
    newest = {int(pod.metadata.labels[_INDEX]): pod for pod in _list_pods(namespace, name)}
    return [
        ReplicaStatus(index, ReplicaState[pod.status.phase.upper()], role, pod.spec.node_name or "")
        for index, pod in sorted(newest.items())
    ]


def _why_pending(namespace: str, resource: Object) -> list[str]:
    """Kueue's reasons why a job waits, if the user may read them."""
    from kubernetes import client

    api, uid = client.CustomObjectsApi(connect()), resource["metadata"].get("uid")
    where = {"group": "kueue.x-k8s.io", "version": "v1beta2", "plural": "workloads"}
    try:
        workloads = api.list_namespaced_custom_object(
            **where, namespace=namespace, label_selector=f"kueue.x-k8s.io/job-uid={uid}"
        )["items"]
    except client.ApiException:
        return []
    conditions = [each for workload in workloads for each in workload.get("status", {}).get("conditions", ())]
    return [f"Kueue: {each['message']}" for each in conditions
            if (each["type"], each["status"]) in {("QuotaReserved", "False"), ("Evicted", "True")}]  # fmt: skip


def _where(each: Object) -> dict[str, str]:
    group, _, version = each["apiVersion"].partition("/")
    return {"group": group, "version": version, "plural": f"{each['kind'].lower()}s"}


def _delete(api: Any, where: dict[str, str], namespace: str, name: str) -> None:
    from kubernetes import client

    try:
        api.delete_namespaced_custom_object(**where, namespace=namespace, name=name)
    except client.ApiException as error:
        if error.status != 404:  # it was deleted meanwhile
            raise
