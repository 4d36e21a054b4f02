"""What outlives a driver: pipeline.json, the lock that keeps out a second driver, and jobs still running."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from deit_fast.errors import one_line


class PipelineError(ValueError):
    """A pipeline that cannot be run as asked. The message is one line: the stage, what is wrong, what to do."""


@dataclass
class Record:
    """What pipeline.json remembers of a stage."""

    state: Literal["running", "succeeded", "failed", "cancelled"]
    component: str
    arguments: list[str]
    handle: str
    role: str
    replicas: int
    attempt: int
    started: float
    ended: float | None = None
    result_seen: bool = False
    """Whether the result was readable from here; on another machine's disk it never is."""


def read_records(path: Path) -> dict[str, Record]:
    """Records by stage name; none where there is no file. Raises PipelineError for a file that is not ours."""
    if not path.exists():
        return {}
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))["stages"]
        return {name: Record(**record) for name, record in stored.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PipelineError(f"{path}: expected the state of a pipeline ({explain(error)})") from None


def write_records(path: Path, records: dict[str, Record]) -> None:
    """Replaces the file whole or not at all."""
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump({"stages": {name: asdict(record) for name, record in records.items()}}, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Makes the folder and keeps other drivers out of it; the lock ends with this process, however that ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "pipeline.lock").open("w")
    except OSError as error:
        raise PipelineError(f"{folder}: expected a folder that can be written ({explain(error)})") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise PipelineError(f"{folder}: another run of this pipeline is at work there") from None
        yield


def find_processes(handle: str) -> list[int]:
    """Processes of this machine that belong to a TorchX job, by the handle TorchX puts in their environment (Linux)."""
    mark, found = f"TORCHX_JOB_ID={handle}".encode(), []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # another user's, or just gone
            if mark in environment.read_bytes().split(b"\0"):
                found.append(int(environment.parent.name))
    return found


def explain(error: BaseException) -> str:
    """An error of someone else's code as one line."""
    return one_line(error if isinstance(error, PipelineError) else f"{type(error).__name__}: {error}")
