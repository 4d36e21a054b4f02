"""torchrun, but with its workers' exit status: `python -m deit_fast.runtime.torchrun`, and torchrun's own options.

torchrun ends with status 1 whatever its workers ended with, so that a scheduler cannot tell a mistake from a
preemption. This is the same launcher, in one process that receives signals as before. Only its end differs:

* Each worker notes its status in a shared file before it ends. The first note names the cause, because later ends are
  its consequences. A status of 1 counts less: when one process is lost, every other worker ends with a traceback.
  torchrun reports workers that could note nothing, such as one killed for its memory, with 128 + the signal, as in a
  shell.
* If the run would end the same way again (ExitStatus.final), Slurm is told not to requeue the job. Volcano reads the
  pod's status.
* With several nodes, a node whose workers do not know the cause ends LAST_SECONDS later, because a scheduler acts on
  the first end.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

try:
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.run import get_args_parser, run

    from deit_fast.runtime.errors import one_line
    from deit_fast.runtime.exit_status import STATUS_BOARD, ExitStatus
    from deit_fast.runtime.rendezvous import explain_rendezvous, watched_rendezvous
except KeyboardInterrupt:  # importing torch takes seconds
    print("deit-fast: interrupted before anything was started; run the same command again", file=sys.stderr)
    sys.exit(130)

LAST_SECONDS = 15.0
_TRACEBACK = 1

End = tuple[int | None, int]
"""A rank (None for the launcher itself) and its status, negative for a signal."""


def main(words: Sequence[str]) -> int:
    """Starts the workers; returns the status of the worker that ended the run, 0 if all succeeded."""
    parser = get_args_parser()
    if "PET_NODE_RANK" not in os.environ:  # torchrun's environment variable for the option
        parser.set_defaults(node_rank=None)  # a node without a given rank does not become the first node
    arguments = parser.parse_args(list(words))
    board = os.memfd_create("deit-fast-status")  # in memory, where no full disk refuses it; ends with this process
    os.environ[STATUS_BOARD] = f"/proc/{os.getpid()}/fd/{board}"
    if (restarts := os.environ.get("SLURM_RESTART_COUNT", "0")) != "0":  # Slurm appends to the previous start's log
        print(f"deit-fast: Slurm's restart {restarts} of this job", file=sys.stderr, flush=True)
    try:
        with watched_rendezvous(arguments):
            run(arguments)
        return ExitStatus.DONE
    except ChildFailedError as error:
        failures = sorted(error.failures.items(), key=lambda item: item[1].timestamp)
        ends: list[End] = [(rank, failure.exitcode) for rank, failure in failures]
    except SignalException as error:
        ends = [(None, -error.sigval)]
    except KeyboardInterrupt:  # before torchrun handles it
        ends = [(None, -signal.SIGINT)]
    except RendezvousError as error:
        print(f"deit-fast: {explain_rendezvous(error, arguments)}", file=sys.stderr, flush=True)
        ends = [(None, ExitStatus.HUNG)]
    except DistError as error:
        print(f"deit-fast: torchrun: {type(error).__name__}: {one_line(error)}", file=sys.stderr, flush=True)
        ends = [(None, _TRACEBACK)]
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    rank, status = find_cause([*_read_board(board), *ends])
    print(f"deit-fast: {describe_end(rank, status)}", file=sys.stderr, flush=True)
    known = _in_table(status)
    if known is not None and known.final:
        _forbid_requeue()
    elif status == _TRACEBACK and arguments.nnodes.rpartition(":")[2] != "1":  # 2, or 1:2
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(LAST_SECONDS)
    return status if status > 0 else 128 - status


def find_cause(ends: Sequence[End]) -> End:
    """The end that explains the others, of one or more in order: the first one that no other end may have caused."""
    caused = {_TRACEBACK: 1, -signal.SIGTERM: 2}  # by a lost connection; by torchrun, which ends the remaining workers
    return min(ends, key=lambda end: caused.get(end[1], 0))


def describe_end(rank: int | None, status: int) -> str:
    """A line about the worker that ended the run, or about the launcher (None)."""
    who = "torchrun" if rank is None else f"rank {rank}"
    if status < 0:
        hint = "; was there too little memory?" if status == -signal.SIGKILL else ""
        return f"{who} was ended by {signal.Signals(-status).name}{hint}"
    known = _in_table(status)
    if known is None or status == _TRACEBACK:
        return f"{who} ended with status {status}; the reason is above"
    name = known.name.lower().replace("_", " ")
    after = "no other start of the same command mends that" if known.final else "started again, the run goes on"
    return f"{who} ended the run with status {status} ({name}): {after}"


def _in_table(status: int) -> ExitStatus | None:
    return next((each for each in ExitStatus if each == status), None)


def _read_board(board: int) -> list[End]:
    with open(board, encoding="ascii") as file:
        file.seek(0)
        notes = [line.split() for line in file]
    return [(int(rank), int(status)) for rank, status in notes]


def _forbid_requeue() -> None:
    """Makes Slurm refuse the `scontrol requeue` that TorchX's batch script runs for a failed job."""
    job = os.environ.get("SLURM_HET_JOB_ID") or os.environ.get("SLURM_JOB_ID")
    if job is None:
        return
    command = ["scontrol", "update", f"JobId={job}", "Requeue=0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        failure = one_line(done.stderr) if done.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as error:
        failure = one_line(error)
    if failure:
        print(f"deit-fast: Slurm may start the job again: {' '.join(command)}: {failure}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
