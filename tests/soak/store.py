"""Training from a store that fails at random, killed at random, on other world sizes: the batches of local shards.

The store (a process of its own) answers 503, cuts bodies, stalls for 1 to 20 s, is slow, refuses credentials once, and
has a shard replaced. Each attempt is one to four processes that share a cache folder, forks of a parent that has
imported everything. Nothing is decoded: indices and encoded bytes are compared, place by place.
"""

import hashlib
import json
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deit_fast.data.loader.batches import TrainLoader
from deit_fast.data.loader.order import BlockOrder, FullOrder
from deit_fast.data.loader.producer import Prepared
from deit_fast.data.loader.sampler import TrainSampler
from deit_fast.data.sources import streamed_shards
from deit_fast.data.sources.base import Source
from deit_fast.data.sources.open import open_source
from deit_fast.recipe.sections import Augment
from deit_fast.runtime.errors import DataError
from deit_fast.runtime.object_store import ChangedError
from tests.soak.crashes import fork
from tests.soak.failing_store import keep_store, replace, rewrite, write_data, write_store_index
from tests.soak.rounds import Found, tell

BATCH, STEPS = 16, 40  # of 16 steps an epoch
CASES = ((0, 1), (2, 1), (2, 2))
"""Shards in a block and lanes; a disk of two blocks where there are blocks."""
WORLDS = (1, 2, 4)
REPLACED = 3  # exit status of a process that was told of another object than the index has
PATIENCE = 180.0  # seconds that an attempt may take

Seen = dict[int, tuple[int, str]]
"""By place in the global batch: which image, and a digest of its bytes."""


@dataclass(frozen=True)
class Part:
    """One process of an attempt."""

    uri: str
    block: int
    lanes: int
    start: int
    """The step from which it goes on."""
    parts: int
    part: int
    pause: float = 0.0
    """Seconds that it takes for a batch."""
    plant: str = ""

    def run(self, out: Path) -> None:
        """A line for each batch as soon as it came."""
        os.environ |= {"LOCAL_RANK": str(self.part), "LOCAL_WORLD_SIZE": str(self.parts)}
        source = open_source(self.uri, "train")
        plant_bug(self.plant, source)
        file = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        begin = 0 if self.plant == "forgetful" else self.start
        for number, batch in enumerate(self._batches(source, begin)):
            os.write(file, (json.dumps([self.start + number, batch]) + "\n").encode())
            time.sleep(self.pause)

    def _batches(self, source: Source, begin: int) -> Any:
        assert source.shard_edges is not None
        order: Any = FullOrder(len(source), 0, source.shard_edges)
        if self.block:
            order = BlockOrder(source.shard_edges, 0, self.block, self.lanes)
            source.limit_cache(disk_of(source, self.block * self.lanes))
        sampler = TrainSampler(order, 1, BATCH, self.parts, self.part, node_parts=range(self.parts))
        loader = Undecoded(source, Augment(), 16, [sampler], 0, torch.device("cpu"), 1, start_step=begin,
                           stop_step=STEPS - self.start + begin, patience=60.0)  # fmt: skip
        return iter(loader)


class Undecoded(TrainLoader):
    """Gives [place, image, digest] of what a batch holds; stands in for DALI's pipeline, too."""

    def _build_pipeline(self) -> Any:
        return self

    def run(self) -> torch.Tensor:
        self._feed()
        return torch.empty(0)

    def reset(self) -> None:
        pass

    def _batch(self, prepared: Prepared, images: torch.Tensor) -> Any:
        assert not prepared.bad, prepared.bad
        digests = [hashlib.sha256(np.asarray(each).tobytes()).hexdigest() for each in prepared.inputs[0]]
        assert prepared.plan.positions is not None
        return list(zip(prepared.plan.positions.tolist(), prepared.indices.tolist(), digests, strict=True))


def disk_of(source: Source, shards: int) -> int | None:
    """Bytes of two blocks; None of local shards."""
    return None if source.shard_bytes is None else int(np.sort(source.shard_bytes)[-2 * shards :].sum())


def plant_bug(name: str, source: Source) -> None:
    """A bug that the rounds have to find.

    unconditional: ranges are read of whatever version is there, and nothing is kept. forgetful: who goes on reads the
    first steps' batches again.
    """
    if name == "unconditional" and isinstance(source, streamed_shards.StreamedShards):
        read = streamed_shards.read_range
        streamed_shards.read_range = lambda uri, start, size, version: read(uri, start, size, "")
        source._cache.read = lambda *rest: None  # type: ignore[method-assign]


def store(folder: Path, count: int, seed: int, plant: str) -> Found:
    """Runs killed `count` times in all, a third of the attempts with a shard replaced; each run goes on to its end."""
    import s3fs  # noqa: F401 (here, so that no attempt has to)

    bucket, told = folder / "store" / "bucket" / "set", folder / "told"
    write_data(bucket)
    server = fork(lambda: keep_store(folder / "store", told, seed))
    try:
        while not told.exists():
            time.sleep(0.01)
        environment = json.loads(told.read_text())
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            del os.environ[name]
        os.environ |= environment | {"DEIT_FAST_CACHE": str(folder / "cache")}
        assert wait_for(fork(lambda: write_store_index(bucket))) == 0
        uris = "s3://bucket/set", f"{environment['URL']}/bucket/set"
        return Rounds(folder, bucket, uris, random.Random(seed), plant).run(count)
    finally:
        os.kill(server, signal.SIGKILL)
        os.waitpid(server, 0)


