"""The pod of a training's node: the same for every kind of job, except for how a kind tells a pod its index."""

import copy
import re
from dataclasses import dataclass
from typing import Any, NamedTuple

from deit_fast.components.arguments import refuse
from torchx import specs
from torchx.specs import macros

from deit_fast.runtime.exit_status import ExitStatus

CONTAINER = "node"  # Kubeflow's Trainer identifies the training container by this name
FINAL = sorted(int(status) for status in ExitStatus if status.final)
"""The exit statuses after which starting the same command again is useless."""
ROLE = "torchx.pytorch.org/role-name"
MANAGER = {"app.kubernetes.io/managed-by": "torchx.pytorch.org"}
_RANK0 = "DEIT_FAST_RANK0"
_MAX_NAME = 63 - len(f"-{CONTAINER}-0-0000-abcde")  # of a pod, with the job's index, the node's, and a random suffix
# TorchX leaves this much of a whole node to the system: a request for everything would never fit.
_RESERVED_CPU, _RESERVED_MB = 0.1, 1024


class Place(NamedTuple):
    """The place of a job in a cluster: the options of `deit-fast manifest` and of TorchX's scheduler kueue."""

    namespace: str = "default"
    queue: str = ""
    priority_class: str = ""
    service_account: str = ""
    topology: str = ""
    secrets: str = ""

    @property
    def secret_names(self) -> list[str]:
        return [name for name in re.split(r"[\s,;]+", self.secrets) if name]

    @property
    def topology_annotations(self) -> dict[str, str]:
        """Kueue's request that the pods run close to one another."""
        if not self.topology:
            return {}
        word, equals, level = self.topology.partition(":")
        if word not in ("required", "preferred") or not equals or not level:
            refuse(f"topology={self.topology!r}: expected required:LABEL or preferred:LABEL, a label of the nodes, "
                   "for example required:cloud.provider.com/topology-rack")  # fmt: skip
        return {f"kueue.x-k8s.io/podset-{word}-topology": level}


HELP = {
    "namespace": "namespace of the job; default: default",
    "queue": "Kueue's LocalQueue of the namespace, or Volcano's Queue; empty: none, the job starts at once",
    "priority_class": "Kueue's WorkloadPriorityClass; of Volcano a PriorityClass",
    "service_account": "service account of the pods",
    "topology": "required:LABEL or preferred:LABEL: all pods on nodes with the same value of a label, by Kueue",
    "secrets": "names of secrets whose keys become environment variables, A,B",
}
"""The meaning of each field of a Place."""


@dataclass(frozen=True)
class Job:
    """A job to be created: the name of its object, its app and role, and its place."""

    name: str
    app: str
    role: specs.Role
    place: Place

    @property
    def nodes(self) -> int:
        return self.role.num_replicas

    @property
    def starts_once(self) -> bool:
        """Whether a second start would begin at the beginning instead of where the first one stopped."""
        return bool(self.role.metadata.get("starts_once"))

    @property
    def metadata(self) -> dict[str, Any]:
        return {"name": self.name, "namespace": self.place.namespace, "labels": dict(self.labels)}

    @property
    def labels(self) -> dict[str, str]:
        return {
            "app.kubernetes.io/name": self.app,
            "app.kubernetes.io/instance": self.name,
            **MANAGER,
            ROLE: self.role.name,
        }


def object_name(name: str) -> str:
    """The name in the form of RFC 1035, so short that the names of its pods are valid labels too."""
    return (name if name[0].isalpha() else f"deit-{name}")[:_MAX_NAME].strip("-")


