"""The schedulers of TorchX, as the pipelines need them: one module each, named as in `torchx run --scheduler NAME`.

One without a module here is left to TorchX whole: see Scheduler.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from types import MappingProxyType
from typing import Any

from torchx.runner import Runner
from torchx.schedulers.api import Stream
from torchx.specs import AppDryRunInfo, AppState, CfgVal

from deit_fast.runtime.discover import discover


class Scheduler:
    """What a pipeline asks of a scheduler: as it stands, TorchX's own answers. A module overrides what it knows better.

    A job is known by the handle TorchX gives it, `SCHEDULER://SESSION/ID`. Any method may raise whatever the
    scheduler's client raises where there is no answer; a pipeline asks again for a minute.
    """

    local: bool = False
    """Whether jobs are this machine's: one at a time if not told otherwise, logged under the pipeline's folder by
    TorchX's option log_dir, and ended with the driver. Others go on without it."""
    queue: str = ""
    """Name of a queue that takes all stages at once, and starts each once those it needs have succeeded; empty where
    the driver has to wait and start them."""
    missing: AppState | None = AppState.UNKNOWN
    """How a job ended that the scheduler does not know and that left no result. UNKNOWN: it may yet be listed, and is
    lost after a minute. None: it is gone, and is started again."""
    defaults: Mapping[str, CfgVal] = MappingProxyType({})
    """TorchX's options for a pipeline, where neither the command line nor .torchxconfig says another, and TorchX has
    them."""
    streams: Sequence[Stream | None] = (None,)
    """TorchX's streams that make up a log; each is followed in a thread of its own."""

    def prepare(self, job: AppDryRunInfo[Any], output: str, after: Sequence[str]) -> None:
        """Changes what is about to be submitted: writes `output`, which names what the job makes, into it for `find`.

        after: handles of jobs that have to succeed first; none without a queue.
        """

    def submit(self, runner: Runner, job: AppDryRunInfo[Any]) -> str:
        """Submits a prepared job and returns its handle."""
        return runner.schedule(job)

    def find(self, cfg: Mapping[str, CfgVal]) -> dict[str, list[str]]:
        """Handles of the user's waiting and running jobs by what they make, for a driver that was killed in between.

        Two jobs make the same where a submission outlived its driver. The older comes first, and stays.
        cfg: TorchX's options of the scheduler.
        """
        return {}

    def state(self, runner: Runner, handle: str) -> AppState | None:
        """The state of a job, None for one that the scheduler does not know."""
        status = runner.status(handle)
        return status.state if status else None

    def log(self, runner: Runner, handle: str, role: str, replica: int) -> Iterable[str]:
        """The lines that a node (`replica`, from 0) has printed so far."""
        return map(as_text, runner.log_lines(handle, role, replica))

    def follow(
        self, runner: Runner, handle: str, role: str, stream: Stream | None, ended: Callable[[], bool]
    ) -> Iterable[str]:
        """The lines of the first node as they come, until there are no more. ended: whether the job is over."""
        return map(as_text, runner.log_lines(handle, role, should_tail=True, streams=stream))

    def stop(self, handles: Sequence[str]) -> None:
        """Lets jobs of this machine end by themselves before they are cancelled, with what they have to save."""

    def cancel(self, runner: Runner, handle: str) -> None:
        """Ends a job."""
        runner.cancel(handle)


@cache
def find_scheduler(name: str) -> Scheduler:
    """The scheduler that TorchX calls `name`, which may also be a handle of one of its jobs."""
    return discover(__name__, "SCHEDULER", Scheduler).get(name.partition(":")[0]) or Scheduler()


def as_text(line: object) -> str:
    """A line of a log, for which some clients give bytes."""
    return (line.decode(errors="replace") if isinstance(line, bytes) else str(line)).rstrip()