def wait_for(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class Rounds:
    def __init__(self, folder: Path, bucket: Path, uris: tuple[str, str], rng: random.Random, plant: str) -> None:
        self._folder, self._bucket, self._uris, self._rng, self._plant = folder, bucket, uris, rng, plant
        self._wrong: list[str] = []
        self._did: Counter[str] = Counter()

    def run(self, count: int) -> Found:
        local = {case: self._read_local(*case) for case in CASES}
        while self._did["kills"] < count and not self._wrong:
            case, uri = self._rng.choice(CASES), self._rng.choice(self._uris)
            shutil.rmtree(self._folder / "cache", ignore_errors=True)
            step = 0
            while step < STEPS and not self._wrong:
                step = self._attempt(uri, case, step, local[case], count)
            self._did["runs"] += 1
        names = ("kills", "attempts", "runs", "batches", "replaced shards met")
        return Found(", ".join(f"{self._did[name]} {name}" for name in names), self._wrong)

    def _read_local(self, block: int, lanes: int) -> list[Seen]:
        out = self._folder / f"local-{block}-{lanes}"
        shards = self._folder / "local"  # a copy, beside which another index is made
        if not shards.exists():
            shutil.copytree(self._bucket, shards, ignore=shutil.ignore_patterns("*.index.*"))
        status = wait_for(fork(lambda: Part(str(shards), block, lanes, 0, 1, 0).run(out)))
        assert status == 0, f"status {status}"
        seen = [seen for _, seen in read_lines(out)]
        assert len(seen) == STEPS
        assert all(sorted(each) == list(range(BATCH)) for each in seen)
        return seen

    def _attempt(self, uri: str, case: tuple[int, int], start: int, local: list[Seen], count: int) -> int:
        """Returns the step that all processes came to."""
        rng, world = self._rng, self._rng.choice(WORLDS)
        self._did["attempts"] += 1
        out = [self._folder / f"seen-{self._did['attempts']}-{part}" for part in range(world)]
        parts = [Part(uri, *case, start, world, part, rng.choice((0.0, 0.01, 0.05)), self._plant)
                 for part in range(world)]  # fmt: skip
        replaces = rng.random() < 1 / 3
        kills = not replaces and self._did["kills"] < count
        shard = rng.choice(sorted(self._bucket.glob("*.tar")))
        kept = shard.read_bytes()
        children = [fork(lambda part=part: self._work(part, out[part.part])) for part in parts]
        statuses = self._watch(children, rng.uniform(0.2, 4.0), (lambda: replace(shard)) if replaces else None, kills)
        rewrite(shard, kept)
        self._judge(statuses, f"{uri}, block and lanes {case}, step {start}, {world} processes", replaces)
        reached = []
        for part in range(world):
            lines = read_lines(out[part])
            reached.append(start + len(lines))
            for step, seen in lines:
                self._did["batches"] += 1
                if other := {place: found for place, found in seen.items() if local[step][place] != found}:
                    images = [(local[step][place][0], image) for place, (image, _) in other.items()]
                    what = f"{shard.name} replaced: {replaces}, started at {start}"
                    self._wrong.append(f"{uri}: {case}: {world} processes: step {step}: images {images} differ, {what}")
            out[part].unlink(missing_ok=True)
        if all(status == 0 for status in statuses) and min(reached) != STEPS:
            self._wrong.append(f"{uri}: {case}: ended before its last step")
        return min(reached)

    def _work(self, part: Part, out: Path) -> None:
        """In a child."""
        log = os.open(self._folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 2)
        try:
            part.run(out)
        except (ChangedError, DataError) as error:
            if "\n" in str(error) or ".tar: " not in str(error):
                raise
            os._exit(REPLACED)

    def _watch(
        self, children: list[int], seconds: float, act: Callable[[], None] | None, kills: bool
    ) -> list[int | None]:
        """Exit statuses; None of those that were killed since another one had ended with an error."""
        statuses: dict[int, int | None] = {}
        began, victim, acted = time.monotonic(), self._rng.choice(children), False
        while len(statuses) < len(children):
            for child in set(children) - statuses.keys():
                done, status = os.waitpid(child, os.WNOHANG)
                if done:
                    statuses[child] = os.waitstatus_to_exitcode(status)
            now = time.monotonic() - began
            if not acted and now > seconds:
                acted = True
                if act is not None:
                    act()
                elif kills and victim not in statuses:
                    os.kill(victim, signal.SIGKILL)
                    self._did["kills"] += 1
                    if self._did["kills"] % 10 == 0:
                        tell(f"store: {self._did['kills']} kills, {self._did['batches']} batches")
            if now > PATIENCE:
                self._wrong.append(f"hang: {len(children) - len(statuses)} of {len(children)} processes")
            if any(statuses.values()) or now > PATIENCE:  # as a launcher does
                for child in set(children) - statuses.keys():
                    os.kill(child, signal.SIGKILL)
                    os.waitpid(child, 0)
                    statuses[child] = None
            time.sleep(0.005)
        return [statuses[child] for child in children]

    def _judge(self, statuses: list[int | None], what: str, replaces: bool) -> None:
        if REPLACED in statuses and replaces:
            self._did["replaced shards met"] += 1
        elif any(status not in (0, None, -signal.SIGKILL) for status in statuses):
            lines = (self._folder / "log").read_text().splitlines()
            self._wrong.append(f"{what}: statuses {statuses}: {lines[-1] if lines else ''}")


def read_lines(path: Path) -> list[tuple[int, Seen]]:
    """Steps and what was seen; a line that a kill cut in two is left out."""
    if not path.exists():
        return []
    lines = [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return [(step, {place: (image, digest) for place, image, digest in batch}) for step, batch in lines]
