"""The checkpoint from which a run resumes: the newest whole one, and the same one in every process."""

from pathlib import Path

from deit_fast.checkpoint.format import SEAL, lacks_seal, verify_checkpoint
from deit_fast.runtime.errors import RunError
from deit_fast.runtime.world import World


def find_checkpoints(folder: Path) -> list[Path]:
    """The sealed checkpoints of a run: those of the steps, newest first, then last.pt and best.pt.

    last.pt and best.pt are left out where they are links to a step's checkpoint. The list is empty where there is no
    checkpoint yet. Raises RunError where last.pt has no seal.
    """
    steps = sorted(folder.glob(f"step-*{SEAL}"), key=step_of, reverse=True)
    found: list[Path] = []
    for seal in [*steps, folder / f"last{SEAL}", folder / f"best{SEAL}"]:
        path = seal.with_suffix(".pt")
        if seal.exists() and not any(_same(path, other) for other in found):
            found.append(path)
    if not found and (folder / "last.pt").exists():
        raise RunError(lacks_seal(folder / "last.pt"))
    return found


def kept_steps(folder: Path, last: int) -> list[int]:
    """The steps up to `last` with a sealed checkpoint in the folder, in ascending order."""
    return sorted(step for step in map(step_of, folder.glob(f"step-*{SEAL}")) if 0 < step <= last)


def step_of(path: Path) -> int:
    """The step in the name of a checkpoint's file; -1 for any other file."""
    number = path.stem.removeprefix("step-")
    return int(number) if number.isdecimal() else -1


def agree_on_checkpoint(folder: Path, resume: str, world: World) -> tuple[Path | None, list[str]]:
    """The checkpoint to resume from, the same in every process, and a line for each checkpoint that was skipped.

    resume: a path, "auto" for the newest whole checkpoint in `folder`, or "never". The main process lists the
    checkpoints, and every process verifies the files that it would read, because file systems may show processes
    different states. None means that the run starts afresh. Raises RunError, in every process, where there are
    checkpoints and none is whole.
    """
    found: list[Path] = []
    error = ""
    if world.is_main and resume != "never":
        try:
            if resume != "auto" and Path(resume).is_dir():
                raise RunError(
                    f"{resume}: expected a checkpoint, as {Path(resume, 'checkpoints', 'last.pt')}, is a folder"
                )
            found = find_checkpoints(folder) if resume == "auto" else [Path(resume)]
        except RunError as reason:
            error = str(reason)
    found, error = world.broadcast((found, error))
    if error:
        raise RunError(error)
    damaged: list[str] = []
    for path in found:
        seen = world.gather(_inspect(path))
        wrong = [f"{reason} (rank {rank})" if rank else reason for rank, (_, reason) in enumerate(seen) if reason]
        if not wrong and len({digest for digest, _ in seen}) > 1:
            wrong = [f"{path}: not the same file on every process"]
        if not wrong:
            return path, damaged
        damaged.append(wrong[0])
    if not found:
        return None, []
    advice = (
        "; no checkpoint there is whole: restore one, or start over with --resume never" if resume == "auto" else ""
    )
    raise RunError(f"{damaged[0]}{advice}")


def _inspect(path: Path) -> tuple[str, str]:
    """The checkpoint's digest, or what is wrong with it."""
    try:
        return verify_checkpoint(path), ""
    except RunError as error:
        return "", str(error)


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False
