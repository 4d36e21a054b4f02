"""Makes the role that TorchX starts from a component's arguments: `deit-fast WORDS` under torchrun on every node."""

import re
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from deit_fast.components.arguments import SHUTDOWN_SECONDS, Where, refuse
from deit_fast.components.manifests.pods import lay_over
from deit_fast.components.manifests.volcano import POLICIES
from torchx import specs
from torchx.specs import macros


class NodeRole(specs.Role):
    """A role whose metadata hold settings that TorchX's scheduler kubernetes has no option for."""

    def pre_proc(self, scheduler: str, dryrun_info: Any) -> Any:
        """Adds these settings to a job of Volcano: policies for exit statuses, and the overlay if TorchX has none.

        Volcano applies the first policy that matches. TorchX's own policy restarts the job after any failure.
        """
        resource = getattr(dryrun_info.request, "resource", {})
        for task in resource.get("spec", {}).get("tasks", ()):
            if "policies" in task:
                task["policies"] = POLICIES
            if find_spec("torchx.specs.overlays") is None:  # as in TorchX 0.7.0
                from torchx.schedulers.kubernetes_scheduler import sanitize_for_serialization

                pod = sanitize_for_serialization(task["template"])
                task["template"] = lay_over(pod, self.metadata["kubernetes"]["V1Pod"])
        return dryrun_info


def build_role(name: str, words: list[str], where: Where) -> NodeRole:
    """`python -m deit_fast.cli WORDS` under torchrun, on every node."""
    where.check()
    nodes, processes = where.layout
    resource, variables = where.resource, where.variables
    plain = {key: value for key, value in variables.items() if _is_plain(value)}
    others = {key: value for key, value in variables.items() if key not in plain}
    if 0 < resource.gpu < processes:
        refuse(f"j={where.j!r}: expected at most {resource.gpu} processes per node, one for each of its GPUs")
    starts_once = "--resume" in words
    return NodeRole(
        name=name,
        image=where.image,
        entrypoint="bash",
        args=["-c", _script(words, where, resource.cpu, others)],
        env={
            "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(SHUTDOWN_SECONDS),
            "PYTHONUNBUFFERED": "1",  # else torchrun holds its workers' log lines back until there are 8 KiB
            **plain,
        },
        num_replicas=nodes,
        # A retry that starts over, or from another checkpoint, would lose the progress since.
        max_retries=0 if starts_once else where.max_retries,
        resource=resource,
        mounts=where.volumes,
        metadata={"kubernetes": {"V1Pod": where.pod}, "starts_once": starts_once},
    )


def _script(words: list[str], where: Where, cpu: int, variables: dict[str, str]) -> str:
    """The bash script of one node. `$$` is the shell's `$`; a single `$` belongs to TorchX's macros.

    The script ends with `exec`, so the scheduler's signals reach torchrun, which passes TERM on and waits for its
    workers. deit_fast.runtime.torchrun starts torchrun, so that the process ends with the workers' status. Slurm sends
    USR1 to every process of the job. torchrun would die of this signal, so it is ignored until a worker handles it.

    In a pod, the shell is process 1 and keeps running. Linux drops a TERM for process 1 if the process does not handle
    it. Until torchrun handles TERM, a pod that is told to end would therefore keep running and join the pods that
    replace it.
    """
    nodes, processes = where.layout
    # Without a setting torchrun sets one thread per process, which leaves the cores of a machine without GPUs idle.
    limit = f"cores=$$((cores < {cpu} ? cores : {cpu})); " if cpu > 0 else ""
    # The submitter's own Python, if its path exists (on this machine or a shared file system), else the one on PATH.
    submitter = _quote(sys.executable)
    setup = [
        "trap '' USR1",
        *(f"export {key}={_quote(value)}" for key, value in variables.items()),
        f"cores=$$(nproc); {limit}"
        f"export OMP_NUM_THREADS=$${{OMP_NUM_THREADS:-$$((cores > {processes} ? cores / {processes} : 1))}}",
        f"python=$$(command -v {submitter} || echo python3)",
    ]
    # Port 0 lets torchrun choose a free port on a single node. Several nodes have to agree on a port beforehand. They
    # derive it from the job's id, which separates two jobs on one host, and from the number of restarts, since another
    # program may hold the port of the start before. The port is below the range from which Linux assigns ports.
    restarts = "$${SLURM_RESTART_COUNT:-$${DEIT_FAST_RESTARTS:-0}}"
    number = f"printf %s-%s {macros.app_id} {restarts} | cksum | cut -d ' ' -f 1"
    port = str(where.rdzv_port or f"$$((20000 + $$({number}) % 10000))")
    endpoint = "localhost:0" if nodes == 1 else f'"$${{{macros.rank0_env}:=localhost}}:{port}"'
    # A single process logs its lines unchanged; with several, every line carries its rank.
    tee = "" if nodes * processes == 1 else "--tee 3 --role rank "
    command = (
        f'"$$python" -P -m deit_fast.runtime.torchrun '  # -P: imports from the installation, not the working folder
        f"--nnodes {nodes} --nproc-per-node {processes} --max-restarts 0 {tee}"
        f"--node-rank {macros.replica_id} --rdzv-backend c10d --rdzv-endpoint {endpoint} --rdzv-id {macros.app_id} "
        "-m deit_fast.cli "
    )
    launch = [
        f"launch() {{ exec {command}{' '.join(_quote(word) for word in words)}; }}",
        "[ $$BASHPID = 1 ] || launch",  # Kubernetes turns two dollars into one
        "trap 'kill -TERM $$child' TERM",
        "launch & child=$$!",
        # A signal ends `wait`, but not the child process.
        "wait $$child",
        "status=$$?",
        "while kill -0 $$child 2>/dev/null; do wait $$child; status=$$?; done",
        "exit $$status",
    ]
    return "; ".join([*setup, *launch])


def _is_plain(value: str) -> bool:
    """Whether a variable's value passes through every scheduler unchanged.

    srun cuts a value in --export at its first comma and removes quotes; TorchX and Kubernetes replace text after a
    dollar. Other values are set in the script instead.
    """
    return "," not in value and shlex.quote(value) == value


def _quote(word: str) -> str:
    """A word for bash that neither TorchX's macros, nor Slurm's job id, nor Kubernetes' $(NAME) can change."""
    return shlex.quote(word).replace("$", "$''")  # shlex quotes every word with a dollar; end and reopen its quotes


def job_name(name: str) -> str:
    """A name that every scheduler accepts, short enough for a pod's name with TorchX's suffixes."""
    return re.sub(r"[^a-z0-9]+", "-", Path(name).stem.lower())[:30].strip("-") or "deit"
