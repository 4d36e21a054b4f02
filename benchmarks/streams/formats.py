"""Writes tar shards in a peer's format for `benchmarks streaming`; a script that the peer's Python runs.

python formats.py mosaic|litdata SHARDS OUT SHARD_BYTES
"""

import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Sample = tuple[bytes, int]
"""Encoded image, and its class."""


def read_samples(shards: Path) -> Iterator[Sample]:
    """The samples of the tar shards in a folder, in their order."""
    for shard in sorted(shards.glob("train-*.tar")):
        with tarfile.open(shard) as archive:
            members = archive.getmembers()
            for image, label in zip(members[::2], members[1::2], strict=True):
                contents = [archive.extractfile(each) for each in (image, label)]
                data, number = (each.read() for each in contents if each is not None)
                yield data, int(number)


def write_mosaic(shards: Path, out: Path, shard_bytes: int) -> None:
    from streaming import MDSWriter

    with MDSWriter(out=str(out), columns={"jpg": "bytes", "cls": "int"}, size_limit=shard_bytes) as writer:
        for image, label in read_samples(shards):
            writer.write({"jpg": image, "cls": label})


def write_litdata(shards: Path, out: Path, shard_bytes: int) -> None:
    import litdata

    samples = list(read_samples(shards))
    litdata.optimize(_index_of, [(index, *samples[index]) for index in range(len(samples))], str(out),
                     chunk_bytes=shard_bytes, num_workers=1, verbose=False)  # fmt: skip


def _index_of(sample: tuple[int, bytes, int]) -> dict[str, Any]:
    return {"jpg": sample[1], "cls": sample[2]}


WRITERS: dict[str, Callable[[Path, Path, int], None]] = {"mosaic": write_mosaic, "litdata": write_litdata}


if __name__ == "__main__":
    WRITERS[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
