"""Training images from a store: ours, an earlier build, webdataset, MosaicML streaming and litdata, side by side.

Every contender is a process of its own (streams/contenders.py), which reads two epochs from the same slow store on
loopback, each time with an empty disk. Contenders alternate, so that a machine that slows down affects all of them.
There are two rows: `encoded` measures up to the encoded bytes, `decoded` up to cropped images, with a store that is
five times slower.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deit_fast.data.sources.base import Source
from deit_fast.data.tools.write_shards import write_shards
from deit_fast.runtime.errors import RunError

from .images import open_images
from .measure import Row, Session, stats
from .store_server import serve
from .store_state import Store

LATENCY_SECONDS = 0.03
RATES = {"encoded": 100e6, "decoded": 20e6}  # bytes per second of all transfers together
ROUNDS = 3
BLOCK = 4  # shards that ours shuffles together if its disk is limited
BUCKET = "bucket"
_READ, _WRITE = (Path(__file__).parent / "streams" / name for name in ("contenders.py", "formats.py"))
_PATIENCE_SECONDS = 300


@dataclass(frozen=True)
class Contender:
    """One line of the table: a reader, its copy of the data, and its disk limit."""

    reader: str
    prefix: str
    """The bucket's folder that holds its format."""
    scheme: str = "s3"
    limit_blocks: int = 0
    """Limit of its disk space, in blocks of BLOCK shards; 0 means no limit."""


CONTENDERS = {
    "ours": Contender("ours", "shards"),
    "ours_limited": Contender("ours", "shards", limit_blocks=3),
    "before": Contender("before", "shards"),
    "local": Contender("ours", "shards", "file"),
    "download": Contender("download", "shards", "http"),
    "webdataset": Contender("webdataset", "shards", "http"),
    "mosaic": Contender("mosaic", "mosaic"),
    "mosaic_limited": Contender("mosaic", "mosaic", limit_blocks=3),
    "litdata": Contender("litdata", "litdata"),
    "litdata_limited": Contender("litdata", "litdata", limit_blocks=3),
}
_ALONE = {"encoded": "local", "decoded": "download"}  # contenders that are useless in this case
_PEERS = ("webdataset", "mosaic", "litdata")


class Numbered(Source):
    """Images of another source repeated, each with a class of its own, by which images are told apart."""

    def __init__(self, source: Source, count: int) -> None:
        super().__init__(source.uri, [f"{number:05}" for number in range(count)], np.arange(count))
        self._source = source

    def read(self, index: int) -> NDArray[np.uint8]:
        return self._source.read(index % len(self._source))

    def name(self, index: int) -> str:
        return self._source.name(index % len(self._source))


