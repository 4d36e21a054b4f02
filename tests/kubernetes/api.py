"""The stand-in's API server: the paths that the official client uses, answered as Kubernetes does."""

import json
import re
import threading
import time
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from tests.kubernetes.manifests import Refused
from tests.kubernetes.pods import Pod

if TYPE_CHECKING:
    from tests.kubernetes.cluster import Cluster

_JOBS = r"/apis/batch\.volcano\.sh/v1alpha1/namespaces/(?P<namespace>[^/]+)/jobs"
_PODS = r"/api/v1/namespaces/(?P<namespace>[^/]+)/pods"
_OBJECTS = {
    "jobsets": ("jobset.x-k8s.io/v1alpha2", "jobsets"),
    "trainjobs": ("trainer.kubeflow.org/v1alpha1", "train_jobs"),
    "trainingruntimes": ("trainer.kubeflow.org/v1alpha1", "runtimes"),
}
"""Group and version of each kind, and the plural by which the cluster knows it."""
_KINDS = (
    r"/apis/(?P<group>jobset\.x-k8s\.io/v1alpha2|trainer\.kubeflow\.org/v1alpha1)"
    r"/namespaces/(?P<namespace>[^/]+)/(?P<kind>jobsets|trainjobs|trainingruntimes)"
)
_WORKLOADS = r"/apis/kueue\.x-k8s\.io/v1beta2/namespaces/(?P<namespace>[^/]+)/workloads"
_ROUTES = {
    ("POST", _KINDS): "create_object",
    ("GET", _KINDS): "list_objects",
    ("GET", _KINDS + r"/(?P<name>[^/]+)"): "get_object",
    ("DELETE", _KINDS + r"/(?P<name>[^/]+)"): "delete_object",
    ("GET", _WORKLOADS): "list_workloads",
    ("POST", _JOBS): "create_job",
    ("GET", _JOBS): "list_jobs",
    ("GET", _JOBS + r"/(?P<name>[^/]+)(/status)?"): "get_job",
    ("PUT", _JOBS + r"/(?P<name>[^/]+)/status"): "replace_job_status",
    ("DELETE", _JOBS + r"/(?P<name>[^/]+)"): "delete_job",
    ("GET", r"/api/v1/nodes"): "list_nodes",
    ("DELETE", r"/api/v1/nodes/(?P<name>[^/]+)"): "delete_node",
    ("GET", _PODS): "list_pods",
    ("GET", _PODS + r"/(?P<name>[^/]+)"): "get_pod",
    ("GET", _PODS + r"/(?P<name>[^/]+)/log"): "get_log",
    ("DELETE", _PODS + r"/(?P<name>[^/]+)"): "delete_pod",
    ("POST", _PODS + r"/(?P<name>[^/]+)/eviction"): "evict_pod",
}


