"""Training data streamed while everything around them fails: batches stay equal to those of local shards, bit by bit.

One to three processes read from a store on loopback that answers 503, cuts bodies and stalls for seconds. They share a
cache folder that holds two blocks, parts of which are removed. Then one of the processes, or all, are killed at a
random moment, and the same or another number of processes continues at the step reached.
"""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from deit_fast.data.loader.order import BlockOrder
from deit_fast.data.loader.producer import Plan, Producer
from deit_fast.data.loader.sampler import TrainSampler
from deit_fast.data.loader.window import Window
from deit_fast.data.sources.base import Source
from deit_fast.data.sources.open import open_source
from deit_fast.data.sources.shard_files import ShardFiles
from tests.conftest import ROOT
from tests.image_files import encode, write_tar
from tests.soak.crashes import fork
from tests.soak.rounds import Found, tell

BATCH, BLOCK, SHARDS, IMAGES = 12, 3, 12, 20
STEPS = 4 * SHARDS * IMAGES // BATCH  # four epochs
STALL_SECONDS = (1.0, 20.0)


def streams(folder: Path, count: int, seed: int, plant: str) -> Found:
    """Kills readers `count` times. Planted bug hasty: reads beyond the part of a shard that has arrived."""
    local = folder / "store" / "bucket" / "set"
    for shard in range(SHARDS):
        members = {}
        for image in range(IMAGES):
            members[f"{shard}-{image:02}.jpg"] = encode(280 + shard, 300 + image)  # a shard is two pieces
            members[f"{shard}-{image:02}.cls"] = str((shard * image) % 3).encode()
        write_tar(local / f"train-{shard:02}.tar", members)
    plain = open_source(str(local), "train")
    expected = {step: digests for step, _, digests in read_batches(plain, 0, 1, 0, np.inf)}
    command = [sys.executable, "-m", "benchmarks.store_server", str(folder / "store"), "--latency", "0.005",
               "--rate", "30e6", "--503", "0.03", "--cut", "0.02"]  # fmt: skip
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            url = f"http://127.0.0.1:{int(server.stdout.readline())}"
            os.environ["DEIT_FAST_CACHE"] = str(folder / "cache")
            return kill_readers(folder, count, random.Random(seed), plant, server, url, expected)
        finally:
            server.kill()


def kill_readers(
    folder: Path, count: int, rng: random.Random, plant: str, server: subprocess.Popen[str], url: str,
    expected: dict[int, list[str]],
) -> Found:  # fmt: skip
    kills, stalls, runs, step, wrong = 0, 0, 0, 0, list[str]()
    while kills < count and not wrong:
        size, log = rng.choice((1, 2, 3)), folder / "log"
        shutil.rmtree(log, ignore_errors=True)
        log.mkdir()
        hurt_cache(folder / "cache", rng)
        follow_here = partial(follow, f"{url}/bucket/set", log, size, step, plant)
        children = [fork(partial(follow_here, rank)) for rank in range(size)]
        time.sleep(rng.uniform(0.5, 4.0))
        if rng.random() < 0.05:
            server.send_signal(signal.SIGSTOP)
            time.sleep(rng.uniform(*STALL_SECONDS))
            server.send_signal(signal.SIGCONT)
            time.sleep(0.5)
            stalls += 1
        for child in children:
            os.kill(child, signal.SIGKILL)
        kills += size
        ends = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        wrong += [f"a reader ended with {end}" for end in ends if end not in (0, -signal.SIGKILL)]
        found: dict[int, list[str]] = {}
        for path in log.iterdir():
            for line in path.read_text().splitlines():
                number, positions, digests = json.loads(line)
                whole = found.setdefault(number, [""] * BATCH)
                for position, digest in zip(positions, digests, strict=True):
                    whole[position] = digest
                    if digest != expected[number][position]:
                        wrong.append(f"step {number}, place {position}: another image")
        done = [number for number, digests in found.items() if all(digests)]
        step = max(done, default=step - 1) + 1
        if step == STEPS:
            step, runs = 0, runs + 1
        if kills % 20 < size:
            tell(f"streams: {kills} of {count}, step {step}")
    with urllib.request.urlopen(f"{url}/_requests") as answer:
        statuses = Counter(request["status"] for request in json.load(answer))
    answers = ", ".join(f"{statuses[status]} {status}" for status in sorted(statuses))
    return Found(f"{kills} kills, {stalls} stalls, {runs} runs of {STEPS} steps; answers: {answers}", wrong)


def follow(uri: str, log: Path, size: int, start: int, plant: str, rank: int) -> None:
    """In the child: writes down the content of each batch."""
    os.environ |= {"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(size)}
    if plant == "hasty":
        read = ShardFiles.read
        ShardFiles.read = lambda self, shard, start, size: (  # type: ignore[method-assign]
            bytes(size) if self.arrived(shard) and read(self, shard, start, size) is None
            else read(self, shard, start, size)
        )  # fmt: skip
    source = open_source(uri, "train")
    assert source.shard_bytes is not None
    limit = int(np.sort(source.shard_bytes)[-2 * BLOCK :].sum())
    with open(log / str(rank), "w", buffering=1) as file:
        for batch in read_batches(source, rank, size, start, limit):
            file.write(json.dumps(batch) + "\n")


def read_batches(
    source: Source, rank: int, size: int, start: int, limit: float
) -> Iterator[tuple[int, list[int], list[str]]]:
    """Step, places in the global batch and digests of the images' bytes."""
    if np.isfinite(limit):
        source.limit_cache(int(limit))
    assert source.shard_edges is not None
    order = BlockOrder(source.shard_edges, 0, BLOCK)
    sampler = TrainSampler(order, 1, BATCH, size, rank, node_parts=range(size))

    def plans() -> Iterator[Plan]:
        for step in range(start, STEPS):
            chosen = sampler.batch(step)
            yield Plan(
                chosen.indices, chosen.positions, chosen.epoch, step, len(chosen.indices),
                lambda encoded, sizes: [encoded],
            )  # fmt: skip

    window = Window(source, order, sampler.node_lanes, sampler.lane_views, 1, sampler.steps_per_epoch, STEPS)
    producer = Producer(source, plans(), None, 60.0, window)
    try:
        while True:
            try:
                [encoded] = producer.next_inputs()
            except StopIteration:
                break
            plan = producer.hand_over().plan
            assert plan.positions is not None
            time.sleep(0.005 * rank)
            yield plan.step, plan.positions.tolist(), [hashlib.sha256(each.tobytes()).hexdigest() for each in encoded]
        if producer.error is not None:
            raise producer.error
    finally:
        producer.close()


def hurt_cache(cache: Path, rng: random.Random) -> None:
    """Mostly does nothing; else removes or cuts some files, or removes all."""
    files = [path for path in cache.rglob("*") if ".tar" in path.name]
    chance = rng.random()
    if chance < 0.1:
        shutil.rmtree(cache, ignore_errors=True)
    elif chance < 0.3 and files:
        rng.choice(files).unlink()
    elif chance < 0.4 and files:
        path = rng.choice(files)
        os.truncate(path, rng.randrange(path.stat().st_size + 1))
