# ruff: noqa: UP006, UP035, UP045
# TorchX checks annotations by their syntax: typing's Dict, List and Optional, never `X | None` and never a string.
"""TorchX components: where a recipe runs and on how many processes. What is learned is the recipe and its overrides.

    torchx run -s local_cwd components/deit.py:pretrain \\
        --recipe deit3_base_1k_192 --data /data/imagenet --out runs/base -j 1x8 optim.lr=3e-3

Everything is checked before anything is submitted; a bad value is one line on stderr and exit status 2.

TorchX 0.7.0 executes a component file inside its own module torchx.specs.finder, so imports here are absolute and no
name may replace one of the finder's. Functions that are no components return something else than an AppDef.
"""

import re
import shlex
import sys
from pathlib import Path
from typing import Dict, List, NamedTuple, NoReturn, Optional

from torchx import specs
from torchx.specs import macros

from deit_fast.errors import RecipeError
from deit_fast.recipe import Recipe
from deit_fast.recipes import get_recipe


class _Where(NamedTuple):
    """The arguments every component has: on how many, on what, how often."""

    j: str
    h: Optional[str]
    cpu: int
    gpu: int
    memMB: int
    image: str
    env: Optional[Dict[str, str]]
    mounts: Optional[List[str]]
    max_retries: int
    rdzv_port: int

    @property
    def layout(self) -> tuple[int, int]:
        """Nodes, processes per node."""
        match = re.fullmatch(r"(?:([1-9]\d*)x)?([1-9]\d*)", self.j)
        if match is None:
            _refuse(f"j={self.j!r}: expected NODESxPROCESSES or PROCESSES, for example 2x8")
        return int(match[1] or 1), int(match[2])

    @property
    def resource(self) -> specs.Resource:
        if not self.h:
            return specs.Resource(cpu=self.cpu, gpu=self.gpu, memMB=self.memMB)
        try:
            return specs.resource(h=self.h)
        except KeyError:
            _refuse(f"h={self.h!r}: expected a named resource registered with TorchX, or cpu, gpu and memMB")


def pretrain(
    *overrides: str,
    recipe: str,
    data: str,
    out: str,
    val: str = "",
    teacher: str = "",
    resume: str = "auto",
    j: str = "1x1",
    h: Optional[str] = None,
    cpu: int = 0,
    gpu: int = 0,
    memMB: int = 0,
    image: str = "deit_fast:latest",
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
    max_retries: int = 3,
    rdzv_port: int = 0,
    name: str = "",
) -> specs.AppDef:
    """Trains a recipe from scratch. Submitted again with the same --out, it resumes.

    Args:
        overrides: what is learned differently: section.key=value words, last on the line
        recipe: name in the recipe table, or a .toml or .json file
        data: training images: an image folder or shards
        out: run folder, on storage every node shares
        val: validation images; empty takes those beside the training images
        teacher: weights of the recipe's distill.teacher; needed where it distils, refused elsewhere
        resume: auto, never, or a checkpoint to continue
        j: NODESxPROCESSES; one process per GPU
        h: named resource of a node; takes precedence over cpu, gpu and memMB
        cpu: CPU cores per node to ask the scheduler for; 0 is its default
        gpu: GPUs per node to ask the scheduler for
        memMB: memory per node to ask the scheduler for, MB; 0 is its default
        image: container image with deit_fast in it (local_cwd and slurm ignore it)
        env: environment variables, KEY=value,...
        mounts: volumes, type=volume,src=CLAIM,dst=PATH,... (local_cwd and slurm ignore them)
        max_retries: times the scheduler starts a failed or preempted run again
        rdzv_port: port of the first node where processes meet; 0 derives it from the job; one node needs none
        name: job name; empty is the recipe's
    """
    where = _Where(j, h, cpu, gpu, memMB, image, env, mounts, max_retries, rdzv_port)
    options = {"--val": val, "--teacher": teacher, "--resume": resume}
    role = _train_role(list(overrides), recipe, data, out, options, where)
    return specs.AppDef(name=_job_name(name or recipe), roles=[role])


