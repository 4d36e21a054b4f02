"""What outlives a driver: pipeline.json."""

import contextlib
import json
import signal
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Literal

from deit_fast.runtime.errors import RunError, one_line
from deit_fast.runtime.files import write_json

from .results import written_at


class PipelineError(RunError):
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
    after: list[str] = field(default_factory=list)
    """Handles of the jobs it waits for in a queue."""
    ended: float | None = None
    result_seen: bool = False
    """Whether the result was readable from here; on another machine's disk it never is."""

    def succeed(self, result: str) -> None:
        """Notes the stage as done; `result` is the file that it was to leave, or empty."""
        self.state, self.result_seen = "succeeded", False
        with contextlib.suppress(RunError):  # of a store that does not answer
            self.result_seen = written_at(result) is not None


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
    write_json(path, {"stages": {name: asdict(record) for name, record in records.items()}})


def explain(error: BaseException) -> str:
    """An error of someone else's code as one line."""
    if body := getattr(error, "body", None):  # of Kubernetes: what it answered, without the headers
        with contextlib.suppress(ValueError, TypeError, KeyError):
            return one_line(f"Kubernetes: {json.loads(body)['message']}")
    return one_line(error if isinstance(error, PipelineError) else f"{type(error).__name__}: {error}")


@contextlib.contextmanager
def remembering() -> Iterator[list[int]]:
    """The SIGINT and SIGTERM that arrive while entered, beside what their handlers do.

    Those raise, and Python drops what is raised inside a finaliser or a weak reference's callback: whoever must not
    miss a signal looks at the list too.
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
    """No second interrupt while the first one is seen to."""
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
