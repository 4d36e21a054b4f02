"""Checks the paths of a training or an evaluation before its job waits in a queue.

A path may exist on the nodes only. A path that does not exist here is therefore refused by one rule only: its folder
exists here, on storage that the nodes share. Shared storage means the file system of --out, or of the working folder,
to which Slurm's logs go. Paths that exist here are inspected. The job itself checks all others: relative paths that do
not exist here, URIs, paths directly below /, where each machine has its own mounts, and files below a run's
checkpoints/, which the run may be about to write. It also checks every path of a job in a container, that is with
--mounts, --overlay or another --image.
"""

import contextlib
import glob
import os
import shutil
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path

from deit_fast.components.arguments import Where, refuse

from deit_fast.recipe.schema import Recipe
from deit_fast.runtime.braces import expand_braces, has_braces
from deit_fast.runtime.errors import DataError, RecipeError, RunError
from deit_fast.runtime.object_store import check_writable, is_remote
from deit_fast.zoo import find_published, published_row

_COPIES = 4  # of the weights in a checkpoint: one per file, the two moments; the moving average is one more


def check_paths(where: Where, out: str, images: Mapping[str, str], files: Mapping[str, str]) -> None:
    """Refuses, in one line, a job with a path that cannot be right. Empty paths are arguments that were not given.

    out: the job's output. images: data sets by their argument. files: checkpoints and other input files, likewise.
    """
    for name, given in files.items():
        try:
            published_row(given)
        except RecipeError as error:
            refuse(f"{name}={given!r}: {str(error).removeprefix(f'{given}: ')}")
    if where.in_container:
        return
    if is_remote(out):
        try:
            check_writable(out)
        except RunError as error:
            refuse(f"out={out!r}: {error}")
    places = [Path.cwd()] if is_remote(out) else [Path.cwd(), _existing(Path(out))]
    shared = {device for device in map(_device, places) if device is not None}
    for name, path in {**images, **files}.items():
        if not path or is_remote(path):
            continue
        for part in _parts(name, path) if name in images else [path]:
            place = Path(os.path.expanduser(part))
            may_appear = not place.is_absolute() or place.parent == Path("/") or place.parent.name == "checkpoints"
            if os.path.exists(place):
                _check_readable(name, part, place)
            elif not may_appear and _device(place.parent) in shared:
                refuse(f"{name}={path!r}: {'no such path' if part == path else f'{part} is missing'}, in a folder that "
                       "is here; expected a path that the nodes have")  # fmt: skip


def check_classes(recipe: Recipe, data: str, where: Where) -> None:
    """Refuses data whose train/ folder has another number of class folders than the recipe has classes.

    The check is left to the job if train/ is not here, if it may hold something else, such as shards or another
    program's files, or if it holds a single folder, in which all class folders may lie.
    """
    expected, root = recipe.model.num_classes, os.path.join(os.path.expanduser(data), "train")
    if expected is None or where.in_container or is_remote(data) or not os.path.isdir(root):
        return
    try:
        entries = [entry for entry in os.scandir(root) if not entry.name.startswith(".")]
        if not all(entry.name[0].isalnum() and entry.is_dir() and any(os.scandir(entry)) for entry in entries):
            return
    except OSError:  # for example a folder that only the job may read
        return
    if (found := len(entries)) not in (0, 1, expected):
        refuse(f"model.num_classes={expected}: {data} has {found} classes; set model.num_classes={found}")


def check_space(recipe: Recipe, out: str, where: Where) -> None:
    """Refuses an --out whose disk, if it is here, lacks room for the checkpoints that a run keeps and one more.

    A finished run writes no checkpoint. File systems that do not report their size, as some of FUSE's, are not checked.
    """
    folder = Path(out)
    sizes = find_published([recipe.model.name])  # for ImageNet-1k's classes; another number changes the size little
    if not sizes or where.in_container or is_remote(out) or not os.path.isdir(folder.parent):
        return
    if os.path.exists(folder / "result.json"):
        return
    place = _existing(folder)
    copies = _COPIES + (recipe.optim.ema_decay is not None)
    needed = int(sizes[0].params_m * 1e6) * 4 * copies * (recipe.run.keep_checkpoints + 1)
    with contextlib.suppress(OSError):
        kept = sum(file.stat().st_size for file in (folder / "checkpoints").glob("step-*") if file.is_file())
        total, _, free = shutil.disk_usage(place)
        if total and free + kept < needed:
            refuse(
                f"out={out!r}: the disk at {place} has {free / 2**20:.0f} MiB free; expected {needed / 2**20:.0f} MiB "
                f"for run.keep_checkpoints={recipe.run.keep_checkpoints} checkpoints and one more"
            )


def _parts(name: str, path: str) -> list[str]:
    """The shards of a brace range; for a glob, the folder before its first wildcard; for any other path, the path."""
    if has_braces(path):
        try:
            return expand_braces(path)
        except DataError as error:
            refuse(f"{name}={path!r}: {error}")
    if os.path.exists(path) or not glob.has_magic(path):
        return [path]
    fixed = list(takewhile(lambda each: not glob.has_magic(each), Path(path).parts))
    return [os.path.join(*fixed)] if fixed else []


def _check_readable(name: str, path: str, place: Path) -> None:
    if not os.access(place, os.R_OK | (os.X_OK if place.is_dir() else 0)):
        refuse(f"{name}={path!r}: expected a path that you may read")
    if place.is_dir() and name in ("data", "val") and not any(os.scandir(place)):
        refuse(f"{name}={path!r}: expected a folder of images or .tar shards, found an empty one")


def _existing(path: Path) -> Path:
    """The path, or its nearest parent that exists here."""
    path = path.absolute()
    while not os.path.exists(path):
        path = path.parent
    return path


def _device(path: Path) -> int | None:
    try:
        return path.stat().st_dev
    except OSError:
        return None