def finetune(
    *overrides: str,
    recipe: str,
    init: str,
    data: str,
    out: str,
    val: str = "",
    teacher: str = "",
    resume: str = "auto",
    j: str = "1x1",
    h: Optional[str] = None,
    cpu: int = 0,
    gpu: int = 0,
    memMB: int = 0,
    image: str = "deit_fast:latest",
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
    max_retries: int = 3,
    rdzv_port: int = 0,
    name: str = "",
) -> specs.AppDef:
    """Trains a recipe from a checkpoint's weights. Submitted again with the same --out, it resumes.

    Args:
        overrides: what is learned differently: section.key=value words, last on the line
        recipe: name in the recipe table, or a .toml or .json file
        init: checkpoint whose weights to start from
        data: training images: an image folder or shards
        out: run folder, on storage every node shares
        val: validation images; empty takes those beside the training images
        teacher: weights of the recipe's distill.teacher; needed where it distils, refused elsewhere
        resume: auto, never, or a checkpoint to continue
        j: NODESxPROCESSES; one process per GPU
        h: named resource of a node; takes precedence over cpu, gpu and memMB
        cpu: CPU cores per node to ask the scheduler for; 0 is its default
        gpu: GPUs per node to ask the scheduler for
        memMB: memory per node to ask the scheduler for, MB; 0 is its default
        image: container image with deit_fast in it (local_cwd and slurm ignore it)
        env: environment variables, KEY=value,...
        mounts: volumes, type=volume,src=CLAIM,dst=PATH,... (local_cwd and slurm ignore them)
        max_retries: times the scheduler starts a failed or preempted run again
        rdzv_port: port of the first node where processes meet; 0 derives it from the job; one node needs none
        name: job name; empty is the recipe's
    """
    if not init:
        _refuse("init: missing; expected the checkpoint to start from")
    where = _Where(j, h, cpu, gpu, memMB, image, env, mounts, max_retries, rdzv_port)
    options = {"--val": val, "--init": init, "--teacher": teacher, "--resume": resume}
    role = _train_role(list(overrides), recipe, data, out, options, where)
    return specs.AppDef(name=_job_name(name or recipe), roles=[role])


def evaluate(
    *overrides: str,
    checkpoint: str,
    data: str,
    out: str = "",
    ema: bool = False,
    flip: bool = False,
    real: str = "",
    report: str = "",
    j: str = "1x1",
    h: Optional[str] = None,
    cpu: int = 0,
    gpu: int = 0,
    memMB: int = 0,
    image: str = "deit_fast:latest",
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
    max_retries: int = 3,
    rdzv_port: int = 0,
    name: str = "evaluate",
) -> specs.AppDef:
    """Measures a checkpoint's accuracy.

    Args:
        overrides: what the checkpoint's recipe gets different: section.key=value words, last on the line
        checkpoint: checkpoint to evaluate
        data: validation images: an image folder or shards
        out: JSON file for the result; empty only prints it
        ema: evaluate the moving average of the weights
        flip: average the logits of each image and its mirror image
        real: the real.json of ImageNet-ReaL, to score by its labels too
        report: folder for accuracy per class, confusion matrix and the most confident mistakes
        j: NODESxPROCESSES; one process per GPU
        h: named resource of a node; takes precedence over cpu, gpu and memMB
        cpu: CPU cores per node to ask the scheduler for; 0 is its default
        gpu: GPUs per node to ask the scheduler for
        memMB: memory per node to ask the scheduler for, MB; 0 is its default
        image: container image with deit_fast in it (local_cwd and slurm ignore it)
        env: environment variables, KEY=value,...
        mounts: volumes, type=volume,src=CLAIM,dst=PATH,... (local_cwd and slurm ignore them)
        max_retries: times the scheduler starts a failed or preempted run again
        rdzv_port: port of the first node where processes meet; 0 derives it from the job; one node needs none
        name: job name
    """
    # The checkpoint and its recipe may not be readable from here: keys and types are checked on a row of the table.
    _checked_recipe("deit3_base_1k_192", list(overrides))
    options = [("--json", out), ("--real", real), ("--report", report)]
    words = ["evaluate", checkpoint, "--data", data, *(word for option in options if option[1] for word in option)]
    words += [*(["--ema"] if ema else []), *(["--flip"] if flip else []), *overrides]
    where = _Where(j, h, cpu, gpu, memMB, image, env, mounts, max_retries, rdzv_port)
    return specs.AppDef(name=_job_name(name), roles=[_role("evaluate", words, where)])


