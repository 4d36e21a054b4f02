# ruff: noqa: UP006, UP035, UP045
# TorchX checks annotations by their syntax: typing's Dict, List and Optional, never `X | None` and never a string.
"""TorchX components: where a recipe runs and on how many processes. What is learned is the recipe and its overrides.

    torchx run -s local_cwd components/deit.py:pretrain \\
        --recipe deit3_base_1k_192 --data /data/imagenet --out runs/base -j 1x8 optim.lr=3e-3

Everything is checked before anything is submitted; a bad value is one line on stderr and exit status 2.

TorchX 0.7.0 executes a component file inside its own module torchx.specs.finder, so imports here are absolute and no
name may replace one of the finder's. Functions that are no components return something else than an AppDef.
"""

import os
from typing import Dict, List, Optional

from deit_fast.components.arguments import IMAGE, Where, check_given, check_recipe, parse_switch, refuse
from deit_fast.components.checks import check_classes, check_paths, check_space
from deit_fast.components.launch import build_role, job_name
from torchx import specs

from deit_fast.recipe.parse import read_val_fraction
from deit_fast.runtime.errors import RecipeError


def pretrain(
    *overrides: str,
    recipe: str,
    data: str,
    out: str,
    val: str = "",
    labels: str = "",
    teacher: str = "",
    resume: str = "auto",
    j: str = "1x1",
    h: Optional[str] = None,
    cpu: int = 0,
    gpu: int = 0,
    memMB: int = 0,
    image: str = IMAGE,
    env: str = "",
    mounts: str = "",
    overlay: str = "",
    max_retries: int = 20,
    rdzv_port: int = 0,
    name: str = "",
) -> specs.AppDef:
    """Trains a recipe from scratch. Submitted again with the same --out, it resumes.

    Args:
        overrides: what is learned differently: section.key=value words, last on the line
        recipe: name in the recipe table, or a .toml or .json file
        data: training images: an image folder or shards, or the URI of shards
        out: run folder, on storage every node shares or in an object store
        val: validation images, or the share of each class to hold out (0.1); empty takes those beside the training's
        labels: file of labels of validation images without class folders; empty takes one beside them
        teacher: weights of the recipe's distill.teacher; needed where it distils, refused elsewhere
        resume: auto, never, or a checkpoint to continue
        j: NODESxPROCESSES; one process per GPU
        h: named resource of a node: h200, h100, a100, cpu_small, ...; cpu, gpu and memMB change it
        cpu: CPU cores per node to ask the scheduler for; 0 is h's, or the scheduler's default
        gpu: GPUs per node to ask the scheduler for; 0 is h's
        memMB: memory per node to ask the scheduler for, MB; 0 is h's, or the scheduler's default
        image: container image with deit_fast in it (local_cwd and slurm ignore it)
        env: environment variables, NAME=value,...; a value in quotes may hold anything
        mounts: volumes, type=volume,src=CLAIM,dst=PATH,... (local_cwd and slurm ignore them)
        overlay: YAML file laid over Kubernetes' pods: tolerations, secrets, ...
        max_retries: times the scheduler starts a failed or preempted run again
        rdzv_port: port of the first node where processes meet; 0 derives it from the job; one node needs none
        name: job name; empty is the recipe's
    """
    where = Where(j, h, cpu, gpu, memMB, image, env, mounts, overlay, max_retries, rdzv_port)
    options = {"--val": val, "--labels": labels, "--teacher": teacher, "--resume": resume}
    role = _train_role(list(overrides), recipe, data, out, options, where)
    return specs.AppDef(name=job_name(name or recipe), roles=[role])


def finetune(
    *overrides: str,
    recipe: str,
    init: str,
    data: str,
    out: str,
    val: str = "",
    labels: str = "",
    teacher: str = "",
    resume: str = "auto",
    j: str = "1x1",
    h: Optional[str] = None,
    cpu: int = 0,
    gpu: int = 0,
    memMB: int = 0,
    image: str = IMAGE,
    env: str = "",
    mounts: str = "",
    overlay: str = "",
    max_retries: int = 20,
    rdzv_port: int = 0,
    name: str = "",
) -> specs.AppDef:
    """Trains a recipe from a checkpoint's weights. Submitted again with the same --out, it resumes.

    Args:
        overrides: what is learned differently: section.key=value words, last on the line
        recipe: name in the recipe table, or a .toml or .json file
        init: checkpoint whose weights to start from: a path, a URI, or a name that deit-fast zoo lists
        data: training images: an image folder or shards, or the URI of shards
        out: run folder, on storage every node shares or in an object store
        val: validation images, or the share of each class to hold out (0.1); empty takes those beside the training's
        labels: file of labels of validation images without class folders; empty takes one beside them
        teacher: weights of the recipe's distill.teacher; needed where it distils, refused elsewhere
        resume: auto, never, or a checkpoint to continue
        j: NODESxPROCESSES; one process per GPU
        h: named resource of a node: h200, h100, a100, cpu_small, ...; cpu, gpu and memMB change it
        cpu: CPU cores per node to ask the scheduler for; 0 is h's, or the scheduler's default
        gpu: GPUs per node to ask the scheduler for; 0 is h's
        memMB: memory per node to ask the scheduler for, MB; 0 is h's, or the scheduler's default
        image: container image with deit_fast in it (local_cwd and slurm ignore it)
        env: environment variables, NAME=value,...; a value in quotes may hold anything
        mounts: volumes, type=volume,src=CLAIM,dst=PATH,... (local_cwd and slurm ignore them)
        overlay: YAML file laid over Kubernetes' pods: tolerations, secrets, ...
        max_retries: times the scheduler starts a failed or preempted run again
        rdzv_port: port of the first node where processes meet; 0 derives it from the job; one node needs none
        name: job name; empty is the recipe's
    """
    check_given(init=init)
    where = Where(j, h, cpu, gpu, memMB, image, env, mounts, overlay, max_retries, rdzv_port)
    options = {"--val": val, "--labels": labels, "--init": init, "--teacher": teacher, "--resume": resume}
    role = _train_role(list(overrides), recipe, data, out, options, where)
    return specs.AppDef(name=job_name(name or recipe), roles=[role])


