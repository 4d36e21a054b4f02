"""From a component's arguments to the role TorchX starts: `deit-fast WORDS` under torchrun on every node."""

import re
import shlex
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import yaml
from torchx import specs
from torchx.specs import macros

from deit_fast.recipe.schema import Recipe
from deit_fast.recipe.table import get_recipe
from deit_fast.runtime.errors import RecipeError, one_line

SHUTDOWN_SECONDS = 100  # for the last checkpoint, before torchrun kills


class Where(NamedTuple):
    """The arguments every component has: on how many, on what, how often."""

    j: str
    h: str | None
    cpu: int
    gpu: int
    memMB: int
    image: str
    env: dict[str, str] | None
    mounts: list[str] | None
    overlay: str
    max_retries: int
    rdzv_port: int

    @property
    def layout(self) -> tuple[int, int]:
        """Nodes, processes per node."""
        match = re.fullmatch(r"(?:([1-9]\d*)x)?([1-9]\d*)", self.j)
        if match is None:
            refuse(f"j={self.j!r}: expected NODESxPROCESSES or PROCESSES, for example 2x8")
        return int(match[1] or 1), int(match[2])

    @property
    def resource(self) -> specs.Resource:
        given = {"cpu": self.cpu, "gpu": self.gpu, "memMB": self.memMB}
        try:
            named = specs.resource(h=self.h) if self.h else specs.Resource(cpu=0, gpu=0, memMB=0)
        except KeyError:
            refuse(f"h={self.h!r}: expected a named resource registered with TorchX, or cpu, gpu and memMB")
        return replace(named, **{name: value for name, value in given.items() if value})

    @property
    def pod(self) -> dict[str, Any]:
        """What TorchX's nightlies lay over a pod of Kubernetes, which kills after 30 seconds if not told otherwise."""
        pod: dict[str, Any] = {"spec": {"terminationGracePeriodSeconds": SHUTDOWN_SECONDS + 20}}
        if not self.overlay:
            return pod
        if find_spec("torchx.specs.overlays") is None:
            refuse(
                f"overlay={self.overlay!r}: expected none with this TorchX, which would ignore it; a nightly does not"
            )
        try:
            given = yaml.safe_load(Path(self.overlay).read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            refuse(f"overlay={self.overlay!r}: expected a YAML file ({one_line(error)})")
        if (
            not isinstance(given, dict)
            or not given.keys() <= {"metadata", "spec"}
            or not all(isinstance(part, dict) for part in given.values())
        ):
            refuse(f"overlay={self.overlay!r}: expected the pod's spec: and metadata:, of fields each")
        return {**given, "spec": {**pod["spec"], **given.get("spec", {})}}


def build_role(name: str, words: list[str], where: Where) -> specs.Role:
    """`python -m deit_fast.cli WORDS` under torchrun, on every node."""
    nodes, processes = where.layout
    resource = where.resource
    if 0 < resource.gpu < processes:
        refuse(f"j={where.j!r}: expected at most {resource.gpu} processes per node, one for each of its GPUs")
    return specs.Role(
        name=name,
        image=where.image,
        entrypoint="bash",
        args=["-c", _script(words, where, resource.cpu)],
        # srun cuts a value in --export at its first comma; those go through the script.
        env={
            "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(SHUTDOWN_SECONDS),
            "PYTHONUNBUFFERED": "1",  # or torchrun keeps its workers' log lines until there are 8 KiB of them
            **{key: value for key, value in (where.env or {}).items() if "," not in value},
        },
        num_replicas=nodes,
        # A retry that started over, or from another checkpoint, would lose what came since.
        max_retries=0 if "--resume" in words else where.max_retries,
        resource=resource,
        mounts=specs.parse_mounts(where.mounts) if where.mounts else [],
        metadata={"kubernetes": {"V1Pod": where.pod}},  # TorchX 0.7.0 ignores it
    )


def _script(words: list[str], where: Where, cpu: int) -> str:
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
        *(f"export {key}={_quote(value)}" for key, value in (where.env or {}).items() if "," in value),
        f"cores=$$(nproc); {limit}"
        f"export OMP_NUM_THREADS=$${{OMP_NUM_THREADS:-$$((cores > {processes} ? cores / {processes} : 1))}}",
        f"python=$$(command -v {submitter} || echo python3)",
    ]
    # Port 0 lets torchrun take a free one. Nodes have to agree on theirs beforehand: from the id they share, which
    # keeps two jobs on one host apart, and below the ports Linux hands out by itself.
    port = str(where.rdzv_port or f"$$((20000 + $$(printf %s {macros.app_id} | cksum | cut -d ' ' -f 1) % 10000))")
    endpoint = "localhost:0" if nodes == 1 else f'"$${{{macros.rank0_env}:=localhost}}:{port}"'
    # One process writes its log as it is; of several, every line carries its rank.
    tee = "" if nodes * processes == 1 else "--tee 3 --role rank "
    command = (
        f'"$$python" -P -m deit_fast.runtime.torchrun '  # -P: from where it is installed, as torchrun itself
        f"--nnodes {nodes} --nproc-per-node {processes} --max-restarts 0 {tee}"
        f"--rdzv-backend c10d --rdzv-endpoint {endpoint} --rdzv-id {macros.app_id} -m deit_fast.cli "
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


def _quote(word: str) -> str:
    """A word for bash that neither TorchX's macros, Slurm's job id nor Kubernetes' $(NAME) can change."""
    return shlex.quote(word).replace("$", "$''")  # shlex quotes every word with a dollar: end and reopen the quotes


def check_recipe(recipe: str, overrides: list[str]) -> Recipe:
    try:
        return get_recipe(recipe, overrides)
    except RecipeError as error:
        refuse(str(error))


def job_name(name: str) -> str:
    """A name every scheduler takes, short enough for a pod name with TorchX's suffixes."""
    return re.sub(r"[^a-z0-9]+", "-", Path(name).stem.lower())[:30].strip("-") or "deit"


def refuse(message: str) -> NoReturn:
    for line in message.split("\n"):
        print(f"deit-fast: {line}", file=sys.stderr)
    raise SystemExit(2)
