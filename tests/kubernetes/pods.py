"""A pod as processes of this machine, with its own namespaces and root file system, and with its volumes mounted.

Files outside its volumes disappear with the pod. The image is this machine's file system with the repository. The
network is this machine's too; every pod's name is an address of the loopback device.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

import psutil

from tests.conftest import ROOT

GRACE_SECONDS = 30  # for a pod that does not set it
# The first process in new namespaces is number 1 there. It ends when the process that waits for it here ends.
_START = 'setpriv --pdeathsig KILL bash -ec "$@" & exec 2>/dev/null; wait $!'
# $1 is an empty folder, $2 the cluster's /etc/hosts, $3 the pod's host name, $4 its mounts; the rest is its process.
_SETUP = """
layer=$1 hosts=$2 name=$3 mounts=$4; shift 4
mount -t tmpfs pod "$layer"
mkdir "$layer/upper" "$layer/work" "$layer/root"
mount -t overlay pod -o "lowerdir=/,upperdir=$layer/upper,workdir=$layer/work" "$layer/root"
cd "$layer/root"
hostname "$name"
mount --rbind /dev dev; mount --rbind /sys sys; mount -t proc proc proc
eval "$mounts"
mount --bind "$hosts" etc/hosts
exec chroot . env -i "$@"
"""


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def missing() -> str:
    """Why this machine cannot run pods, in words; "" if it can."""
    if os.geteuid():
        return "needs root for namespaces and mounts"
    words = ["unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "sh", "-ec"]
    script = "mount -t tmpfs x /mnt; cd /mnt; mkdir u w r; mount -t overlay x -o lowerdir=/,upperdir=u,workdir=w r"
    try:
        tried = subprocess.run([*words, script], capture_output=True, text=True, timeout=20)
    except OSError as error:
        return f"needs util-linux: {error}"
    return f"needs mount, UTS and PID namespaces and overlayfs: {tried.stderr.strip()}" if tried.returncode else ""


class Pod:
    """A pod from its creation to its removal."""

    def __init__(self, manifest: dict, task: str, version: int) -> None:
        self.manifest, self.task, self.version = manifest, task, version
        self.name, self.namespace = manifest["metadata"]["name"], manifest["metadata"]["namespace"]
        self.uid, self.created = str(uuid.uuid4()), now()
        self.phase, self.exit_code, self.reason = "Pending", None, ""
        self.deleted_at = ""
        self.index = 0
        self.held = False
        """Whether its Job has yet to take note of its end: a finalizer keeps the object until then."""
        self.discarded = False
        """Whether its job deleted it."""
        self.node = ""
        self._silent = self._removed = False
        self.lines: list[tuple[datetime, bytes]] = []
        self._deadline = 0.0
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None

    @property
    def spec(self) -> dict:
        return self.manifest["spec"]

    @property
    def claims(self) -> dict[str, str]:
        """The claim of each volume."""
        volumes = (volume for volume in self.spec.get("volumes", []) if "persistentVolumeClaim" in volume)
        return {volume["name"]: volume["persistentVolumeClaim"]["claimName"] for volume in volumes}

    @property
    def hostname(self) -> str:
        return self.spec.get("hostname", self.name)

    @property
    def secrets(self) -> set[str]:
        containers = self.spec["containers"]
        return {each["secretRef"]["name"] for container in containers for each in container.get("envFrom", [])}

    def _value(self, variable: dict) -> str:
        """The value of a variable, which may be an annotation of the pod."""
        if "valueFrom" not in variable:
            return variable.get("value", "")
        (name,) = re.findall(r"metadata\.annotations\['(.+)'\]", variable["valueFrom"]["fieldRef"]["fieldPath"])
        return self.manifest["metadata"]["annotations"].get(name, "")

    def start(
        self, folder: Path, hosts: Path, image: Mapping[str, str], claims: Mapping[str, Path],
        secrets: Mapping[str, Mapping[str, str]],
    ) -> None:  # fmt: skip
        """Runs the pod's container. claims: the folder of each claim. image: the environment of the image."""
        (container,) = self.spec["containers"]
        layer = folder / self.uid
        layer.mkdir()
        environment = {**image, "KUBERNETES_SERVICE_HOST": "127.0.0.1"}  # every pod gets the API's address
        for each in container.get("envFrom", []):
            environment |= secrets[each["secretRef"]["name"]]
        environment |= {each["name"]: self._value(each) for each in container.get("env", [])}
        words = [*container.get("command", []), *container.get("args", [])]
        self._process = subprocess.Popen(
            [
                *("unshare", "--mount", "--uts", "--ipc", "--pid", "bash", "-c", _START, "start", _SETUP),
                *("pod", str(layer), str(hosts), self.hostname, self._mounts(container, claims)),
                *(f"{name}={value}" for name, value in environment.items()),
                *(_expand(word, environment) for word in words),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
        self._reader.start()
        self.phase = "Running"

    def delete(self, seconds: int | None = None) -> None:
        """Tells its first process to end, and kills it after the grace period."""
        if seconds == 0 and self._silent:  # by force: the object is deleted, whatever its processes do
            self.remove()
        if self.deleted_at:
            return
        grace = self.spec.get("terminationGracePeriodSeconds", GRACE_SECONDS) if seconds is None else seconds
        self.deleted_at, self._deadline = now(), time.monotonic() + grace
        if self.phase == "Running" and not self._silent:
            self.signal(signal.SIGTERM)

    def cut_off(self) -> None:
        """Its node is out of reach: the state of the pod is unknown, and no output arrives."""
        self._silent = True
        self._signal_all(signal.SIGSTOP)

    def collect(self) -> None:
        """Its node is deleted: Kubernetes marks the pod as failed and deletes it."""
        if self.held:
            self.phase = "Failed"
        self.remove()

    def remove(self) -> None:
        """Deletes its object when nothing holds it."""
        self.deleted_at, self._removed = self.deleted_at or now(), True
        self._signal_all(signal.SIGKILL)

    def observe(self) -> bool:
        """Whether the phase has changed."""
        if self.phase != "Running" or self._process is None or self._silent:
            return False
        if self.deleted_at and time.monotonic() > self._deadline:
            self.signal(signal.SIGKILL)
        status = self._process.poll()
        if status is None:
            return False
        if self._reader is not None:
            self._reader.join()
        self.exit_code = status if status >= 0 else 128 - status
        self.phase = "Failed" if self.exit_code else "Succeeded"
        return True

    @property
    def gone(self) -> bool:
        return not self.held and (self._removed or (bool(self.deleted_at) and self.phase != "Running"))

    def signal(self, number: int) -> None:
        """Sends a signal to the pod's first process, which ignores signals without a handler, except KILL."""
        if (first := self.first_process()) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(first, number)

    def first_process(self) -> int | None:
        """The process that is number 1 inside the pod."""
        assert self._process is not None
        with contextlib.suppress(OSError):
            children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
            return int(children[0]) if children else None
        return None

    def _signal_all(self, number: int) -> None:
        """Signals its first process and that process's descendants."""
        if self._process is None or (first := self.first_process()) is None:
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in [*psutil.Process(first).children(recursive=True), psutil.Process(first)]:
                process.send_signal(number)

    def log(self) -> bytes:
        return b"".join(line for _, line in self.lines)

    def _read(self, stream: IO[bytes]) -> None:
        with stream:
            for line in stream:
                self.lines.append((datetime.now(UTC), line))

    def _mounts(self, container: dict, claims: Mapping[str, Path]) -> str:
        commands = []
        for image in dict.fromkeys((str(ROOT), sys.base_prefix, sys.prefix)):  # wherever they are mounted
            commands.append(f"mkdir -p .{image}; mount --bind {image} .{image}; mount -o remount,bind,ro .{image}")
        memory = {each["name"] for each in self.spec.get("volumes", []) if each.get("emptyDir", {}).get("medium")}
        for mount in container.get("volumeMounts", []):
            path = "." + mount["mountPath"]
            if mount["name"] in memory:
                commands.append(f"mkdir -p {path}; mount -t tmpfs memory {path}")
                continue
            source = claims[self.claims[mount["name"]]]
            commands.append(f"mkdir -p {path}; mount --bind {source} {path}")
            if mount.get("readOnly"):
                commands.append(f"mount -o remount,bind,ro {path}")
        return "; ".join(commands)


def _expand(word: str, environment: Mapping[str, str]) -> str:
    """Kubernetes' expansion of a command: $(NAME) for the container's variable NAME, and $ for $$."""

    def value(match: re.Match[str]) -> str:
        return "$" if match[0] == "$$" else environment.get(match[1], match[0])

    return re.sub(r"\$\$|\$\(([^)]*)\)", value, word)
