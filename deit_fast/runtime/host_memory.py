"""Memory that this process can still allocate, by the system, its control groups and its own limit.

psutil is not used: it reads neither control groups nor limits, and the system's part is one line of /proc/meminfo.
`limit_arenas` reduces the freed memory that the process keeps.
"""

import ctypes
import os
import resource
from collections.abc import Iterator
from pathlib import Path

PROC, GROUPS = Path("/proc"), Path("/sys/fs/cgroup")
_M_ARENA_MAX = -8  # from glibc's malloc.h
_USERS_CHOICE = ("MALLOC_ARENA_MAX", "GLIBC_TUNABLES")


def limit_arenas(arenas: int) -> None:
    """Limits the number of malloc arenas of glibc in this process, for threads that start from now on.

    glibc's default is 8 arenas per core. An arena keeps the blocks that its threads have freed, and other arenas cannot
    use these blocks. A loader has a dozen threads for reading and decoding, and would keep several batches in this way.
    Nothing changes if the environment sets malloc's limits (MALLOC_ARENA_MAX, GLIBC_TUNABLES), or with another C
    library.
    """
    set_limit = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_limit is not None and not any(name in os.environ for name in _USERS_CHOICE):
        set_limit(_M_ARENA_MAX, arenas)


def available_memory(proc: Path = PROC, groups: Path = GROUPS) -> int | None:
    """Bytes: the minimum of what the system has free, each control group allows and ulimit -v leaves.

    None where none of these can be read.
    """
    found = [*_of_system(proc), *_of_groups(proc, groups), *_of_limit(proc)]
    return max(0, min(found)) if found else None


def _of_system(proc: Path) -> Iterator[int]:
    kilobytes = _fields(proc / "meminfo").get("MemAvailable")
    if kilobytes is not None:
        yield 1024 * kilobytes


def _of_groups(proc: Path, groups: Path) -> Iterator[int]:
    """Bytes left in the control groups of this process and in their parents, for both versions of cgroups.

    A group's page cache counts towards its usage, but is freed when memory is needed, so it counts as left.
    """
    for line in _lines(proc / "self" / "cgroup"):
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            root, limit, usage, cached = groups, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            root, cached = groups / "memory", "total_inactive_file"
            limit, usage = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        folder = root / path.lstrip("/")
        # In a container the path may be the host's and invisible here. The process's own group is then the root.
        for place in dict.fromkeys([folder, *folder.parents, root]):
            if place.is_relative_to(root):
                allowed, used = _number(place / limit), _number(place / usage)
                if allowed is not None and used is not None:
                    yield allowed - used + _fields(place / "memory.stat").get(cached, 0)


def _of_limit(proc: Path) -> Iterator[int]:
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    kilobytes = _fields(proc / "self" / "status").get("VmSize")
    if limit != resource.RLIM_INFINITY and kilobytes is not None:
        yield limit - 1024 * kilobytes


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _number(path: Path) -> int | None:
    """The number in a file; None for "max" and for a missing file."""
    text = "".join(_lines(path)).strip()
    return int(text) if text.isdecimal() else None


def _fields(path: Path) -> dict[str, int]:
    """Name -> number, from lines such as "MemAvailable:  1 kB" and "inactive_file 1"."""
    words = (line.replace(":", " ").split() for line in _lines(path))
    return {each[0]: int(each[1]) for each in words if len(each) > 1 and each[1].isdecimal()}