@dataclass
class Contest:
    """The data in every format, and the method of running contenders."""

    session: Session
    folder: Path
    """The folder of store/BUCKET/PREFIX/... and of the contenders' caches."""
    peers_python: str
    before: Path | None
    images: int
    shards: list[str] = field(default_factory=list)
    bytes: int = 0
    """Bytes of all shards."""

    def prepare(self, source: Source, shards: int) -> None:
        """Writes the shards, and then the peers' copies of them, with shards of the same size."""
        place = self.folder / "store" / BUCKET
        write_shards(Numbered(source, self.images), place / "shards", "train", None, self.images // shards, 1)
        self.shards = sorted(path.name for path in (place / "shards").glob("*.tar"))
        self.bytes = sum((place / "shards" / name).stat().st_size for name in self.shards)
        for peer in ("mosaic", "litdata"):
            words = [str(_WRITE), peer, str(place / "shards"), str(place / peer), str(self.bytes // shards)]
            error = self._call(self.peers_python, words, {})[1]
            if error:
                self.session.skip(peer, error)

    def measure(self, case: str, repeats: int) -> Row:
        """A row: for every contender, the medians of its figures over `repeats` rounds, and its failures."""
        found: dict[str, list[Row]] = {}
        errors: dict[str, str] = {}
        names = [name for name in CONTENDERS if name != _ALONE[case] and self._can_run(name)]
        for repeat in range(repeats):
            if repeat and self.session.out_of_time(f"{case}, round {repeat + 1}"):
                break
            for name in names:
                if name in errors:
                    continue
                self.session.say(f"{case}, round {repeat + 1} of {repeats}: {name}")
                result, error = self._run(name, case)
                if error:
                    errors[name] = error
                    self.session.say(f"{name} failed: {error}")
                else:
                    found.setdefault(name, []).append(result)
        row: Row = {"case": case, "errors": errors, "cap_images_per_second": self._cap(case)}
        for name, results in found.items():
            row[name] = {key: stats([each[key] for each in results]) for key in results[0]}
        return row

    def _cap(self, case: str) -> float:
        """Images per second that the store can send."""
        return self.images * RATES[case] / self.bytes

    def _can_run(self, name: str) -> bool:
        contender = CONTENDERS[name]
        if contender.reader == "before" and self.before is None:
            return False
        return (self.folder / "store" / BUCKET / contender.prefix).is_dir()

    def _run(self, name: str, case: str) -> tuple[Row, str]:
        contender = CONTENDERS[name]
        python = self.peers_python if contender.reader in _PEERS else sys.executable
        limit = contender.limit_blocks * BLOCK * self.bytes // len(self.shards)
        with serve(self.folder / "store") as store, self._disk() as disk:
            store.latency, store.rate = LATENCY_SECONDS, RATES[case]
            bases = {"http": store.url, "s3": "s3:/", "file": str(store.root)}
            url = f"{bases[contender.scheme]}/{BUCKET}/{contender.prefix}"
            words = [str(_READ), contender.reader, url, str(disk), case, str(limit)]
            said, error = self._call(python, words, self._environment(contender, store, disk))
            if error:
                return {}, error
            return self._figures(json.loads(said.splitlines()[-1])), ""

    @contextlib.contextmanager
    def _disk(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(dir=self.folder, prefix="disk-", ignore_cleanup_errors=True) as disk:
            yield Path(disk)

    def _environment(self, contender: Contender, store: Store, disk: Path) -> dict[str, str]:
        found = dict(store.environment)
        found |= {
            "S3_ENDPOINT_URL": store.url,
            "STORE": store.url,
            "SHARDS": json.dumps(self.shards),
            "BLOCK_IMAGES": str(BLOCK * self.images // len(self.shards)),
            "BLOCK": str(BLOCK),
            "DEIT_FAST_CACHE": str(disk),
        }
        if contender.reader == "before" and self.before is not None:
            found["PYTHONPATH"] = str(self.before)
        return found

    def _figures(self, found: dict[str, Any]) -> Row:
        """The figures of two epochs. Raises RunError where not all images were read."""
        for epoch in found["epochs"]:
            if not 0.95 * self.images <= epoch["distinct"] <= epoch["images"] <= self.images:
                raise RunError(f"expected {self.images} images, each once, found {epoch}")
        first, second = found["epochs"]
        return {
            "first_batch_seconds": found["first_batch_seconds"],
            "images_per_second": first["images"] / first["seconds"],
            "images_per_second_after_a_block": first["later_images_per_second"],
            "images_per_second_second_epoch": second["images"] / second["seconds"],
            "peak_disk_mb": found["peak_disk_bytes"] / 1e6,
            "pss_mb": found["pss_bytes"] / 1e6,
            "cpu_seconds": found["cpu_seconds"],
            "requests": first["requests"],
            "range_requests": first["range_requests"],
            "range_requests_second_epoch": second["range_requests"],
            "bytes_over_set": first["bytes"] / self.bytes,
        }

    def _call(self, python: str, words: list[str], more: dict[str, str]) -> tuple[str, str]:
        """The script's output, and the reason of its failure, if any."""
        environment = {key: value for key, value in os.environ.items() if not key.startswith("AWS_")} | more
        command = [python, *words]
        try:
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            return "", f"no result within {_PATIENCE_SECONDS} s"
        except OSError as error:
            return "", f"{python}: {error.strerror}"
        lines = done.stderr.strip().splitlines()
        return done.stdout, "" if done.returncode == 0 else f"status {done.returncode}: {(lines or ['no word'])[-1]}"


def run(session: Session, data: str | None, peers_python: str, before: Path | None) -> None:
    """A row for each of RATES. data: images to repeat, by default generated ones."""
    images, shards = (400, 16) if session.quick else (2000, 40)
    with (
        open_images(data, session.quick, images) as (source, described),
        tempfile.TemporaryDirectory(prefix="deit-fast-store-", ignore_cleanup_errors=True) as folder,
    ):
        contest = Contest(session, Path(folder), peers_python, before, images)
        session.say(f"writing {images} images in {shards} shards, and in the peers' formats")
        contest.prepare(source, shards)
        session.settings = {
            "data": f"{images} images from {described}, {contest.bytes / 1e6:.0f} MB in {shards} shards",
            "latency_seconds": LATENCY_SECONDS,
            "bytes_per_second": RATES,
            "block": BLOCK,
            "contenders": {name: vars(contender) for name, contender in CONTENDERS.items()},
        }
        for case in RATES:
            if not session.out_of_time(case):
                session.add(contest.measure(case, 1 if session.quick else ROUNDS))
