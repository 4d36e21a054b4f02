"""TorchX's schedulers as the pipelines need them: a module for each, with its name in `torchx run --scheduler NAME`.

A scheduler without a module here is used through TorchX alone: see Scheduler.
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
    """A pipeline's interface to a scheduler. This class uses TorchX's own functions; modules override some of them.

    A job is identified by the handle from TorchX, `SCHEDULER://SESSION/ID`. Every method may raise what the scheduler's
    client raises when it gets no answer; a pipeline retries for a minute.
    """

    local: bool = False
    """Whether jobs run on this machine. Such jobs run one at a time by default, log below the pipeline's folder
    (TorchX's option log_dir) and end with the driver. Other jobs continue without the driver."""
    queue: str = ""
    """Name of a queue that accepts all stages at once, and starts each when its needs have succeeded; "" if the driver
    has to wait for the needs and start each stage."""
    missing: AppState | None = AppState.UNKNOWN
    """The end of a job that the scheduler does not know and that left no result. UNKNOWN: it may still be listed, and
    counts as lost after a minute. None: it is gone, and is started again."""
    defaults: Mapping[str, CfgVal] = MappingProxyType({})
    """TorchX options for a pipeline, used if TorchX has them and neither the command line nor .torchxconfig sets
    them."""
    streams: Sequence[Stream | None] = (None,)
    """TorchX's streams that make up a log; a thread follows each."""

    def prepare(self, job: AppDryRunInfo[Any], output: str, after: Sequence[str]) -> None:
        """Changes a job before its submission: writes its `output` into it, by which `find` recognises the job.

        after: handles of jobs that have to succeed first; empty without a queue.
        """

    def submit(self, runner: Runner, job: AppDryRunInfo[Any]) -> str:
        """Submits a prepared job and returns its handle."""
        return runner.schedule(job)

    def find(self, cfg: Mapping[str, CfgVal]) -> dict[str, list[str]]:
        """Handles of the user's waiting and running jobs by output, for a driver whose predecessor was killed.

        Two jobs have one output if a submission was completed after its driver was killed. The older one comes first,
        and is kept. cfg: TorchX's options of the scheduler.
        """
        return {}

    def state(self, runner: Runner, handle: str) -> AppState | None:
        """The state of a job; None for a job that the scheduler does not know."""
        status = runner.status(handle)
        return status.state if status else None

    def log(self, runner: Runner, handle: str, role: str, replica: int) -> Iterable[str]:
        """The lines that a node (`replica`, from 0) has printed so far."""
        return map(as_text, runner.log_lines(handle, role, replica))

    def follow(
        self, runner: Runner, handle: str, role: str, stream: Stream | None, ended: Callable[[], bool]
    ) -> Iterable[str]:
        """The lines of the first node as they arrive, until there are no more. ended: whether the job has ended."""
        return map(as_text, runner.log_lines(handle, role, should_tail=True, streams=stream))

    def stop(self, handles: Sequence[str]) -> None:
        """Lets jobs of this machine end by themselves, so that they can save their work, before they are cancelled."""

    def cancel(self, runner: Runner, handle: str) -> None:
        """Ends a job."""
        runner.cancel(handle)


@cache
def find_scheduler(name: str) -> Scheduler:
    """The scheduler with this TorchX name, or the scheduler in the handle of a job."""
    return discover(__name__, "SCHEDULER", Scheduler).get(name.partition(":")[0]) or Scheduler()


def as_text(line: object) -> str:
    """A line of a log as text; some clients return bytes."""
    return (line.decode(errors="replace") if isinstance(line, bytes) else str(line)).rstrip()
