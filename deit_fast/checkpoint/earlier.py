"""A run folder that holds an earlier run: the earlier run is moved aside, and other files are not touched.

A run that starts over moves the earlier run to OUT/earlier-1, the next one to OUT/earlier-2. Each file and folder is
renamed into OUT/.earlier-1.part, which is then renamed to OUT/earlier-1. If a crash interrupted the moving, the next
start finds the .part folder and completes the move. In an object store nothing is moved, since a store can only copy,
not rename. The new run gets a prefix of its own instead, URI/later-1. The newest such prefix is the run that --out URI
means.
"""

import json
import os
import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from pathlib import Path

from deit_fast.checkpoint.resume import step_of
from deit_fast.convert.locate import newest_run
from deit_fast.data.sources.image_list import LIST_NAME
from deit_fast.runtime.errors import RunError, printable
from deit_fast.runtime.files import sync_folder
from deit_fast.runtime.object_store import list_objects, read_object

_CHECKPOINTS = "checkpoints"
# Files and folders that a run, its evaluations and its log sinks write.
_OWN = ("recipe.json", "result.json", "metrics.*", "tensorboard", _CHECKPOINTS, "curves.png", "samples.png", "profile",
        "bad_files.txt", "nonfinite.txt", "hang-*.txt", "evaluation.json", "report", LIST_NAME,
        "report.html", "evaluation", "starts.jsonl", "trackers.json", "wandb", "mlflow.db")  # fmt: skip
_PART = ".earlier-*.part"  # an earlier run while it is being moved
# Files that may lie beside a run and stay where they are: scripts, logs, locks, files of file systems and editors.
_BESIDE = (".lock", ".stored", ".pull.lock", ".writable", ".*.tmp", "earlier-*", _PART, "later-*", "*.log",
           "*.out", "*.err", "log", "log.*", "log_*", "stdout*", "stderr*", "*.sh", "*.sbatch", "*.slurm", "*.toml",
           ".torchx*", ".nfs*", ".fuse_hidden*", ".snapshot", ".zfs", ".Trash-*", "lost+found", ".DS_Store", "._*",
           ".git*", ".ipynb_checkpoints")  # fmt: skip
_LEFT = ("bad_files.txt", "nonfinite.txt", "hang-*.txt")  # the only files that a run which ended early may leave
_SEALS = re.compile(r"(step-\d+|last|best)\.sha256")


def check_own(folder: Path, over: bool) -> None:
    """Raises RunError, naming one such file, where `folder` holds files that belong to no run.

    over: whether a run starts over there. A run that resumes ignores files that a user put beside it.
    """
    if not folder.exists():
        return
    try:
        names = sorted(os.listdir(folder))
        sealed = os.listdir(folder / _CHECKPOINTS) if (folder / _CHECKPOINTS).is_dir() else []
        recipe = (folder / "recipe.json").read_bytes() if (folder / "recipe.json").is_file() else b""
    except OSError as error:
        raise RunError(f"{folder}: expected a folder that can be read ({error.strerror})") from None
    _refuse_foreign(str(folder), names, sealed, recipe, over)


def set_aside(folder: Path) -> Path | None:
    """Moves the run in `folder` to its next earlier-N and returns that path; None where there is no run.

    The caller holds the folder's lock. Raises RunError where something cannot be moved; nothing is lost then, and the
    next call continues.
    """
    names = [name for name in sorted(os.listdir(folder)) if _matches(name, _OWN)]
    part = next(iter(sorted(folder.glob(_PART))), None)
    if part is None and not names:
        return None
    try:
        if part is None:
            numbers = [int(found[1]) for name in os.listdir(folder) if (found := re.fullmatch(r"earlier-(\d+)", name))]
            part = folder / f".earlier-{max(numbers, default=0) + 1}.part"
            part.mkdir()
        for name in names:
            _move(folder / name, part / name)
        sync_folder(part)
        whole = folder / part.name[1:].removesuffix(".part")
        part.rename(whole)
        sync_folder(folder)
    except OSError as error:
        place = printable(error.filename or str(folder))
        raise RunError(f"{place}: cannot be moved to {part} ({error.strerror}); mend that and run again") from None
    return whole


def finish_setting_aside(folder: Path) -> Path | None:
    """Completes a `set_aside` that a crash interrupted; None where there was none."""
    return set_aside(folder) if any(folder.glob(_PART)) else None


def find_run(uri: str, resume: str) -> tuple[str, str]:
    """The place in its store at which the run of --out `uri` is or begins, and the earlier run's place, "" for none.

    resume: "auto", "never", or a checkpoint to resume from; a checkpoint that is not the newest of this run begins
    another run. Raises RunError where the store fails to answer, or holds objects that belong to no run.
    """
    folders, objects = list_objects(uri)
    names = sorted(folders | {each.name for each in objects})
    sealed = [each.name for each in list_objects(f"{uri}/checkpoints")[1]]
    recipe = read_object(f"{uri}/recipe.json") if "recipe.json" in names else b""
    over = resume == "never"
    newest = newest_run(uri, folders)
    _refuse_foreign(uri, names, sealed, recipe, over and newest == uri)
    if resume not in ("auto", "never"):
        steps = [step_of(Path(each.name)) for each in list_objects(f"{newest}/checkpoints")[1]]
        over = resume not in {
            f"{newest}/checkpoints/{name}.pt" for name in ("last", f"step-{max(steps, default=0):07}")
        }
    if over and (newest != uri or any(_matches(name, _OWN) for name in names)):
        number = 1 if newest == uri else int(newest.rpartition("-")[2]) + 1
        return f"{uri}/later-{number}", newest
    return newest, ""


def _refuse_foreign(place: str, names: Sequence[str], checkpoints: Sequence[str], recipe: bytes, over: bool) -> None:
    half_moved = any(_matches(name, (_PART,)) for name in names)
    is_run = half_moved or _is_recipe(recipe) or any(_SEALS.fullmatch(name) for name in checkpoints)
    if is_run and not over:
        return
    prepared = () if checkpoints else (_CHECKPOINTS,)  # an empty folder, or a link to a folder on a larger disk
    known = (*_OWN, *_BESIDE) if is_run else (*prepared, *_LEFT, *_BESIDE)
    foreign = next((name for name in names if not _matches(name, known)), None)
    if foreign is not None:
        found = f"--out {printable(place)}: found {printable(foreign)}, expected "
        advice = "a run's files alone, to start over; move it away" if is_run else "a new folder, or a run's own"
        raise RunError(f"{found}{advice}, or choose another --out")


def _is_recipe(text: bytes) -> bool:
    try:
        content = json.loads(text)
    except ValueError:
        return False
    return isinstance(content, dict) and {"model", "run"} <= content.keys()


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _move(source: Path, destination: Path) -> None:
    if os.path.lexists(destination):  # written again by a process without the lock
        destination = destination.with_name(f"{destination.name}.{os.getpid()}")
    if source.is_symlink() and not os.path.isabs(os.readlink(source)):  # it would lead elsewhere once moved
        destination.symlink_to(source.parent.resolve() / os.readlink(source))
        source.unlink()
    else:
        source.rename(destination)
