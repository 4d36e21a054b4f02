"""The kind of file system that holds a path, from Linux's /proc/self/mountinfo."""

import os
from pathlib import Path
from typing import NamedTuple

MOUNTS = Path("/proc/self/mountinfo")


class Mount(NamedTuple):
    """A mounted file system: its kind ("ext4", "nfs4", "fuse.s3fs") and its source ("server:/export"), or ""."""

    kind: str
    source: str

    @property
    def is_shared(self) -> bool:
        """Whether a server holds the files, so that other machines have them too."""
        return ":" in self.source or self.source.startswith("//")

    @property
    def is_translated(self) -> bool:
        """Whether a program presents the files (FUSE). Folders of an object store then lack times that show changes."""
        return self.kind.startswith("fuse")


def find_mount(path: str | os.PathLike[str]) -> Mount:
    """The file system of a file or folder; kind "" where it is unknown. Raises OSError for a wrong path."""
    device = os.stat(path).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        lines = MOUNTS.read_text(errors="surrogateescape").splitlines()
    except OSError:
        lines = []
    for line in lines:
        place, _, kind = line.partition(" - ")
        if place.split(" ")[2:3] == [number]:
            return Mount(*kind.split(" ")[:2])
    return Mount("", "")