def build_pod(job: Job, rank: str, rank0: str, restarts: str) -> dict[str, Any]:
    """The template of a job's pods.

    rank: the environment variable to which this kind of job sets a pod's index. rank0: host name of the first pod.
    restarts: the annotation of a pod that holds the job's number of restarts.
    """
    # Kubernetes replaces $(NAME) by the value of the container's variable.
    values = macros.Values(img_root="", app_id=job.name, replica_id=f"$({rank})", rank0_env=_RANK0)
    role = values.apply(job.role)
    command = [role.entrypoint, *role.args]
    if command[:2] == ["bash", "-c"]:  # the first pod's own name may not be in the cluster's DNS yet
        command[2] = f"[ $({rank}) != 0 ] || {_RANK0}=localhost; {command[2]}"
    volumes, mounts, privileged = _volumes(role)
    count = {"fieldRef": {"fieldPath": f"metadata.annotations['{restarts}']"}}
    container = {
        "name": CONTAINER,
        "image": role.image,
        "command": command,
        "env": [
            *({"name": name, "value": value} for name, value in role.env.items()),
            {"name": _RANK0, "value": rank0},
            {"name": "DEIT_FAST_RESTARTS", "valueFrom": count},
        ],
        "resources": _resources(role.resource),
        "volumeMounts": mounts,
    }
    if job.place.secret_names:
        container["envFrom"] = [{"secretRef": {"name": name}} for name in job.place.secret_names]
    if privileged:
        container["securityContext"] = {"privileged": True}
    spec: dict[str, Any] = {"restartPolicy": "Never", "containers": [container], "volumes": volumes}
    if job.place.service_account:
        spec["serviceAccountName"] = job.place.service_account
    # An Istio sidecar would keep running after the container, and the job would not end.
    annotations = {"sidecar.istio.io/inject": "false", **job.place.topology_annotations}
    pod = {"metadata": {"labels": dict(job.labels), "annotations": annotations}, "spec": spec}
    return lay_over(pod, job.role.metadata.get("kubernetes", {}).get("V1Pod", {}))


def lay_over(base: Any, overlay: Any) -> Any:
    """Applies the overlay as TorchX's nightly releases do: merges mappings, appends lists, replaces all else."""
    if isinstance(base, dict) and isinstance(overlay, dict):
        return {**base, **{key: lay_over(base[key], value) if key in base else value for key, value in overlay.items()}}
    return [*base, *overlay] if isinstance(base, list) and isinstance(overlay, list) else copy.deepcopy(overlay)


def _resources(resource: specs.Resource) -> dict[str, Any]:
    limits, requests = {}, {}
    if resource.cpu > 0:
        limits["cpu"] = f"{resource.cpu * 1000:.0f}m"
        requests["cpu"] = f"{max(resource.cpu - _RESERVED_CPU, 0) * 1000:.0f}m"
    if resource.memMB > 0:
        limits["memory"], requests["memory"] = f"{resource.memMB}M", f"{max(resource.memMB - _RESERVED_MB, 0)}M"
    devices = {"nvidia.com/gpu": resource.gpu, **resource.devices}
    limits |= {name: str(count) for name, count in devices.items() if count > 0}
    requests |= {name: str(count) for name, count in devices.items() if count > 0}
    return {"limits": limits, "requests": requests} if limits else {}


def _volumes(role: specs.Role) -> tuple[list[dict[str, Any]], list[dict[str, Any]], bool]:
    """Volumes, their mounts, and whether these need a privileged container."""
    # The loader's processes share memory, of which a container has 64 MB by default.
    volumes: list[dict[str, Any]] = [{"name": "dshm", "emptyDir": {"medium": "Memory"}}]
    mounts: list[dict[str, Any]] = [{"name": "dshm", "mountPath": "/dev/shm"}]
    for index, mount in enumerate(role.mounts):
        name = f"mount-{index}"
        if isinstance(mount, specs.VolumeMount):
            read_only = mount.read_only
            volumes.append({"name": name, "persistentVolumeClaim": {"claimName": mount.src}})
        else:
            read_only = mount.read_only if isinstance(mount, specs.BindMount) else "w" not in mount.permissions
            volumes.append({"name": name, "hostPath": {"path": mount.src_path}})
        mounts.append({"name": name, "mountPath": mount.dst_path, "readOnly": read_only})
    return volumes, mounts, any(isinstance(mount, specs.DeviceMount) for mount in role.mounts)