def evaluate(
    *overrides: str,
    checkpoint: str,
    data: str,
    out: str = "",
    ema: str = "false",
    flip: str = "false",
    labels: str = "",
    classes: str = "",
    real: str = "",
    report: str = "",
    j: str = "1x1",
    h: Optional[str] = None,
    cpu: int = 0,
    gpu: int = 0,
    memMB: int = 0,
    image: str = IMAGE,
    env: str = "",
    mounts: str = "",
    overlay: str = "",
    max_retries: int = 3,
    rdzv_port: int = 0,
    name: str = "evaluate",
) -> specs.AppDef:
    """Measures a checkpoint's accuracy.

    Args:
        overrides: what the checkpoint's recipe gets different: section.key=value words, last on the line
        checkpoint: checkpoint to evaluate: a path, a URI, or a name that deit-fast zoo lists
        data: an image folder or shards, or the URI of shards: its validation split, or what the run held out of it
        out: JSON file for the result, which may be in an object store; empty only prints it
        ema: true or false: evaluate the moving average of the weights
        flip: true or false: average the logits of each image and its mirror image
        labels: file of labels of images without class folders; empty takes one beside them
        classes: data or all: among which classes to choose where the data have some of the checkpoint's; empty refuses
        real: the real.json of ImageNet-ReaL, to score by its labels too
        report: folder for accuracy per class, confusion matrix and the most confident mistakes
        j: NODESxPROCESSES; one process per GPU
        h: named resource of a node: h200, h100, a100, cpu_small, ...; cpu, gpu and memMB change it
        cpu: CPU cores per node to ask the scheduler for; 0 is h's, or the scheduler's default
        gpu: GPUs per node to ask the scheduler for; 0 is h's
        memMB: memory per node to ask the scheduler for, MB; 0 is h's, or the scheduler's default
        image: container image with deit_fast in it (local_cwd and slurm ignore it)
        env: environment variables, NAME=value,...; a value in quotes may hold anything
        mounts: volumes, type=volume,src=CLAIM,dst=PATH,... (local_cwd and slurm ignore them)
        overlay: YAML file laid over Kubernetes' pods: tolerations, secrets, ...
        max_retries: times the scheduler starts a failed or preempted run again
        rdzv_port: port of the first node where processes meet; 0 derives it from the job; one node needs none
        name: job name
    """
    check_given(checkpoint=checkpoint, data=data)
    # The checkpoint and its recipe may not be readable from here: keys and types are checked on a row of the table.
    check_recipe("deit3_base_1k_192", list(overrides))
    if classes not in ("", "data", "all"):
        refuse(f"classes={classes!r}: expected data or all")
    options = [("--json", out), ("--labels", labels), ("--classes", classes), ("--real", real), ("--report", report)]
    words = ["evaluate", checkpoint, "--data", data, *(word for option in options if option[1] for word in option)]
    switches = {"--ema": parse_switch("ema", ema), "--flip": parse_switch("flip", flip)}
    words += [*(word for word, on in switches.items() if on), *overrides]
    where = Where(j, h, cpu, gpu, memMB, image, env, mounts, overlay, max_retries, rdzv_port)
    check_paths(where, out, {"data": data}, {"checkpoint": checkpoint, "labels": labels, "real": real})
    return specs.AppDef(name=job_name(name), roles=[build_role("evaluate", words, where)])


def _train_role(
    overrides: List[str], recipe: str, data: str, out: str, options: Dict[str, str], where: Where
) -> specs.Role:
    check_given(data=data, out=out)
    resolved = check_recipe(recipe, overrides)
    nodes, processes = where.layout
    try:
        resolved.check_processes(nodes * processes)
        resolved.check_teacher(options["--teacher"])
        fraction = read_val_fraction(options["--val"]) if options["--val"] else None
    except RecipeError as error:
        refuse(str(error))
    names = ("--init", "--teacher", "--labels", "--resume")
    files = {name.removeprefix("--"): options.get(name, "") for name in names}
    if resolved.run.start == "weights" and "--init" not in options and not os.path.exists(out):
        refuse(f"recipe={recipe!r}: expected the component finetune, with --init, as the recipe finetunes weights")
    val = options["--val"] if fraction is None else ""
    check_paths(where, out, {"data": data, "val": val}, {**files, "resume": _file(files["resume"])})
    check_classes(resolved, data, where)
    check_space(resolved, out, where)
    words = ["train", recipe, "--data", data, "--out", out]
    words += [word for option in options.items() if option[1] and option != ("--resume", "auto") for word in option]
    return build_role("train", words + overrides, where)


def _file(resume: str) -> str:
    return "" if resume in ("auto", "never") else resume