def serve(cluster: "Cluster") -> ThreadingHTTPServer:
    """The server on a free port, running in a thread."""

    class Bound(_Handler):
        pass

    Bound.cluster = cluster
    server = ThreadingHTTPServer(("127.0.0.1", 0), Bound)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="api", daemon=True).start()
    return server


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    cluster: "Cluster"

    def log_message(self, format: str, *values: Any) -> None:
        with (self.cluster.folder / "api.log").open("a") as log:
            log.write(f"{format % values}\n")

    def do_GET(self) -> None:
        self._answer()

    do_POST = do_PUT = do_DELETE = do_PATCH = do_GET

    def _answer(self) -> None:
        url = urlsplit(self.path)
        self.query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            if self.headers.get("Authorization") != f"Bearer {self.cluster.token}":
                raise Refused(401, "Unauthorized", "Unauthorized")
            self.body = json.loads(raw) if raw else {}
            for (method, pattern), name in _ROUTES.items():
                if method == self.command and (match := re.fullmatch(pattern, url.path)):
                    getattr(self, name)(**match.groupdict())
                    return
            raise Refused(404, "NotFound", "the server could not find the requested resource")
        except Refused as error:
            status = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": error.code,
                      "message": str(error), "reason": error.reason, "details": error.details}  # fmt: skip
            self._send(status, error.code)

    def _asks(self, flag: str) -> bool:
        """Go's ParseBool, because versions of the client write booleans differently."""
        return self.query.get(flag) in ("1", "t", "T", "true", "TRUE", "True")

    def _send(self, value: object, code: int = 200) -> None:
        self._send_bytes(json.dumps(value).encode(), code, "application/json")

    def _send_bytes(self, content: bytes, code: int, kind: str) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _find(self, kind: str, objects: dict, namespace: str, name: str) -> Any:
        if (namespace, name) not in objects:
            group = ".batch.volcano.sh" if kind == "jobs" else ""
            raise Refused(404, "NotFound", f'{kind}{group} "{name}" not found', {"name": name, "kind": kind})
        return objects[namespace, name]

    def create_object(self, group: str, namespace: str, kind: str) -> None:
        if namespace not in self.cluster.namespaces:
            raise Refused(404, "NotFound", f'namespaces "{namespace}" not found', {"name": namespace})
        with self.cluster.lock:
            made = self.cluster.create_object(namespace, self.body)
            self._send(made if isinstance(made, dict) else made.to_json(), 201)

    def list_objects(self, group: str, namespace: str, kind: str) -> None:
        with self.cluster.lock:
            found = getattr(self.cluster, _OBJECTS[kind][1]).items()
            shown = [
                each if isinstance(each, dict) else each.to_json() for (within, _), each in found if within == namespace
            ]
        items = [each for each in shown if self._selected(each["metadata"].get("labels", {}))]
        self._send({"apiVersion": group, "kind": "List", "metadata": {}, "items": items})

    def get_object(self, group: str, namespace: str, kind: str, name: str) -> None:
        with self.cluster.lock:
            found = self._find(kind, getattr(self.cluster, _OBJECTS[kind][1]), namespace, name)
            self._send(found if isinstance(found, dict) else found.to_json())

    def delete_object(self, group: str, namespace: str, kind: str, name: str) -> None:
        with self.cluster.lock:
            self._find(kind, getattr(self.cluster, _OBJECTS[kind][1]), namespace, name)
            self.cluster.delete_object(namespace, name, _OBJECTS[kind][1])
        self._send({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"})

    def list_workloads(self, namespace: str) -> None:
        with self.cluster.lock:
            shown = [each.to_json() for each in self.cluster.kueue.workloads]
        items = [each for each in shown if self._selected(each["metadata"]["labels"])]
        self._send({"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": "WorkloadList", "metadata": {}, "items": items})

    def _selected(self, labels: dict) -> bool:
        terms = [term.partition("=") for term in self.query.get("labelSelector", "").split(",") if term]
        return all(name in labels and (not equals or labels[name] == value) for name, equals, value in terms)

    def create_job(self, namespace: str) -> None:
        if namespace not in self.cluster.namespaces:
            raise Refused(404, "NotFound", f'namespaces "{namespace}" not found', {"name": namespace})
        with self.cluster.lock:
            job = self.cluster.create_job(namespace, self.body, keep=self.query.get("dryRun") != "All")
            self._send(job.to_json(), 201)

    def list_jobs(self, namespace: str) -> None:
        with self.cluster.lock:
            items = [job.to_json() for (within, _), job in self.cluster.jobs.items() if within == namespace]
        self._send({"apiVersion": "batch.volcano.sh/v1alpha1", "kind": "JobList", "metadata": {}, "items": items})

    def get_job(self, namespace: str, name: str, **_: object) -> None:
        with self.cluster.lock:
            self._send(self._find("jobs", self.cluster.jobs, namespace, name).to_json())

    def replace_job_status(self, namespace: str, name: str) -> None:
        with self.cluster.lock:
            job = self._find("jobs", self.cluster.jobs, namespace, name)
            job.go(self.body["status"]["state"]["phase"])
            self._send(job.to_json())

    def delete_job(self, namespace: str, name: str) -> None:
        with self.cluster.lock:
            job = self._find("jobs", self.cluster.jobs, namespace, name)
            self.cluster.delete_job(namespace, name)
        details = {"name": name, "group": "batch.volcano.sh", "kind": "jobs", "uid": job.manifest["metadata"]["uid"]}
        self._send({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})

    def list_nodes(self) -> None:
        with self.cluster.lock:
            items = [self._node(name, lost) for name, lost in self.cluster.nodes.items()]
        self._send({"apiVersion": "v1", "kind": "NodeList", "metadata": {"resourceVersion": "1"}, "items": items})

    def delete_node(self, name: str) -> None:
        with self.cluster.lock:
            if name not in self.cluster.nodes:
                raise Refused(404, "NotFound", f'nodes "{name}" not found', {"name": name, "kind": "nodes"})
            self.cluster.delete_node(name)
        self._send({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"})

    def list_pods(self, namespace: str) -> None:
        with self.cluster.lock:
            items = [
                self._pod(pod)
                for (within, _), pod in self.cluster.pods.items()
                if within == namespace and self._selected(pod.manifest["metadata"]["labels"])
            ]
        self._send({"apiVersion": "v1", "kind": "PodList", "metadata": {"resourceVersion": "1"}, "items": items})

    def get_pod(self, namespace: str, name: str) -> None:
        with self.cluster.lock:
            self._send(self._pod(self._find("pods", self.cluster.pods, namespace, name)))

    def delete_pod(self, namespace: str, name: str) -> None:
        with self.cluster.lock:
            pod = self._find("pods", self.cluster.pods, namespace, name)
            seconds = self.query.get("gracePeriodSeconds", self.body.get("gracePeriodSeconds"))
            pod.delete(None if seconds is None else int(seconds))
            self._send(self._pod(pod))

    def evict_pod(self, namespace: str, name: str) -> None:
        with self.cluster.lock:
            pod = self._find("pods", self.cluster.pods, namespace, name)
            pod.reason = "EvictionByEvictionAPI"
            pod.delete((self.body.get("deleteOptions") or {}).get("gracePeriodSeconds"))
        self._send({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}, 201)

    def get_log(self, namespace: str, name: str) -> None:
        with self.cluster.lock:
            pod = self._find("pods", self.cluster.pods, namespace, name)
        if pod.phase == "Pending":
            container = pod.spec["containers"][0]["name"]
            text = f'container "{container}" in pod "{name}" is waiting to start: ContainerCreating'
            raise Refused(400, "BadRequest", text)
        since = datetime.min.replace(tzinfo=UTC)
        if "sinceSeconds" in self.query:
            if not self.query["sinceSeconds"].isdecimal():
                raise Refused(400, "BadRequest", f'strconv.ParseInt: parsing "{self.query["sinceSeconds"]}": invalid')
            since = datetime.now(UTC) - timedelta(seconds=int(self.query["sinceSeconds"]))
        if not self._asks("follow"):
            lines = [self._line(*line) for line in pod.lines if line[0] >= since]
            tail = int(self.query.get("tailLines", len(lines)))
            self._send_bytes(b"".join(lines[len(lines) - min(tail, len(lines)) :]), 200, "text/plain")
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        sent = 0
        while True:
            ended = pod.phase != "Running"  # asked before the lines are read, since more may follow
            lines = pod.lines[sent:]
            sent += len(lines)
            for line in lines:
                if line[0] >= since:
                    text = self._line(*line)
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(text), text))
            self.wfile.flush()
            if ended:
                break
            time.sleep(0.1)
        self.wfile.write(b"0\r\n\r\n")

    def _line(self, at: datetime, text: bytes) -> bytes:
        stamp = at.strftime("%Y-%m-%dT%H:%M:%S.%f000Z ") if self._asks("timestamps") else ""
        return stamp.encode() + text

    def _node(self, name: str, lost: float) -> dict:
        ready = {"type": "Ready", "status": "Unknown" if lost else "True"}
        taints = [{"key": "node.kubernetes.io/unreachable", "effect": "NoExecute"}] if lost else []
        return {"metadata": {"name": name}, "spec": {"taints": taints}, "status": {"conditions": [ready]}}

    def _pod(self, pod: Pod) -> dict:
        (container,) = pod.spec["containers"]
        ended = {"terminated": {"exitCode": pod.exit_code, "reason": "Error" if pod.exit_code else "Completed"}}
        state = {"Pending": {"waiting": {"reason": "ContainerCreating"}}, "Running": {"running": {}}}
        status = {
            "name": container["name"],
            "image": container["image"],
            "imageID": "",
            "ready": pod.phase == "Running",
            "restartCount": 0,
            "state": state.get(pod.phase, ended),
        }
        metadata = {**pod.manifest["metadata"], "uid": pod.uid, "creationTimestamp": pod.created}
        conditions = []
        if pod.deleted_at:
            metadata["deletionTimestamp"] = pod.deleted_at
        if pod.reason:
            conditions.append({"type": "DisruptionTarget", "status": "True", "reason": pod.reason})
        shown = {"phase": pod.phase, "podIP": self.cluster.address(pod), "conditions": conditions}
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": metadata,
            "spec": {**pod.spec, "nodeName": pod.node} if pod.node else pod.spec,
            "status": {**shown, "containerStatuses": [status]},
        }