def _train_role(
    overrides: List[str], recipe: str, data: str, out: str, options: Dict[str, str], where: _Where
) -> specs.Role:
    resolved = _checked_recipe(recipe, overrides)
    nodes, processes = where.layout
    try:
        resolved.check_processes(nodes * processes)
        resolved.check_teacher(options["--teacher"])
    except RecipeError as error:
        _refuse(str(error))
    words = ["train", recipe, "--data", data, "--out", out]
    words += [word for option in options.items() if option[1] and option != ("--resume", "auto") for word in option]
    return _role("train", words + overrides, where)


def _role(name: str, words: List[str], where: _Where) -> specs.Role:
    """`python -m deit_fast.cli WORDS` under torchrun, on every node."""
    nodes, processes = where.layout
    resource = where.resource
    if 0 < resource.gpu < processes:
        _refuse(f"j={where.j!r}: expected at most {resource.gpu} processes per node, one for each of its GPUs")
    return specs.Role(
        name=name,
        image=where.image,
        entrypoint="bash",
        args=["-c", _script(words, where, resource.cpu)],
        # srun cuts a value in --export at its first comma; those go through the script.
        env={
            "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "100",  # seconds for the last checkpoint, before torchrun kills
            **{key: value for key, value in (where.env or {}).items() if "," not in value},
        },
        num_replicas=nodes,
        # A retry that started over, or from another checkpoint, would lose what came since.
        max_retries=0 if "--resume" in words else where.max_retries,
        resource=resource,
        mounts=specs.parse_mounts(where.mounts) if where.mounts else [],
    )


def _script(words: List[str], where: _Where, cpu: int) -> str:
    """The bash script of one node. `$$` is the shell's `$`; a single one belongs to TorchX's macros.

    It ends in `exec`, so the scheduler's signals reach torchrun, which passes TERM on and waits for the workers. Slurm
    sends USR1 to every process of the job: torchrun would die of it, so it is ignored until a worker handles it.
    """
    nodes, processes = where.layout
    # torchrun sets one thread per process where it is told nothing, which idles the cores of a machine without GPUs.
    limit = f"cores=$$((cores < {cpu} ? cores : {cpu})); " if cpu > 0 else ""
    # The submitter's own torchrun where that path exists (this machine, a shared file system), else the one on PATH.
    submitter = _quote(str(Path(sys.executable).parent / "torchrun"))
    setup = [
        "trap '' USR1",
        *(f"export {key}={_quote(value)}" for key, value in (where.env or {}).items() if "," in value),
        f"cores=$$(nproc); {limit}"
        f"export OMP_NUM_THREADS=$${{OMP_NUM_THREADS:-$$((cores > {processes} ? cores / {processes} : 1))}}",
        f"torchrun=$$(command -v {submitter} || echo torchrun)",
    ]
    # Port 0 lets torchrun take a free one. Nodes have to agree on theirs beforehand: from the id they share, which
    # keeps two jobs on one host apart, and below the ports Linux hands out by itself.
    port = str(where.rdzv_port or f"$$((20000 + $$(printf %s {macros.app_id} | cksum | cut -d ' ' -f 1) % 10000))")
    endpoint = "localhost:0" if nodes == 1 else f'"$${{{macros.rank0_env}:=localhost}}:{port}"'
    # One process writes its log as it is; of several, every line carries its rank.
    tee = "" if nodes * processes == 1 else "--tee 3 --role rank "
    launch = (
        f'exec "$$torchrun" --nnodes {nodes} --nproc-per-node {processes} --max-restarts 0 {tee}'
        f"--rdzv-backend c10d --rdzv-endpoint {endpoint} --rdzv-id {macros.app_id} -m deit_fast.cli "
    )
    return "; ".join([*setup, launch + " ".join(_quote(word) for word in words)])


def _quote(word: str) -> str:
    """A word for bash that neither TorchX's macros, Slurm's job id nor Kubernetes' $(NAME) can change."""
    return shlex.quote(word).replace("$", "$''")  # shlex quotes every word with a dollar: end and reopen the quotes


def _checked_recipe(recipe: str, overrides: List[str]) -> Recipe:
    try:
        return get_recipe(recipe, overrides)
    except RecipeError as error:
        _refuse(str(error))


def _job_name(name: str) -> str:
    """A name every scheduler takes, short enough for a pod name with TorchX's suffixes."""
    return re.sub(r"[^a-z0-9]+", "-", Path(name).stem.lower())[:30].strip("-") or "deit"


def _refuse(message: str) -> NoReturn:
    print(f"deit-fast: {message}", file=sys.stderr)
    raise SystemExit(2)
