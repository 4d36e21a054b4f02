"""The state that outlives a driver: pipeline.json, and the results of stages, here or in an object store."""

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from deit_fast.components.cluster import explain_error

from deit_fast.runtime.errors import RunError, one_line
from deit_fast.runtime.files import write_json
from deit_fast.runtime.object_store import is_remote, modified_at, read_object


class PipelineError(RunError):
    """A pipeline that cannot run as asked. The message is one line: the stage, what is wrong, what to do."""


@dataclass
class Record:
    """The record of a stage in pipeline.json."""

    state: Literal["running", "succeeded", "failed", "cancelled"]
    component: str
    arguments: list[str]
    handle: str
    role: str
    replicas: int
    attempt: int
    started: float
    after: list[str] = field(default_factory=list)
    """Handles of the jobs for which it waits in a queue."""
    ended: float | None = None
    result_seen: bool = False
    """Whether the result was readable from this machine; on another machine's disk it never is."""

    def succeed(self, result: str) -> None:
        """Records the stage as done. result: the file that the stage was to leave, or ""."""
        self.state, self.result_seen = "succeeded", is_written(result)


def is_written(result: str, since: float = 0.0) -> bool:
    """Whether a stage has left its result, a path or a URI, after `since`, seconds since 1970; False for "".

    Raises StorageError where a store does not answer, because a result that cannot be seen may exist.
    """
    if is_remote(result):
        moment = modified_at(result)
        return moment is not None and moment >= since
    try:
        return bool(result) and os.stat(result).st_mtime >= since
    except OSError:
        return False


def read_result(result: str) -> dict[str, Any]:
    """The result of a stage; empty where it is unreadable from this machine."""
    try:
        content = json.loads(read_object(result) if is_remote(result) else Path(result).read_bytes())
    except (OSError, ValueError, RunError):
        return {}
    return content if isinstance(content, dict) else {}


def read_records(path: Path) -> dict[str, Record]:
    """Records by stage name; empty without a file. Raises PipelineError for a file of another kind."""
    if not path.exists():
        return {}
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))["stages"]
        return {name: Record(**record) for name, record in stored.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PipelineError(f"{path}: expected the state of a pipeline ({explain(error)})") from None


def write_records(path: Path, records: dict[str, Record]) -> None:
    write_json(path, {"stages": {name: asdict(record) for name, record in records.items()}})


def explain(error: BaseException) -> str:
    """An error of other code as one line."""
    return one_line(error) if isinstance(error, PipelineError) else explain_error(error)


@contextlib.contextmanager
def remembering() -> Iterator[list[int]]:
    """The SIGINT and SIGTERM that arrive while entered; their handlers run as well.

    The handlers raise exceptions, and Python drops an exception that is raised inside a finaliser or a weak reference's
    callback. The list therefore has every signal.
    """
    seen: list[int] = []
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        handler = handlers[signal.Signals(number)]
        if callable(handler):
            handler(number, frame)

    heard = [number for number, handler in handlers.items() if handler is not signal.SIG_IGN]
    for number in heard:
        signal.signal(number, note)
    try:
        yield seen
    finally:
        for number in heard:
            signal.signal(number, handlers[number])


@contextlib.contextmanager
def deaf() -> Iterator[None]:
    """Ignores a second interrupt while the first one is handled."""
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
