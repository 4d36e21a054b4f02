"""From a component's arguments to the role TorchX starts: `deit-fast WORDS` under torchrun on every node."""

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
    """A role whose metadata hold what TorchX's scheduler kubernetes cannot be told."""

    def pre_proc(self, scheduler: str, dryrun_info: Any) -> Any:
        """Adds it to a job of Volcano's: the policies of our exit statuses, and the overlay where TorchX has none.

        Volcano takes the first policy that fits. TorchX has one for all failures, which starts the job again.
        """
        resource = getattr(dryrun_info.request, "resource", {})
        for task in resource.get("spec", {}).get("tasks", ()):
            if "policies" in task:
                task["policies"] = POLICIES
            if find_spec("torchx.specs.overlays") is None:  # 0.7.0
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
            "PYTHONUNBUFFERED": "1",  # or torchrun keeps its workers' log lines until there are 8 KiB of them
            **plain,
        },
        num_replicas=nodes,
        # A retry that started over, or from another checkpoint, would lose what came since.
        max_retries=0 if starts_once else where.max_retries,
        resource=resource,
        mounts=where.volumes,
        metadata={"kubernetes": {"V1Pod": where.pod}, "starts_once": starts_once},
    )


def _script(words: list[str], where: Where, cpu: int, variables: dict[str, str]) -> str:
    """The bash script of one node. `$$` is the shell's `$`; a single one belongs to TorchX's macros.

    It ends in `exec`, so the scheduler's signals reach torchrun, which passes TERM on and waits for the workers. It is
    started by a module of deit_fast that ends with the workers' status, as torchrun does not. Slurm sends USR1 to every
    process of the job: torchrun would die of it, so it is ignored until a worker handles it.
    In a pod the shell is process 1 and stays: for that one Linux drops a TERM that nobody handles, and until torchrun
    does, a pod that is to end would join the pods that take its place.
    """
    nodes, processes = where.layout
    # torchrun sets one thread per process where it is told nothing, which idles the cores of a machine without GPUs.
    limit = f"cores=$$((cores < {cpu} ? cores : {cpu})); " if cpu > 0 else ""
    # The submitter's own Python where that path exists (this machine, a shared file system), else the one on PATH.
    submitter = _quote(sys.executable)
    setup = [
        "trap '' USR1",
        *(f"export {key}={_quote(value)}" for key, value in variables.items()),
        f"cores=$$(nproc); {limit}"
        f"export OMP_NUM_THREADS=$${{OMP_NUM_THREADS:-$$((cores > {processes} ? cores / {processes} : 1))}}",
        f"python=$$(command -v {submitter} || echo python3)",
    ]
    # Port 0 lets torchrun take a free one. Nodes have to agree on theirs beforehand: from the id they share, which
    # keeps two jobs on one host apart, and from the number of restarts, since another program may have the port of the
    # start before. It is below the ports Linux hands out by itself.
    restarts = "$${SLURM_RESTART_COUNT:-$${DEIT_FAST_RESTARTS:-0}}"
    number = f"printf %s-%s {macros.app_id} {restarts} | cksum | cut -d ' ' -f 1"
    port = str(where.rdzv_port or f"$$((20000 + $$({number}) % 10000))")
    endpoint = "localhost:0" if nodes == 1 else f'"$${{{macros.rank0_env}:=localhost}}:{port}"'
    # One process writes its log as it is; of several, every line carries its rank.
    tee = "" if nodes * processes == 1 else "--tee 3 --role rank "
    command = (
        f'"$$python" -P -m deit_fast.runtime.torchrun '  # -P: from where it is installed, as torchrun itself
        f"--nnodes {nodes} --nproc-per-node {processes} --max-restarts 0 {tee}"
        f"--node-rank {macros.replica_id} --rdzv-backend c10d --rdzv-endpoint {endpoint} --rdzv-id {macros.app_id} "
        "-m deit_fast.cli "
    )
    launch = [
        f"launch() {{ exec {command}{' '.join(_quote(word) for word in words)}; }}",
        "[ $$BASHPID = 1 ] || launch",  # Kubernetes makes one dollar of two
        "trap 'kill -TERM $$child' TERM",
        "launch & child=$$!",
        # A signal ends the wait, and not the child.
        "wait $$child",
        "status=$$?",
        "while kill -0 $$child 2>/dev/null; do wait $$child; status=$$?; done",
        "exit $$status",
    ]
    return "; ".join([*setup, *launch])


def _is_plain(value: str) -> bool:
    """Whether a variable's value passes every scheduler as it is.

    srun cuts a value in --export at its first comma and takes quotes away; TorchX and Kubernetes replace what follows
    a dollar. Those that are not plain go through the script.
    """
    return "," not in value and shlex.quote(value) == value


def _quote(word: str) -> str:
    """A word for bash that neither TorchX's macros, Slurm's job id nor Kubernetes' $(NAME) can change."""
    return shlex.quote(word).replace("$", "$''")  # shlex quotes every word with a dollar: end and reopen the quotes


def job_name(name: str) -> str:
    """A name every scheduler takes, short enough for a pod name with TorchX's suffixes."""
    return re.sub(r"[^a-z0-9]+", "-", Path(name).stem.lower())[:30].strip("-") or "deit"
