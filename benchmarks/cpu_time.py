"""CPU seconds of a process together with its worker processes."""

import contextlib
import multiprocessing
import os
import resource
from pathlib import Path


def cpu_seconds() -> float:
    """User and system time of this process and of its children, whether they have ended or not."""
    living = sum(map(_cpu_seconds_of, multiprocessing.active_children()))  # first: asking reaps ended children
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return living + sum(each.ru_utime + each.ru_stime for each in used)


def _cpu_seconds_of(child: multiprocessing.process.BaseProcess) -> float:
    """CPU seconds in the kernel's resolution of a hundredth; 0 without /proc."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0
